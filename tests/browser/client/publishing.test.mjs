// Publishing: queued while offline, sent again until answered, in order, stored once.

import assert from "node:assert/strict";
import { test } from "node:test";
import { connect, MemoryStore } from "../../../trisync/web/trisync.js";
import { aClient, anOnlineClient, EPOCH, FakeSocket, greet, LIMITS, outcome, pass, settle } from "./fakes.mjs";

const seqs = (socket) => socket.asked("publish").map(({ seq }) => seq);
const published = (socket) => socket.asked("publish").map(({ seq, data }) => [seq, data]);

async function reconnect(client, fields) {
  FakeSocket.newest.end();
  await pass(client.retryMs);
  return greet(fields);
}

/** A store as a browser has one: what is in it is there for the next client. */
class SlowStore extends MemoryStore {
  saving = [];

  constructor(...queues) {
    super();
    this.queues = queues;
    this.forgotten = [];
  }

  open() {
    return this.queues.length ? this.queues : super.open();
  }

  save() {
    return new Promise((resolve) => this.saving.push(resolve));
  }

  forget({ producer }) {
    this.forgotten.push(producer);
  }
}

class OpeningStore extends SlowStore {
  open() {
    return new Promise((resolve) => (this.opened = resolve));
  }
}

test("what is published offline waits, and is sent in order once the greeting is answered", async (t) => {
  const client = await aClient(t);
  const verdicts = ["a", "b"].map((data) => client.publish("lobby", data));
  await settle();
  assert.deepEqual(client.queue.map(({ data }) => data), ["a", "b"]);
  FakeSocket.newest.accept();
  assert.equal(FakeSocket.newest.asked("publish").length, 0);
  FakeSocket.newest.answer("hello", { limits: LIMITS, seq: 0 });
  await settle();
  const [a, b] = FakeSocket.newest.asked("publish");
  assert.deepEqual([a.seq, a.data, b.seq, b.data], [1, "a", 2, "b"]);
  FakeSocket.newest.say("ok", { id: a.id, offset: 7 });
  FakeSocket.newest.say("ok", { id: b.id, offset: 8 });
  assert.deepEqual((await Promise.all(verdicts)).map(({ offset }) => offset), [7, 8]);
  assert.deepEqual(client.queue, []);
});

for (const event of ["state", "queued"]) {
  for (const moments of [0, 1, 2]) {
    test(`what a listener of "${event}" publishes ${moments} moments later is in its place among what others do`, async (t) => {
      (await aClient(t)).close();
      const store = new SlowStore({ producer: "gone", seq: 1, items: [{ seq: 1, channel: "lobby", data: "left" }] });
      const client = connect("ws://server.example/", { WebSocket: FakeSocket, store });
      t.after(() => client.close());
      const called = [];
      const publish = (data) => {
        called.push(data);
        client.publish("lobby", data).catch(() => {});
      };
      client.on(event, async () => {
        const number = called.length;
        if (number > 20) return;
        for (let moment = 0; moment < moments; moment++) await undefined;
        publish(`${event} ${number}`);
        await undefined;
        publish(`and ${number}`);
      });
      publish("first");
      publish("second");
      await settle();
      assert.ok(called.length > 3);
      const own = called.map((data, index) => [index + 1, data]);
      assert.deepEqual(client.queue.map(({ seq, data }) => [seq, data]), [[1, "left"], ...own]);
    });
  }
}

test("who hears that something is queued may close the client, and who published it is told", async (t) => {
  const client = await aClient(t);
  client.on("queued", () => client.close());
  assert.equal((await outcome(Promise.race([client.publish("lobby", 1), settle()]))).code, "closed");
});

test("who hears that something is queued by another client that is gone may close this one for good", async (t) => {
  const item = { seq: 1, channel: "lobby", data: "left" };
  const store = new SlowStore({ producer: "gone", seq: 1, items: [item] });
  FakeSocket.opened = [];
  const client = connect("ws://server.example/", { WebSocket: FakeSocket, store });
  t.after(() => client.close());
  client.on("queued", () => client.close());
  await settle();
  assert.deepEqual([client.state, FakeSocket.opened], ["closed", []]);
});

