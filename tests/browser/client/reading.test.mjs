// Subscriptions: nothing missed, nothing twice, and a gap that nobody can overlook.

import assert from "node:assert/strict";
import { test } from "node:test";
import { anOnlineClient, greet, pass, settle, uncaught } from "./fakes.mjs";

/** A subscription whose events are written down, and the socket on which it has its `ok`. */
async function aReader(t, options = { since: 0 }, ok = { offset: 0, epoch: "one" }) {
  const { client, socket } = await anOnlineClient(t);
  const reader = client.subscribe("lobby", options);
  const story = [];
  reader.on("message", ({ offset, data }) => story.push(offset ?? data));
  reader.on("gap", ({ reason, from, to }) => story.push([reason, from, to].filter((part) => part !== undefined).join(" ")));
  socket.answer("subscribe", ok);
  return { client, socket, reader, story };
}

const say = (socket, ...offsets) => {
  for (const offset of offsets) socket.say("message", { channel: "lobby", offset, time: 1, data: offset });
};

/** Loses the connection and greets again; returns the new socket and what was asked on it. */
async function comeBack(client, socket, ok) {
  socket.end();
  await pass(client.retryMs);
  const next = await greet();
  const [request] = next.asked("subscribe");
  if (ok) next.answer("subscribe", ok);
  return { next, request };
}

test("a subscription is resumed behind the last message, and what came already is not passed on again", async (t) => {
  const { client, socket, story } = await aReader(t);
  say(socket, 1, 2, 3);
  const { next, request } = await comeBack(client, socket, { offset: 5, epoch: "one" });
  assert.deepEqual([request.since, request.epoch, request.last], [3, "one", undefined]);
  say(next, 2, 3, 4, 5);
  assert.deepEqual(story, [1, 2, 3, 4, 5]);
});

test("a subscription begins at the head, behind an offset, or with the newest messages", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  client.subscribe("a");
  client.subscribe("b", { since: 7, epoch: "one" });
  client.subscribe("c", { last: 20, presence: true });
  const [a, b, c] = socket.asked("subscribe").map(({ op, id, ...fields }) => fields);
  assert.deepEqual(a, { channel: "a" });
  assert.deepEqual(b, { channel: "b", since: 7, epoch: "one" });
  assert.deepEqual(c, { channel: "c", last: 20, presence: true });
});

test("one that began at the head goes on from there, though nothing came before the connection broke", async (t) => {
  const { client, socket } = await aReader(t, {}, { offset: 9, epoch: "one" });
  const { request } = await comeBack(client, socket);
  assert.equal(request.since, 9);
});

test("one that began with the newest messages misses none, though none had come before the connection broke", async (t) => {
  const { client, socket, story } = await aReader(t, { last: 3 }, { offset: 9, epoch: "one" });
  const { next, request } = await comeBack(client, socket, { offset: 14, epoch: "one" });
  assert.deepEqual([request.since, request.epoch, request.last], [6, "one", undefined]);
  next.say("gap", { channel: "lobby", reason: "trimmed", from: 7, to: 11 });
  say(next, 12, 13, 14);
  assert.deepEqual(story, ["trimmed 10 11", 12, 13, 14], "of what was there when it began, fewer may be kept");
  const { request: third } = await comeBack(client, next);
  assert.equal(third.since, 14);
});

test("that fewer of the newest messages are kept is no gap after a reconnect either, nor the end of who hears none", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const heard = [];
  client.subscribe("lobby", { last: 3 }).on("message", ({ offset }) => heard.push(offset));
  socket.answer("subscribe", { offset: 9, epoch: "one" });
  const errors = await uncaught(async () => {
    const { next, request } = await comeBack(client, socket, { offset: 9, epoch: "one" });
    assert.equal(request.since, 6);
    next.say("gap", { channel: "lobby", reason: "trimmed", from: 7, to: 9 });
    const { next: third, request: behind } = await comeBack(client, next, { offset: 10, epoch: "one" });
    assert.equal(behind.since, 9);
    say(third, 10);
  });
  assert.deepEqual([heard, errors], [[10], []]);
});

