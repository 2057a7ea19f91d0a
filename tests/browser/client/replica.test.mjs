// Replicas: a channel's state, with one's own writes over it until they are confirmed or rolled back.

import assert from "node:assert/strict";
import { mock, test } from "node:test";
import { aClient, anOnlineClient, FakeSocket, greet, outcome, pass, settle } from "./fakes.mjs";

const content = (replica) => Object.fromEntries([...replica.keys()].map((key) => [key, replica.get(key)]));

const pages = (socket, entries, more = false) => socket.say("state", { channel: "doc", entries, more });

const word = (socket, offset, key, data) => socket.say("message", { channel: "doc", offset, time: 1, key, data });

/** A replica that is whole, with `entries`, at offset 10, and its changes. */
async function aReplica(t, entries = {}) {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc");
  const changes = [];
  doc.on("change", ({ key, data, before, pending }) => changes.push([key, before, data, pending]));
  socket.answer("subscribe", { offset: 10, epoch: "one" });
  pages(socket, entries);
  changes.length = 0;
  return { client, socket, doc, changes };
}

async function comeBack(client) {
  FakeSocket.newest.end();
  await pass(client.retryMs);
  return greet();
}

/** The server stores the newest publish, whose message follows if `data` is given. */
function store(socket, offset, data) {
  const { key } = socket.asked("publish").at(-1);
  socket.answer("publish", { offset });
  if (data !== undefined) word(socket, offset, key, data);
}

test("a replica is ready when all pages are there, and follows from then on", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc");
  assert.equal(socket.asked("subscribe")[0].state, true);
  socket.answer("subscribe", { offset: 4, epoch: "one" });
  pages(socket, { a: { offset: 1, data: "A" }, b: { offset: 2, data: "B" } }, true);
  assert.equal(doc.size, 0, "half a state is none");
  pages(socket, { c: { offset: 4, data: "C" } });
  assert.equal(await doc.ready, doc);
  assert.deepEqual(content(doc), { a: "A", b: "B", c: "C" });
  word(socket, 5, "a", "A2");
  word(socket, 6, "b", null);
  assert.deepEqual(content(doc), { a: "A2", c: "C" });
  assert.deepEqual(doc.entry("a"), { data: "A2", offset: 5, pending: false });
});

test("a page that is newer than the messages behind it wins, key by key", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc");
  socket.answer("subscribe", { offset: 4, epoch: "one" });
  pages(socket, { a: { offset: 6, data: "newest" } });
  word(socket, 5, "a", "older");
  assert.equal(doc.get("a"), "newest");
  word(socket, 6, "a", "newest");
  word(socket, 7, "a", null);
  assert.equal(doc.get("a"), undefined);
});

test("a write shows at once, and is confirmed without flicker", async (t) => {
  const { socket, doc, changes } = await aReplica(t, { title: { offset: 3, data: "old" } });
  const write = doc.set("title", "new");
  assert.deepEqual(doc.entry("title"), { data: "new", offset: 3, pending: true });
  await settle();
  store(socket, 11, "new");
  assert.equal((await write).offset, 11);
  assert.deepEqual(doc.entry("title"), { data: "new", offset: 11, pending: false });
  assert.deepEqual(changes, [["title", "old", "new", true], ["title", "new", "new", false]]);
});

test("a write that is refused is rolled back, to what others wrote meanwhile", async (t) => {
  const { socket, doc } = await aReplica(t, { title: { offset: 3, data: "old" } });
  const write = outcome(doc.set("title", "mine"));
  await settle();
  word(socket, 11, "title", "theirs");
  assert.equal(doc.get("title"), "mine");
  socket.refuse("publish", "forbidden");
  assert.equal((await write).code, "forbidden");
  assert.deepEqual(doc.entry("title"), { data: "theirs", offset: 11, pending: false });
});