test("what was not answered is sent again under the same numbers, and settled once", async (t) => {
  const { client } = await anOnlineClient(t);
  const stored = [];
  client.on("stored", ({ item, offset }) => stored.push([item.data, offset]));
  const verdicts = ["a", "b", "c"].map((data) => client.publish("lobby", data));
  await settle();
  const socket = FakeSocket.newest;
  socket.say("ok", { id: socket.asked("publish")[0].id, offset: 1 });
  const next = await reconnect(client, { seq: 2 });
  assert.deepEqual(seqs(next), [2, 3]);
  const [b, c] = next.asked("publish");
  next.say("ok", { id: b.id, offset: 2, duplicate: true });
  next.say("ok", { id: c.id, offset: 3 });
  assert.deepEqual((await Promise.all(verdicts)).map(({ offset }) => offset), [1, 2, 3]);
  assert.deepEqual(stored, [["a", 1], ["b", 2], ["c", 3]]);
});

test("a refusal settles its publish and no other", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const refused = [];
  client.on("refused", ({ item, error }) => refused.push([item.data, error.code]));
  const bad = outcome(client.publish("lobby", "bad"));
  client.publish("lobby", "good").catch(() => {});
  await settle();
  socket.say("error", { id: socket.asked("publish")[0].id, code: "forbidden", message: "no", retry: false });
  assert.equal((await bad).code, "forbidden");
  assert.deepEqual(refused, [["bad", "forbidden"]]);
  assert.deepEqual(client.queue.map(({ data }) => data), ["good"]);
});

test("at most 256 are unanswered, or as many as the server allows", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  for (let number = 0; number < 300; number++) client.publish("lobby", number).catch(() => {});
  await settle();
  assert.equal(socket.asked("publish").length, 256);
  socket.say("ok", { id: socket.asked("publish")[0].id, offset: 1 });
  assert.equal(socket.asked("publish").length, 257);
});

test("a full queue is an error, and loses nothing that is in it", async (t) => {
  const client = await aClient(t, { queueMax: 2 });
  client.publish("lobby", 1).catch(() => {});
  client.publish("lobby", 2).catch(() => {});
  const error = await outcome(client.publish("lobby", 3));
  assert.deepEqual([error.code, error.limit, error.value], ["limit", "queueMax", 2]);
  assert.deepEqual(client.queue.map(({ data }) => data), [1, 2]);
});

test("when the log cannot take it, everything is sent again, once, after a pause that grows", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  for (const data of ["a", "b", "c"]) client.publish("lobby", data).catch(() => {});
  await settle();
  const refuse = (from) => {
    const [first, ...others] = socket.asked("publish").slice(from);
    socket.say("error", { id: first.id, code: "unavailable", message: "disk full", retry: true });
    for (const { id } of others) socket.say("error", { id, code: "out_of_sequence", message: "", retry: true, seq: 0 });
  };
  refuse(0);
  await pass(199);
  assert.equal(seqs(socket).length, 3);
  await pass(1);
  assert.deepEqual(seqs(socket), [1, 2, 3, 1, 2, 3]);
  refuse(3);
  await pass(399);
  assert.equal(seqs(socket).length, 6);
  await pass(1);
  assert.deepEqual(seqs(socket).slice(6), [1, 2, 3]);
});

test("a server that says how long to wait is obeyed, up to a minute", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  client.publish("lobby", "a").catch(() => {});
  await settle();
  socket.refuse("publish", "rate_limited", { retry: true, retry_ms: 5000 });
  await pass(4999);
  assert.equal(seqs(socket).length, 1);
  await pass(1);
  assert.equal(seqs(socket).length, 2);
  socket.refuse("publish", "rate_limited", { retry: true, retry_ms: 1e12 });
  for (const ms of [20_000, 20_000, 19_999]) {
    await pass(ms);
    socket.say("pong", {}); // or it would be given up
  }
  assert.equal(seqs(socket).length, 2);
  await pass(1);
  assert.equal(seqs(socket).length, 3);
});

