// A WebSocket echo on the npm package `ws`, the server of generator-cost/run.py and of docs/comparing.md:
//     NODE_PATH=node_modules node echo.cjs PORT
// It sends every message back in kind. A line a second on standard output says what it saw, so that what a generator
// says of itself can be held against it. No compression, no limit on clients.
const { WebSocketServer } = require("ws");

const port = Number(process.argv[2] ?? 0);
const server = new WebSocketServer({ host: "127.0.0.1", port, perMessageDeflate: false, clientTracking: false, backlog: 4096 });
const seen = { connections: 0, messages: 0, pings: 0 };

server.on("listening", () => console.log(JSON.stringify({ port: server.address().port })));
server.on("connection", (socket) => {
    seen.connections += 1;
    socket.on("message", (data, isBinary) => {
        seen.messages += 1;
        socket.send(data, { binary: isBinary });
    });
    socket.on("ping", () => (seen.pings += 1));
    socket.on("error", () => {});
    socket.on("close", () => (seen.connections -= 1));
});
setInterval(() => console.log(JSON.stringify(seen)), 1000);