test("what came after one began and is skipped is missed, though nothing had come", async (t) => {
  const { socket, story } = await aReader(t, { last: 3 }, { offset: 9, epoch: "one" });
  say(socket, 12);
  assert.deepEqual(story, ["missed 10 11", 12]);
});

test("of another log all is asked for, though nothing of the first had come", async (t) => {
  const { client, socket, story } = await aReader(t, { last: 3 }, { offset: 9, epoch: "one" });
  const { next } = await comeBack(client, socket, { offset: 9, epoch: "two" });
  next.say("gap", { channel: "lobby", reason: "trimmed", from: 1, to: 7 });
  say(next, 8, 9);
  assert.deepEqual(story, ["epoch", "trimmed 1 7", 8, 9]);
});

test("that fewer of the newest messages are kept is no gap, and what is skipped behind the first of them is", async (t) => {
  const { socket, story } = await aReader(t, { last: 5 }, { offset: 9, epoch: "one" });
  say(socket, 8, 10);
  assert.deepEqual(story, [8, "missed 9 9", 10]);
});

test("messages before the answer are of an earlier subscription", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  client.subscribe("lobby", { since: 0 }).close();
  const again = client.subscribe("lobby", { since: 5 });
  const heard = [];
  again.on("message", ({ offset }) => heard.push(offset));
  say(socket, 9);
  socket.answer("subscribe", { offset: 9, epoch: "one" });
  say(socket, 6, 7);
  assert.deepEqual(heard, [6, 7]);
});

test("a closed subscription is silent, on this connection and the next", async (t) => {
  const { client, socket, reader, story } = await aReader(t);
  reader.close();
  assert.equal(socket.asked("unsubscribe").length, 1);
  say(socket, 1);
  const { request } = await comeBack(client, socket);
  assert.equal(request, undefined);
  assert.deepEqual(story, []);
});

test("what was trimmed is told before what comes behind it", async (t) => {
  const { client, socket, reader, story } = await aReader(t);
  say(socket, 1, 2);
  const { next } = await comeBack(client, socket, { offset: 9, epoch: "one" });
  next.say("gap", { channel: "lobby", reason: "trimmed", from: 3, to: 7 });
  say(next, 8, 9);
  assert.deepEqual(story, [1, 2, "trimmed 3 7", 8, 9]);
  assert.equal(reader.offset, 9);
});

test("that a channel was emptied is told to those too who had all of it", async (t) => {
  const { socket, story } = await aReader(t);
  say(socket, 1, 2);
  socket.say("gap", { channel: "lobby", reason: "trimmed", from: 1, to: 2 });
  say(socket, 3);
  assert.deepEqual(story, [1, 2, "trimmed 1 2", 3]);
});

test("another log is told once, however the connection breaks around it", async (t) => {
  const { client, socket, reader, story } = await aReader(t);
  say(socket, 1, 2);
  const { next } = await comeBack(client, socket, { offset: 9, epoch: "two" });
  next.say("gap", { channel: "lobby", reason: "epoch" });
  assert.deepEqual(story, [1, 2, "epoch"]);
  const { next: third, request } = await comeBack(client, next, { offset: 9, epoch: "two" });
  assert.deepEqual([request.since, request.epoch], [0, "two"]);
  third.say("gap", { channel: "lobby", reason: "trimmed", from: 1, to: 3 }); // of the new log
  say(third, 4, 5);
  assert.deepEqual(story, [1, 2, "epoch", "trimmed 1 3", 4, 5]);
  assert.equal(reader.epoch, "two");
});

test("a log that is shorter than what was read is another one", async (t) => {
  const { client, socket, story } = await aReader(t, { since: 50 }, { offset: 50, epoch: "one" });
  await comeBack(client, socket, { offset: 10, epoch: "one" });
  assert.deepEqual(story, ["epoch"]);
});

test("of an empty channel nothing is lost with its log, and who listens for no gap goes on with the new one", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const heard = [];
  client.subscribe("lobby").on("message", ({ offset }) => heard.push(offset));
  socket.answer("subscribe", { offset: 0, epoch: "one" });
  const errors = await uncaught(async () => {
    const { next, request } = await comeBack(client, socket, { offset: 2, epoch: "two" });
    assert.deepEqual([request.since, request.epoch], [0, "one"]);
    next.say("gap", { channel: "lobby", reason: "epoch" });
    say(next, 1, 2, 3);
  });
  assert.deepEqual([heard, errors], [[1, 2, 3], []]);
});