test("after a goodbye nothing more is sent until the next greeting", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  socket.say("goodbye", { code: "draining", reconnect_ms: 10 });
  client.publish("lobby", "a").catch(() => {});
  await settle();
  assert.equal(seqs(socket).length, 0);
  assert.deepEqual(seqs(await reconnect(client)), [1]);
});

test("who is fenced by an own hello that came late connects again and goes on", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const verdict = client.publish("lobby", "a");
  await settle();
  socket.refuse("publish", "fenced");
  assert.equal(client.state, "offline");
  await pass(client.retryMs);
  const again = await greet();
  assert.deepEqual(seqs(again), [1]);
  again.answer("publish", { offset: 7 });
  assert.equal((await verdict).offset, 7);
});

test("what the server could not read or would close on is refused here", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  let deep = "leaf";
  for (let level = 0; level < 63; level++) deep = [deep];
  client.publish("lobby", deep).catch(() => {});
  for (const [data, code] of [["x".repeat(1 << 20), "too_large"], ["\ud800", "bad_json"], [{ "\udfff": 1 }, "bad_json"], [[deep], "bad_json"]]) {
    assert.equal((await outcome(client.publish("lobby", data))).code, code);
  }
  await assert.rejects(client.publish("lobby", 1n), TypeError);
  await settle();
  assert.deepEqual(seqs(socket), [1]);
});

test("what became too large while it waited is refused under its number, so that the rest can follow", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const large = outcome(client.publish("lobby", "x".repeat(2000)));
  client.publish("lobby", "small").catch(() => {});
  socket.end();
  await pass(client.retryMs);
  const next = await greet({ limits: { message_bytes_max: 1000 } });
  const [first, second] = next.asked("publish");
  assert.deepEqual(first, { op: "publish", id: first.id, seq: 1 });
  assert.deepEqual([second.seq, second.data], [2, "small"]);
  next.say("error", { id: first.id, code: "bad_request", message: "data is missing", retry: false });
  assert.equal((await large).code, "too_large");
});

test("what a page before took and no server can read is refused under its number, so that the rest can follow", async (t) => {
  const items = ["\ud800", "well"].map((data, index) => ({ seq: index + 1, channel: "lobby", data }));
  const client = await aClient(t, { store: new SlowStore({ producer: "of-a-page-before", seq: 2, items }) });
  const refused = [];
  client.on("refused", ({ error }) => refused.push(error.code));
  const socket = await greet();
  const [first, second] = socket.asked("publish");
  assert.deepEqual(first, { op: "publish", id: first.id, seq: 1 });
  assert.deepEqual([second.seq, second.data], [2, "well"]);
  socket.say("error", { id: first.id, code: "bad_request", message: "data is missing", retry: false });
  assert.deepEqual(refused, ["bad_json"]);
});

test("what was looked at when it was published is not looked at again when it is sent", async (t) => {
  const client = await aClient(t);
  client.publish("lobby", "a").catch(() => {});
  const [item] = client.queue;
  const looks = t.mock.method(Object, "entries");
  assert.deepEqual(seqs(await greet()), [1]);
  assert.ok(looks.mock.calls.every(({ arguments: [value] }) => value !== item));
});

test("what is published is what it was then, whatever becomes of the object", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const data = { text: "then" };
  client.publish("lobby", data).catch(() => {});
  data.text = "now";
  await settle();
  assert.deepEqual(socket.asked("publish")[0].data, { text: "then" });
});

test("an ephemeral message is sent or fails, and never waits", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const sent = client.publish("lobby", "typing", { ephemeral: true });
  await settle();
  assert.equal(socket.asked("publish")[0].seq, undefined);
  socket.answer("publish", {});
  await sent;
  socket.end();
  assert.equal((await outcome(client.publish("lobby", "typing", { ephemeral: true }))).code, "disconnected");
  assert.deepEqual(client.queue, []);
});

