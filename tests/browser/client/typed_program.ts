// What a program may write, and what the types keep it from.

import { connect, TrisyncError, type Change, type Gap, type Message, type Replica, type Store } from "trisync";

const client = connect("ws://localhost:8000/", { name: "ada", queueMax: 10, debug: (...what) => console.log(what) });
client.on("state", ({ state, retryMs }) => { const is: "connecting" | "online" | "offline" | "closed" = state; });
client.on("refused", ({ item, error }) => { const code: string = error.code; const channel: string = item.channel; });
const lobby = client.subscribe("lobby", { last: 20, presence: true });
const end: () => void = lobby.on("message", (message: Message) => { const offset: number | undefined = message.offset; });
lobby.on("gap", (gap: Gap) => { const reason: "trimmed" | "missed" | "epoch" = gap.reason; });
const doc: Replica = client.replica("doc");
doc.on("change", (change: Change) => { const is: boolean = change.pending; });
doc.on("message", (message) => { const from: string | undefined = message.from; });
const offset: Promise<number | undefined> = doc.update("count", (count) => Number(count ?? 0) + 1).then((ok) => ok.offset);
// @ts-expect-error: there is no such event
lobby.on("messages", () => {});
// @ts-expect-error: a subscription has no state
lobby.get("title");
// @ts-expect-error: that is no JSON
client.publish("lobby", new Map());
// @ts-expect-error: made by connect() only
new (client.constructor as typeof import("trisync").Client)();
const store: Store | undefined = undefined;
const error: Error = new TrisyncError({ code: "conflict" });