test("writes while offline are seen, survive reconnects, and end as the server has them", async (t) => {
  const { client, socket, doc } = await aReplica(t, { title: { offset: 3, data: "old" }, gone: { offset: 4, data: 1 } });
  socket.end();
  doc.set("title", "offline");
  doc.delete("gone");
  assert.deepEqual(content(doc), { title: "offline" });
  await pass(client.retryMs);
  const next = await greet();
  const [request] = next.asked("subscribe");
  assert.deepEqual([request.since, request.state], [10, true]);
  next.answer("subscribe", { offset: 11, epoch: "one" });
  pages(next, { title: { offset: 11, data: "theirs" }, gone: { offset: 4, data: 1 } });
  word(next, 11, "title", "theirs");
  assert.deepEqual(content(doc), { title: "offline" });
  const [title, gone] = next.asked("publish");
  next.say("ok", { id: title.id, offset: 12 });
  next.say("ok", { id: gone.id, offset: 13 });
  assert.deepEqual(content(doc), { title: "offline" });
  word(next, 12, "title", "offline");
  word(next, 13, "gone", null);
  assert.deepEqual(content(doc), { title: "offline" });
});

test("a deletion of ours is not undone by older messages that are still to come", async (t) => {
  const { socket, doc, changes } = await aReplica(t, { a: { offset: 3, data: 1 } });
  doc.delete("a");
  await settle();
  changes.length = 0;
  socket.answer("publish", { offset: 14 });
  word(socket, 11, "a", "older");
  word(socket, 12, "a", null);
  word(socket, 13, "a", "old");
  word(socket, 14, "a", null);
  assert.deepEqual(changes, []);
  word(socket, 15, "a", "newer");
  assert.equal(doc.get("a"), "newer");
});

test("a replica that begins with the newest messages does not go back to what was before its state", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc", { last: 3 });
  const heard = [];
  doc.on("message", ({ offset }) => heard.push(offset));
  socket.answer("subscribe", { offset: 10, epoch: "one" });
  pages(socket, {});
  await doc.ready;
  const changes = [];
  doc.on("change", ({ key }) => changes.push(key));
  for (const [offset, key, data] of [[8, "a", 1], [9, "a", null], [10, "c", null]]) word(socket, offset, key, data);
  assert.deepEqual([heard, changes], [[8, 9, 10], []]);
});

for (const options of [{}, { last: 1 }]) {
  const how = "last" in options ? "at the newest messages" : "where it was";
  test(`a write whose answer was lost does not come back over a later word, when the replica begins ${how}`, async (t) => {
    const { client, socket } = await anOnlineClient(t);
    const doc = client.replica("doc", options);
    socket.answer("subscribe", { offset: 10, epoch: "one" });
    pages(socket, {});
    doc.set("a", "mine").catch(() => {});
    await settle();
    const next = await comeBack(client);
    next.answer("subscribe", { offset: 12, epoch: "one" });
    pages(next, {});
    word(next, 11, "a", "mine");
    word(next, 12, "a", null);
    next.answer("publish", { offset: 11, duplicate: true });
    assert.deepEqual(content(doc), {});
  });
}

test("patches are shown as the server will apply them", async (t) => {
  const { socket, doc } = await aReplica(t, { card: { offset: 3, data: { text: "tea", done: false, tags: { a: 1, b: 2 } } } });
  doc.merge("card", { done: true, tags: { a: null } }).catch(() => {});
  assert.deepEqual(doc.get("card"), { text: "tea", done: true, tags: { b: 2 } });
  await settle();
  word(socket, 11, "card", { text: "coffee", done: false, tags: { a: 1 } });
  assert.deepEqual(doc.get("card"), { text: "coffee", done: true, tags: {} });
  store(socket, 12, { text: "coffee", done: true, tags: {} });
  assert.deepEqual(doc.entry("card").pending, false);
  doc.merge("card", ["no object"]).catch(() => {});
  assert.deepEqual(doc.get("card"), ["no object"]);
  doc.merge("fresh", JSON.parse('{"__proto__": {"x": 1}, "y": {"z": null}}')).catch(() => {});
  assert.equal(JSON.stringify(doc.get("fresh")), '{"__proto__":{"x":1},"y":{}}');
});