test("nothing is sent before it is in the store: a number that was sent is never given again", async (t) => {
  const store = new SlowStore();
  const client = await aClient(t, { store });
  client.publish("lobby", "a").catch(() => {});
  client.publish("lobby", "b").catch(() => {});
  const socket = await greet();
  store.saving[1]();
  await settle();
  assert.deepEqual(seqs(socket), []);
  store.saving[0]();
  await settle();
  assert.deepEqual(seqs(socket), [1, 2]);
});

test("nothing is sent before it is in the store either if it was published while that opened", async (t) => {
  for (let moments = 0; moments < 20; moments++) {
    FakeSocket.opened = [];
    const store = new SlowStore();
    const client = connect("ws://server.example/", { WebSocket: FakeSocket, store });
    t.after(() => client.close());
    for (let moment = 0; moment < moments; moment++) await undefined;
    client.publish("lobby", "a").catch(() => {});
    await settle();
    const socket = await greet();
    assert.deepEqual([seqs(socket), store.saving.length], [[], 1], `after ${moments} moments`);
    store.saving[0]();
    await settle();
    assert.deepEqual(seqs(socket), [1]);
  }
});

test("a store that fails costs nothing but what a crash would", async (t) => {
  const store = new SlowStore();
  store.save = () => Promise.reject(new Error("quota"));
  const { client, socket } = await anOnlineClient(t, { store });
  client.publish("lobby", "a").catch(() => {});
  await settle();
  assert.deepEqual(seqs(socket), [1]);
});

test("a store that does not open costs nothing but what a crash would", async (t) => {
  const store = new SlowStore();
  const closed = t.mock.method(store, "close");
  store.open = () => Promise.reject(new Error("private mode"));
  const { client, socket } = await anOnlineClient(t, { store });
  client.publish("lobby", "a").catch(() => {});
  await settle();
  assert.deepEqual(seqs(socket), [1]);
  assert.equal(closed.mock.callCount(), 1, "it may have opened half");
});

test("a store that does not open in time costs nothing but what a crash would, and is let go of when it does", async (t) => {
  const store = new OpeningStore();
  const closed = t.mock.method(store, "close");
  const client = await aClient(t, { store });
  client.publish("lobby", "a").catch(() => {});
  await pass(9999);
  assert.equal(FakeSocket.opened.length, 0);
  await pass(1);
  assert.deepEqual(seqs(await greet()), [1]);
  assert.equal(closed.mock.callCount(), 0);
  store.opened([{ producer: "gone", seq: 1, items: [{ seq: 1, channel: "lobby", data: "left" }] }]);
  await settle();
  assert.equal(closed.mock.callCount(), 1);
  assert.deepEqual(client.queue.map(({ data }) => data), ["a"]);
});

test("a client whose store opens waits for it, though the network is back meanwhile", async (t) => {
  const store = new OpeningStore();
  const client = await aClient(t, { store });
  client.nudge();
  await pass(9000);
  assert.deepEqual([client.state, FakeSocket.opened], ["connecting", []]);
  store.opened([]);
  await settle();
  await pass(1000);
  assert.equal(FakeSocket.opened.length, 1);
});

test("a client may be closed while its store opens", async (t) => {
  const store = new OpeningStore();
  const closed = t.mock.method(store, "close");
  const client = await aClient(t, { store });
  const published = outcome(client.publish("lobby", "a"));
  client.close();
  assert.equal((await Promise.race([published, settle()]))?.code, "closed");
  store.opened([]);
  await settle();
  assert.equal(closed.mock.callCount(), 1);
  await pass(10_000);
  assert.equal(FakeSocket.opened.length, 0);
});

test("where a store makes no queue, none is kept in it that another tab would take too", async (t) => {
  const store = new SlowStore({ producer: "of-a-tab-before", seq: 1, items: [{ seq: 1, channel: "lobby", data: "old" }] });
  const closed = t.mock.method(store, "close");
  store.create = () => Promise.reject(new Error("locks are refused"));
  const { client, socket } = await anOnlineClient(t, { store });
  client.publish("lobby", "a").catch(() => {});
  await settle();
  assert.deepEqual(socket.asked("publish").map(({ seq, data }) => [seq, data]), [[1, "a"]]);
  assert.equal(store.saving.length, 0);
  assert.equal(closed.mock.callCount(), 1, "what it has found is left to others");
});

