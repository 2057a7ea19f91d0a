// A fan-out server for tools/compare.py: whatever a client sends, all others get. Node and npm's ws, nothing stored.
// Usage: NODE_PATH=…/node_modules node ws_fanout.mjs PORT
import { createRequire } from "node:module";

const { WebSocketServer } = createRequire(import.meta.url)("ws"); // unlike import, this one heeds NODE_PATH

const server = new WebSocketServer({ host: "127.0.0.1", port: Number(process.argv[2]), perMessageDeflate: false });

server.on("connection", (from) => {
  from.on("message", (data, binary) => {
    for (const client of server.clients) {
      if (client !== from) client.send(data, { binary });
    }
  });
  from.on("error", () => {});
});