test("an update is tried again on what is there, until it is the one that counts", async (t) => {
  const { socket, doc } = await aReplica(t, { count: { offset: 3, data: 1 } });
  const update = doc.update("count", (count) => count + 1);
  await settle();
  assert.deepEqual([socket.asked("publish")[0].data, socket.asked("publish")[0].expect], [2, 3]);
  socket.refuse("publish", "conflict", { offset: 11, data: 10 });
  await settle();
  assert.deepEqual([socket.asked("publish")[1].data, socket.asked("publish")[1].expect], [11, 11]);
  socket.refuse("publish", "conflict", { offset: 12 }); // its message was trimmed
  await settle();
  socket.answer("state", { entries: { count: { offset: 13, data: 20 } } });
  await settle();
  assert.deepEqual([socket.asked("publish")[2].data, socket.asked("publish")[2].expect], [21, 13]);
  socket.refuse("publish", "conflict", { offset: 0, data: null });
  await settle();
  assert.deepEqual([socket.asked("publish")[3].data, socket.asked("publish")[3].expect], [null, 0]);
  store(socket, 15, null);
  assert.equal((await update).offset, 15);
});

test("updates of one key pile up on each other", async (t) => {
  const { doc } = await aReplica(t, { count: { offset: 3, data: 1 } });
  doc.update("count", (count) => count + 1).catch(() => {});
  doc.update("count", (count) => count + 1).catch(() => {});
  await settle();
  assert.equal(doc.get("count"), 3);
});

test("an update does not take a word of another log for the one that it read", async (t) => {
  const { client, socket, doc } = await aReplica(t, { a: { offset: 3, data: "A" }, b: { offset: 4, data: "B" } });
  const more = (value) => value + " and more";
  socket.end();
  doc.update("a", more).catch(() => {});
  await pass(client.retryMs);
  const next = await greet({ epoch: "two" });
  doc.update("b", more).catch(() => {}); // what it reads is still of the log before
  await settle();
  const asked = () => next.asked("publish").map(({ data, expect }) => [data, expect]);
  assert.deepEqual(asked(), [["A and more", 2 ** 53 - 1], ["B and more", 2 ** 53 - 1]]);
  next.answer("subscribe", { offset: 4, epoch: "two" });
  next.refuse("publish", "conflict", { offset: 4, data: "theirs" });
  await settle();
  assert.deepEqual(asked().at(-1), ["theirs and more", 4]);
});

test("an update changes nothing but what the server has", async (t) => {
  const { socket, doc } = await aReplica(t, { card: { offset: 3, data: { x: 1 } }, title: { offset: 4, data: "old" } });
  const mine = (card) => ({ ...card, mine: 1 });
  const merged = doc.merge("card", { z: 3 }).then(() => void doc.update("card", mine).catch(() => {}));
  doc.set("title", "refused").catch(() => {});
  doc.update("title", (title) => title + "!").catch(() => {});
  await settle();
  const [merge, set, update] = socket.asked("publish");
  socket.say("ok", { id: merge.id, offset: 12 }); // over 11, whose message is to come
  await merged;
  await settle();
  word(socket, 11, "card", { y: 2 });
  socket.say("error", { id: set.id, code: "forbidden" });
  for (const { id, expect } of [update, socket.asked("publish")[3]]) {
    assert.equal(expect, 2 ** 53 - 1, "which no key has");
    const there = id === update.id ? { offset: 4, data: "old" } : { offset: 12, data: { y: 2, z: 3 } };
    socket.say("error", { id, code: "conflict", ...there });
  }
  await settle();
  const [title, card] = socket.asked("publish").slice(4);
  assert.deepEqual([title.data, title.expect], ["old!", 4]);
  assert.deepEqual([card.data, card.expect], [{ y: 2, z: 3, mine: 1 }, 12]);
});

test("an update behind a deletion of ours expects what that leaves", async (t) => {
  const { socket, doc } = await aReplica(t, { count: { offset: 3, data: 1 } });
  doc.delete("count").catch(() => {});
  const update = outcome(doc.update("count", (count) => count ?? "none"));
  await settle();
  const { data, expect } = socket.asked("publish").at(-1);
  assert.deepEqual([data, expect], ["none", 0]);
  socket.answer("publish", { offset: 12 });
  assert.equal((await update).offset, 12);
});