test("an epoch without an offset is of nothing that could be lost", async (t) => {
  const { reader, story } = await aReader(t, { epoch: "one", last: 2 }, { offset: 5, epoch: "two" });
  assert.deepEqual([story, reader.offset, reader.epoch], [[], 3, "two"]);
});

test("a server that skips messages without a word does not go unnoticed", async (t) => {
  const { socket, story } = await aReader(t);
  say(socket, 1, 4);
  assert.deepEqual(story, [1, "missed 2 3", 4]);
});

test("who leaves when they hear of a gap hears of nothing behind it", async (t) => {
  const { socket, reader, story } = await aReader(t);
  reader.on("gap", () => reader.close());
  say(socket, 1, 4, 5);
  assert.deepEqual(story, [1, "missed 2 3"]);
});

test("a gap that nobody listens for is an uncaught error, and the end of the subscription", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const heard = [];
  client.subscribe("lobby", { since: 0 }).on("message", ({ offset }) => heard.push(offset));
  socket.answer("subscribe", { offset: 5, epoch: "one" });
  const errors = await uncaught(() => {
    socket.say("gap", { channel: "lobby", reason: "trimmed", from: 1, to: 3 });
    say(socket, 4, 5);
  });
  assert.deepEqual(errors.map(({ code, reason, from, to }) => [code, reason, from, to]), [["gap", "trimmed", 1, 3]]);
  assert.deepEqual(heard, []);
  assert.equal(socket.asked("unsubscribe").length, 1);
});

test("a listener that fails is heard of, and costs nobody a message", async (t) => {
  const { socket, reader, story } = await aReader(t);
  const stop = reader.on("message", () => { throw new Error("listener"); }); // prettier-ignore
  const errors = await uncaught(() => say(socket, 1));
  stop();
  say(socket, 2);
  assert.deepEqual(errors.map(({ message }) => message), ["listener"]);
  assert.deepEqual(story, [1, 2]);
});

test("ephemeral messages have no offset and leave the cursor alone", async (t) => {
  const { socket, reader, story } = await aReader(t);
  socket.say("message", { channel: "lobby", time: 1, data: "typing" });
  assert.deepEqual(story, ["typing"]);
  assert.equal(reader.offset, 0);
});

test("a refused subscription tells its listener, or nobody overlooks it", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const codes = [];
  client.subscribe("a").on("error", ({ code }) => codes.push(code));
  socket.refuse("subscribe", "forbidden");
  assert.deepEqual(codes, ["forbidden"]);
  client.subscribe("b");
  assert.deepEqual((await uncaught(() => socket.refuse("subscribe", "limit"))).map(({ code }) => code), ["limit"]);
});

test("a channel has one subscription", async (t) => {
  const { client } = await anOnlineClient(t);
  client.subscribe("lobby");
  assert.throws(() => client.replica("lobby"), /has a subscription/);
});

test("presence is who is there, as it changes", async (t) => {
  const { socket, reader } = await aReader(t, { presence: true }, { offset: 0, epoch: "one", member: "m1" });
  const names = () => [...reader.members.values()].map(({ name }) => name);
  const told = [];
  reader.on("presence", () => told.push(names().join()));
  const [ada, bob, eve] = [{ member: "m1", name: "ada" }, { member: "m2", name: "bob" }, { member: "m3", name: "eve" }];
  socket.say("presence", { channel: "lobby", members: [ada] });
  socket.say("presence", { channel: "lobby", joined: [bob, eve], left: [], updated: [] });
  socket.say("presence", { channel: "lobby", joined: [], left: [eve], updated: [{ member: "m2", name: "robert" }] });
  socket.say("presence", { channel: "lobby", members: [eve] });
  assert.deepEqual(told, ["ada", "ada,bob,eve", "ada,robert", "eve"]);
  assert.equal(reader.member, "m1");
  await settle();
});
