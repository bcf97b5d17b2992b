// k6: connections that do nothing but ping. EACH of them in every virtual user.
import { WebSocket } from "k6/websockets";

const { URL, VUS, EACH, RAMP_MS, PING_MS, STAY_MS } = __ENV;
export const options = {
    scenarios: { idle: { executor: "per-vu-iterations", vus: Number(VUS), iterations: 1, maxDuration: "10m" } },
};

export default function () {
    for (let number = 0; number < Number(EACH); number += 1) {
        setTimeout(() => {
            const socket = new WebSocket(URL);
            socket.addEventListener("open", () => {
                const pings = setInterval(() => socket.ping(), Number(PING_MS));
                setTimeout(() => {
                    clearInterval(pings);
                    socket.close();
                }, Number(STAY_MS));
            });
        }, Math.random() * Number(RAMP_MS));
    }
}