test("an update goes on until it is the faster one", async (t) => {
  const { socket, doc } = await aReplica(t, { count: { offset: 3, data: 1 } });
  const update = outcome(doc.update("count", (count) => count + 1));
  for (let offset = 11; offset <= 210; offset++) {
    await settle();
    socket.refuse("publish", "conflict", { offset, data: offset });
  }
  await settle();
  store(socket, 211, 211);
  assert.equal((await update).offset, 211);
});

test("an update may change its argument in place, and is rolled back like any other", async (t) => {
  const { socket, doc } = await aReplica(t, { list: { offset: 3, data: [1] } });
  const update = outcome(doc.update("list", (list) => (list.push(2), list)));
  await settle();
  assert.deepEqual(doc.get("list"), [1, 2]);
  socket.refuse("publish", "forbidden");
  assert.equal((await update).code, "forbidden");
  assert.deepEqual(doc.get("list"), [1]);
});

test("an update that fails by itself, or for good, says so", async (t) => {
  const { socket, doc } = await aReplica(t);
  await assert.rejects(doc.update("a", () => { throw new Error("mine"); }), /mine/); // prettier-ignore
  const update = outcome(doc.update("a", () => 1));
  await settle();
  socket.refuse("publish", "limit", { limit: "keys_max", value: 5 });
  assert.equal((await update).code, "limit");
  assert.equal(doc.size, 0);
});

test("a gap empties the replica only when what follows is there", async (t) => {
  const { client, socket, doc, changes } = await aReplica(t, { a: { offset: 3, data: 1 }, b: { offset: 4, data: 2 } });
  const gaps = [];
  doc.on("gap", ({ reason }) => gaps.push(reason));
  socket.say("gap", { channel: "doc", reason: "trimmed", from: 11, to: 20 });
  assert.deepEqual(content(doc), { a: 1, b: 2 });
  socket.answer("subscribe", { offset: 20, epoch: "one" });
  pages(socket, { b: { offset: 15, data: 3 } });
  assert.deepEqual(content(doc), { b: 3 });
  assert.deepEqual(changes, [["a", 1, undefined, false], ["b", 2, 3, false]]);
  const next = await comeBack(client);
  next.answer("subscribe", { offset: 30, epoch: "one" });
  next.say("gap", { channel: "doc", reason: "trimmed", from: 21, to: 29 });
  assert.deepEqual([next.asked("subscribe").at(-1).state, next.asked("subscribe").at(-1).since], [true, 29]);
  next.answer("subscribe", { offset: 30, epoch: "one" });
  pages(next, { c: { offset: 30, data: 4 } });
  assert.deepEqual(content(doc), { c: 4 });
  assert.deepEqual(gaps, ["trimmed", "trimmed"]);
});

test("a replica that had all there was knows that it was emptied while it was away", async (t) => {
  const { client, doc, changes } = await aReplica(t, { a: { offset: 10, data: 1 } });
  const next = await comeBack(client);
  next.answer("subscribe", { offset: 10, epoch: "one" }); // and no gap: nothing behind 10 is gone
  assert.deepEqual(content(doc), { a: 1 });
  pages(next, {});
  assert.deepEqual(changes, [["a", 1, undefined, false]]);
});

test("a write that is stored while the state comes anew does not flicker", async (t) => {
  const { client, doc, changes } = await aReplica(t, { a: { offset: 10, data: 1 }, b: { offset: 9, data: 1 } });
  for (const key of ["a", "b"]) doc.set(key, 2).catch(() => {});
  await settle();
  changes.length = 0;
  const next = await comeBack(client);
  next.answer("subscribe", { offset: 11, epoch: "one" });
  next.asked("publish").forEach(({ id }, number) => next.say("ok", { id, offset: 11 + number }));
  pages(next, { a: { offset: 11, data: 2 }, b: { offset: 9, data: 1 } });
  assert.deepEqual(content(doc), { a: 2, b: 2 });
  assert.deepEqual(changes, [["a", 2, 2, false], ["b", 2, 2, false]]);
});