test("an ephemeral message with a key is refused by the server, and not stored as something else", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const sent = client.publish("lobby", 1, { ephemeral: true, key: "k", expect: 3, merge: true });
  await settle();
  const { channel, key, expect, merge, ephemeral, seq } = socket.asked("publish")[0];
  assert.deepEqual([channel, key, expect, merge, ephemeral, seq], ["lobby", "k", 3, true, true, undefined]);
  socket.answer("publish", {});
  await sent;
});

test("queues of others that are gone are sent first, each as its producer, and then forgotten", async (t) => {
  const queue = (producer, seq, ...numbers) => ({
    producer,
    seq,
    items: numbers.map((number) => ({ seq: number, channel: "lobby", data: `${producer} ${number}` })),
  });
  const store = new SlowStore(queue("gone", 5, 4, 5), queue("empty", 3));
  store.create = () => queue("own", 0);
  store.save = () => {};
  const queued = [];
  const client = await aClient(t, { store });
  client.on("queued", ({ data }) => queued.push(data));
  client.publish("lobby", "new").catch(() => {});
  const socket = await greet({ seq: 4 });
  assert.deepEqual(socket.asked("publish").map(({ data }) => data), ["gone 4", "gone 5"]);
  for (const { id } of socket.asked("publish")) socket.say("ok", { id, offset: 1 });
  assert.equal(socket.asked("hello").at(-1).producer, "empty");
  socket.answer("hello", { limits: LIMITS, seq: 3 });
  assert.equal(socket.asked("hello").at(-1).producer, "own");
  assert.equal(seqs(socket).length, 2, "not before the greeting is answered");
  socket.answer("hello", { limits: LIMITS, seq: 0 });
  await settle();
  const last = socket.asked("publish").at(-1);
  assert.deepEqual([last.seq, last.data], [1, "new"]);
  assert.deepEqual(store.forgotten, ["gone", "empty"]);
  assert.deepEqual(client.told, ["connecting", "online"]);
});

test("what a page before could not keep does not hold up what comes behind it", async (t) => {
  const items = [1, 3].map((number) => ({ seq: number, channel: "lobby", data: number }));
  const store = new SlowStore({ producer: "the-old-one-here", seq: 3, items });
  store.save = () => {};
  const client = await aClient(t, { store });
  const socket = await greet();
  socket.say("ok", { id: socket.asked("publish")[0].id, offset: 1 });
  socket.refuse("publish", "out_of_sequence", { retry: true, seq: 1 });
  await pass(1000);
  socket.answer("hello", { limits: LIMITS, seq: 1 });
  await settle();
  assert.notEqual(socket.asked("hello").at(-1).producer, "the-old-one-here");
  socket.answer("hello", { limits: LIMITS, seq: 0 });
  await settle();
  assert.deepEqual(published(socket), [[1, 1], [3, 3], [1, 3]]);
  socket.answer("publish", { offset: 2 });
  assert.deepEqual([client.queue, client.told], [[], ["connecting", "online"]]);
});

/** A client with what an earlier page left unanswered under its numbers 3 and 4. */
async function aSuccessor(t) {
  const items = [3, 4].map((number) => ({ seq: number, channel: "lobby", data: number }));
  const store = new SlowStore({ producer: "the-old-one-here", seq: 4, items });
  store.save = () => {};
  return { client: await aClient(t, { store }), store };
}

test("an offset of another log, which an earlier page expected, is not met", async (t) => {
  const items = ["another", EPOCH].map((epoch, at) => ({ seq: at + 1, channel: "doc", key: "k", expect: 7, epoch, data: at }));
  await aClient(t, { store: new SlowStore({ producer: "the-old-one-here", seq: 2, items }) });
  const socket = await greet();
  assert.deepEqual(socket.asked("publish").map(({ expect }) => expect), [2 ** 53 - 1, 7]);
});

