// Two clients, as somebody would write them who has installed the package; what they saw is printed.

import { connect, TrisyncError } from "trisync";

const [, , url, websockets] = process.argv;
const { WebSocket } = await import(websockets);
const ada = connect(url, { WebSocket, name: "ada" });
const bob = connect(url, { WebSocket, name: "bob" });
const heard = [];
const lobby = bob.subscribe("lobby", { since: 0, presence: true });
lobby.on("message", ({ offset, from, data }) => heard.push([offset, from, data]));
lobby.on("gap", () => heard.push("gap"));
const docs = [ada.replica("doc"), bob.replica("doc")];
await Promise.all(docs.map(({ ready }) => ready));
await Promise.all(Array.from({ length: 20 }, (_, number) => ada.publish("lobby", number)));
await Promise.all(docs.flatMap((doc) => Array(10).fill(doc).map(() => doc.update("count", (count = 0) => count + 1))));
const refusal = await ada.publish("no channel", 1).catch((error) => error);
const { messages } = await ada.history("lobby", { since: 18 });
const isLevel = () => heard.length === 20 && docs.every((doc) => doc.get("count") === 20);
while (!isLevel()) await new Promise((next) => setTimeout(next, 10));
console.log(JSON.stringify({
  heard,
  history: messages.map(({ offset }) => offset),
  refusal: [refusal instanceof TrisyncError, refusal.code],
  members: [...lobby.members.values()].map(({ name }) => name),
}));
ada.close();
bob.close();