for (const [theirs, heard] of [[3, 2], [null, 2], [3, 0], [null, 0]]) {
  test(`a write whose ok comes late takes no newer word back, as ${theirs}, behind ${heard} messages`, async (t) => {
    const { client, doc, changes } = await aReplica(t, { a: { offset: 10, data: 1 } });
    doc.set("a", 2).catch(() => {});
    await settle();
    const entries = theirs ? { a: { offset: 12, data: theirs } } : {};
    const next = await comeBack(client);
    next.answer("subscribe", { offset: 12, epoch: "one" });
    pages(next, entries);
    [2, theirs].slice(0, heard).forEach((data, number) => word(next, 11 + number, "a", data));
    const last = await comeBack(client);
    last.answer("subscribe", { offset: 12, epoch: "one" });
    changes.length = 0;
    last.answer("publish", { offset: 11, duplicate: true });
    pages(last, entries);
    assert.deepEqual(changes, [["a", 2, theirs ?? undefined, false]]);
  });
}

test("a state of many keys looks through the queue once, and not for each of them", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc");
  doc.set("k7", "mine").catch(() => {});
  await settle();
  socket.answer("subscribe", { offset: 100, epoch: "one" });
  const looks = mock.getter(client, "queue");
  pages(socket, Object.fromEntries(Array.from({ length: 100 }, (_, number) => [`k${number}`, { offset: number + 1, data: 1 }])));
  assert.equal(looks.mock.callCount(), 1);
  assert.deepEqual([doc.size, doc.get("k7"), doc.get("k8")], [100, "mine", 1]);
});

test("a replica that began with the newest messages goes on from there, though none had come", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc", { last: 1 });
  socket.answer("subscribe", { offset: 10, epoch: "one" });
  pages(socket, { a: { offset: 10, data: 1 } });
  const next = await comeBack(client);
  const [request] = next.asked("subscribe");
  assert.equal(request.since, 9);
  next.answer("subscribe", { offset: 12, epoch: "one" });
  pages(next, { a: { offset: 11, data: 2 }, b: { offset: 12, data: 3 } });
  word(next, 10, "a", 1);
  word(next, 11, "a", 2);
  word(next, 12, "b", 3);
  assert.deepEqual(content(doc), { a: 2, b: 3 });
});

test("a message that is missing makes the replica ask for the whole state, before it goes on", async (t) => {
  const { socket, doc } = await aReplica(t, { a: { offset: 3, data: 1 } });
  const gaps = [];
  doc.on("gap", ({ reason }) => gaps.push(reason));
  word(socket, 12, "a", 2);
  word(socket, 13, "a", 3);
  const request = socket.asked("subscribe").at(-1);
  assert.deepEqual([request.since, request.state], [11, true]);
  socket.answer("subscribe", { offset: 13, epoch: "one" });
  pages(socket, { a: { offset: 13, data: 3 }, b: { offset: 11, data: "missed" } });
  word(socket, 12, "a", 2);
  word(socket, 13, "a", 3);
  assert.deepEqual(content(doc), { a: 3, b: "missed" });
  assert.deepEqual(gaps, ["missed"]);
});

test("in another log, the replica is of that one", async (t) => {
  const { client, doc } = await aReplica(t, { a: { offset: 3, data: 1 } });
  const next = await comeBack(client);
  next.answer("subscribe", { offset: 1, epoch: "two" });
  next.say("gap", { channel: "doc", reason: "epoch" }); // for the subscription that was just replaced
  assert.deepEqual([next.asked("subscribe").at(-1).state, next.asked("subscribe").at(-1).epoch], [true, "two"]);
  next.answer("subscribe", { offset: 1, epoch: "two" });
  pages(next, { a: { offset: 1, data: "new" } });
  word(next, 1, "a", "new");
  word(next, 2, "b", "newer");
  assert.deepEqual(content(doc), { a: "new", b: "newer" });
});