test("where the server forgot the producer, another takes its place", async (t) => {
  const { client, store } = await aSuccessor(t);
  const socket = await greet({ seq: 1 });
  const { producer } = socket.asked("hello").at(-1);
  assert.notEqual(producer, "the-old-one-here");
  assert.deepEqual(store.forgotten, ["the-old-one-here"]);
  socket.answer("hello", { limits: LIMITS, seq: 0 });
  await settle();
  assert.deepEqual(published(socket), [[1, 3], [2, 4]]);
  assert.equal(client.state, "online");
});

test("what an earlier page sent and could not keep is neither stored again nor taken for something new", async (t) => {
  const { client } = await aSuccessor(t);
  const verdict = client.publish("lobby", "new");
  const socket = await greet({ seq: 5 });
  assert.deepEqual(published(socket), [[3, 3], [4, 4]]);
  for (const { id } of socket.asked("publish")) socket.say("ok", { id, offset: 1, duplicate: true });
  assert.notEqual(socket.asked("hello").at(-1).producer, "the-old-one-here");
  socket.answer("hello", { limits: LIMITS, seq: 0 });
  await settle();
  assert.deepEqual(published(socket).at(-1), [1, "new"]);
  socket.answer("publish", { offset: 9 });
  assert.equal((await verdict).offset, 9);
});

test("a producer that is replaced on two connections at once gives what waits to one other", async (t) => {
  const { client, store } = await aSuccessor(t);
  const saved = [];
  const creating = [];
  store.save = ({ producer }, { data }) => void saved.push([producer, data]);
  store.create = () => new Promise((resolve) => creating.push(resolve));
  await greet({ seq: 1 });
  const socket = await reconnect(client, { seq: 1 });
  for (const [number, create] of creating.entries()) create({ producer: `renewed-number-${number}`, seq: 0, items: [] });
  await settle();
  assert.deepEqual(saved, [["renewed-number-0", 3], ["renewed-number-0", 4]]);
  assert.equal(socket.asked("hello").at(-1).producer, "renewed-number-0");
  socket.answer("hello", { limits: LIMITS, seq: 0 });
  await settle();
  assert.deepEqual(published(socket), [[1, 3], [2, 4]]);
});

test("a client that is closed while its producer is replaced leaves the store to others", async (t) => {
  const { client, store } = await aSuccessor(t);
  const done = [];
  for (const method of ["save", "forget", "close"]) store[method] = () => void done.push(method);
  let create;
  store.create = () => new Promise((resolve) => (create = resolve));
  await greet({ seq: 1 });
  client.close();
  create({ producer: "another-number-1", seq: 0, items: [] });
  await settle();
  assert.deepEqual(done, ["close", "close"], "what was made is held until it is closed");
});

test("a producer is replaced also where the store cannot make another", async (t) => {
  const { store } = await aSuccessor(t);
  store.save = store.create = () => Promise.reject(new Error("quota"));
  const socket = await greet({ seq: 1 });
  assert.notEqual(socket.asked("hello").at(-1).producer, "the-old-one-here");
  socket.answer("hello", { limits: LIMITS, seq: 0 });
  await settle();
  assert.deepEqual(published(socket), [[1, 3], [2, 4]]);
});

test("who watches presence asks again who it is there, when it goes on as another producer", async (t) => {
  const store = new SlowStore({ producer: "gone", seq: 3, items: [] }, { producer: "own", seq: 9, items: [] });
  const client = await aClient(t, { store });
  const lobby = client.subscribe("lobby", { presence: true });
  client.subscribe("quiet");
  const socket = await greet({ seq: 3 });
  const asked = () => socket.asked("subscribe").map(({ channel }) => channel);
  assert.deepEqual(asked(), ["lobby", "quiet"]);
  assert.equal(socket.asked("hello").at(-1).producer, "own");
  socket.answer("hello", { limits: LIMITS, seq: 9 });
  assert.deepEqual(asked(), ["lobby", "quiet", "lobby"]);
  socket.answer("subscribe", { offset: 0, epoch: "one", member: "me" });
  assert.equal(lobby.member, "me");
  assert.deepEqual(client.told, ["connecting", "online"].slice(-client.told.length));
});
