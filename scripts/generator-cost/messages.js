// k6: connections that send a message of 100 bytes every so often and time its echo. EACH of them in every virtual user.
import { Trend } from "k6/metrics";
import { WebSocket } from "k6/websockets";

const { URL, VUS, EACH, RAMP_MS, EVERY_MS, STAY_MS } = __ENV;
const delivery = new Trend("delivery", true);
export const options = {
    scenarios: { messages: { executor: "per-vu-iterations", vus: Number(VUS), iterations: 1, maxDuration: "10m" } },
};

export default function () {
    for (let station = 0; station < Number(EACH); station += 1) {
        setTimeout(() => {
            const socket = new WebSocket(URL);
            socket.addEventListener("message", (event) => delivery.add(Date.now() - parseInt(event.data, 10)));
            socket.addEventListener("open", () => {
                let number = 0;
                const messages = setInterval(() => socket.send(`${Date.now()} ${(number += 1)} `.padEnd(100, ".")), Number(EVERY_MS));
                setTimeout(() => {
                    clearInterval(messages);
                    socket.close();
                }, Number(STAY_MS));
            });
        }, Math.random() * Number(RAMP_MS));
    }
}