test("what waits in the queue of an earlier page is shown as soon as there is a replica", async (t) => {
  const client = await aClient(t);
  client.publish("doc", "queued", { key: "title" }).catch(() => {});
  client.publish("doc", "no word on any key").catch(() => {});
  await settle();
  const doc = client.replica("doc");
  assert.deepEqual([...doc.keys()], ["title"]);
  assert.deepEqual(doc.entry("title"), { data: "queued", offset: 0, pending: true });
});

test("a replica of a closed client says that it never becomes ready", async (t) => {
  const client = await aClient(t);
  client.close("enough");
  const error = await outcome(Promise.race([client.replica("doc").ready, settle()]));
  assert.deepEqual([error?.code, error?.message], ["closed", "enough"]);
});

test("a replica that is closed alone says so", async (t) => {
  const { client } = await anOnlineClient(t);
  const doc = client.replica("doc");
  doc.close();
  assert.equal((await outcome(doc.ready)).message, "closed");
});

for (const [how, end] of [
  ["its client is closed", ({ client }) => client.close("enough")],
  ["it is closed", ({ doc }) => doc.close()],
  ["it is refused", ({ socket }) => socket.refuse("subscribe", "forbidden")],
]) {
  test(`who waits for a replica to be ready hears that ${how}`, async (t) => {
    const { client, socket } = await anOnlineClient(t);
    const doc = client.replica("doc");
    doc.on("error", () => {});
    const updated = outcome(doc.update("k", () => 1));
    end({ client, socket, doc });
    assert.match((await updated).code, /closed|forbidden/);
    assert.match((await outcome(doc.ready)).code, /closed|forbidden/);
  });
}

test("what was stored in an empty channel's log is not kept for that of another log", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc");
  const gaps = [];
  doc.on("gap", ({ reason }) => gaps.push(reason));
  socket.answer("subscribe", { offset: 0, epoch: "one" });
  pages(socket, {});
  doc.set("title", "mine").catch(() => {});
  await settle();
  store(socket, 1); // and its message is lost with the connection
  const next = await comeBack(client);
  next.answer("subscribe", { offset: 0, epoch: "two" });
  next.answer("subscribe", { offset: 0, epoch: "two" });
  pages(next, {});
  assert.deepEqual([content(doc), gaps], [{}, []]);
});

test("a replica whose few newest messages were trimmed before they came asks for its state anew, and tells no gap", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc", { last: 2 });
  const gaps = [];
  doc.on("gap", ({ from, to }) => gaps.push([from, to]));
  socket.answer("subscribe", { offset: 5, epoch: "one" });
  pages(socket, { a: { offset: 5, data: "old" } });
  const next = await comeBack(client);
  next.answer("subscribe", { offset: 6, epoch: "one" });
  next.say("gap", { channel: "doc", reason: "trimmed", from: 4, to: 5 });
  const { since, state } = next.asked("subscribe").at(-1);
  assert.deepEqual([since, state], [5, true]);
  next.answer("subscribe", { offset: 6, epoch: "one" });
  pages(next, { a: { offset: 6, data: "new" } });
  word(next, 6, "a", "new");
  assert.deepEqual([content(doc), gaps], [{ a: "new" }, []]);
});

test("a state that was asked for twice, as the log and the producer were replaced, is taken once", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const doc = client.replica("doc", { presence: true });
  const story = [];
  doc.on("gap", ({ reason }) => story.push(reason));
  doc.on("ready", () => story.push(content(doc)));
  socket.answer("subscribe", { offset: 10, epoch: "one" });
  pages(socket, { a: { offset: 3, data: "old" } });
  client.publish("lobby", "counted").catch(() => {});
  await settle();
  socket.answer("publish", { offset: 1 });
  const next = await comeBack(client); // to a server that has forgotten the producer
  next.answer("subscribe", { offset: 1, epoch: "two" });
  next.answer("hello", { limits: {}, seq: 0 });
  const [first, ...others] = next.asked("subscribe");
  assert.deepEqual([first, ...others].map(({ state }) => state), [true, true, true]);
  for (const { id } of others) {
    next.say("ok", { id, offset: 1, epoch: "two" });
    pages(next, { b: { offset: 1, data: "new" } });
  }
  assert.deepEqual(story, [{ a: "old" }, "epoch", { b: "new" }]);
});
