// The connection: how it is lost, noticed to be lost, and comes back.

import assert from "node:assert/strict";
import { test } from "node:test";
import { connect } from "../../../trisync/web/trisync.js";
import { aClient, anOnlineClient, FakeSocket, greet, LIMITS, outcome, pass, settle, uncaught } from "./fakes.mjs";

test("a client says hello with its name and a producer, and is online with the answer", async (t) => {
  const client = await aClient(t);
  assert.equal(client.state, "connecting");
  FakeSocket.newest.accept();
  const [hello] = FakeSocket.newest.sent;
  assert.equal(hello.name, "ada");
  assert.match(hello.producer, /^[!-~]{16,64}$/);
  assert.equal(client.state, "connecting");
  FakeSocket.newest.answer("hello", { server: "fake", limits: {}, seq: 0 });
  assert.equal(client.state, "online");
});

test("the pauses between tries grow from 0.2 to 20 seconds, and are a random part of that", async (t) => {
  const client = await aClient(t);
  const pauses = [];
  for (let tries = 0; tries < 9; tries++) {
    FakeSocket.newest.end();
    assert.equal(client.state, "offline");
    pauses.push(client.retryMs);
    await pass(client.retryMs);
    assert.equal(client.state, "connecting");
  }
  assert.deepEqual(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
});

test("only a connection that has held makes the next pause short again", async (t) => {
  const client = await aClient(t);
  for (const [held, pause] of [[0, 100], [3000, 200], [3000, 400], [6000, 100]]) {
    await greet();
    await pass(held);
    FakeSocket.newest.end();
    assert.equal(client.retryMs, pause);
    await pass(pause);
  }
});

test("a server that stops says when to come back, and that is kept to", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  socket.say("goodbye", { code: "draining", reconnect_ms: 4321 });
  assert.equal(client.state, "online");
  socket.end(1001);
  assert.deepEqual([client.state, client.reason, client.retryMs], ["offline", "the server stops", 4321]);
  await pass(4320);
  assert.equal(FakeSocket.opened.length, 1);
  await pass(1);
  assert.equal(FakeSocket.opened.length, 2);
  FakeSocket.newest.end();
  assert.equal(client.retryMs, 100, "the goodbye counts once");
});

test("a server that is silent is asked, and given up when it does not answer", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  await pass(24_000);
  assert.equal(socket.asked("ping").length, 0);
  await pass(1_000);
  assert.equal(socket.asked("ping").length, 1);
  await pass(10_000);
  assert.equal(client.state, "online");
  await pass(1_000);
  assert.deepEqual([client.state, client.reason], ["offline", "the server does not answer"]);
  assert.equal(socket.readyState, 3);
});

test("a server that answers is not given up", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  for (let minute = 0; minute < 10; minute++) {
    await pass(25_000);
    socket.say("pong", { id: socket.asked("ping").at(-1).id });
    await pass(9_000);
  }
  assert.equal(client.state, "online");
});

test("a connection that fails is lost also where it is not said to be closed, as Node 22 has it", async (t) => {
  const client = await aClient(t);
  FakeSocket.newest.onerror({});
  assert.deepEqual([client.state, client.reason], ["offline", "no connection to the server"]);
  await pass(client.retryMs);
  await greet();
  assert.equal(client.state, "online");
});

test("a connection that never opens is given up", async (t) => {
  const client = await aClient(t);
  await pass(10_000);
  assert.equal(client.state, "connecting");
  await pass(1_000);
  assert.equal(client.state, "offline");
});

test("why there is no connection is said to people, who know no codes", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  socket.end(1006);
  assert.deepEqual([client.state, client.reason], ["offline", "no connection to the server"]);
});

test("when the network is back, a client that waits tries at once, and not again when it would have", async (t) => {
  const client = await aClient(t);
  for (let tries = 0; tries < 9; tries++) {
    FakeSocket.newest.end();
    await pass(client.retryMs);
  }
  FakeSocket.newest.end();
  const { retryMs } = client;
  client.nudge();
  assert.equal(client.state, "connecting");
  await pass(retryMs);
  assert.equal(FakeSocket.opened.length, 11);
});

test("when the network is back, a connection that claims to be open must prove it soon", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  client.nudge();
  assert.equal(socket.asked("ping").length, 1);
  await pass(5_000);
  assert.equal(client.state, "offline");
});

test("what an abandoned socket still says is not listened to", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const heard = [];
  client.subscribe("lobby", { since: 0 }).on("message", (message) => heard.push(message.offset));
  socket.answer("subscribe", { offset: 0, epoch: "e" });
  socket.say("message", { channel: "lobby", offset: 1, data: 1 });
  client.nudge();
  await pass(5_000);
  socket.say("message", { channel: "lobby", offset: 2, data: 2 });
  socket.end();
  assert.deepEqual(heard, [1]);
  assert.equal(client.state, "offline");
});

test("a close that says that the client is at fault is the end", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  socket.end(1009);
  assert.deepEqual([client.state, client.reason], ["closed", "a message was too large for the server"]);
  await pass(60_000);
  assert.equal(FakeSocket.opened.length, 1);
});

for (const code of [1002, 1007]) {
  test(`a close with ${code} may be the fault of what is between, and is no end`, async (t) => {
    const { client, socket } = await anOnlineClient(t);
    socket.end(code);
    assert.equal(client.state, "offline");
    await pass(client.retryMs);
    await greet();
    assert.equal(client.state, "online");
  });
}

test("a greeting that is refused for good is the end, and one that may succeed is tried again", async (t) => {
  const client = await aClient(t);
  FakeSocket.newest.accept();
  FakeSocket.newest.refuse("hello", "unavailable", { retry: true });
  assert.equal(client.state, "offline");
  await pass(client.retryMs);
  FakeSocket.newest.accept();
  FakeSocket.newest.refuse("hello", "bad_request");
  assert.deepEqual([client.state, client.reason], ["closed", "bad_request"]);
});

test("who is refused before the greeting stays away for good, unless it may try again", async (t) => {
  const client = await aClient(t);
  FakeSocket.newest.accept();
  FakeSocket.newest.say("error", { code: "unavailable", message: "not now", retry: true });
  assert.deepEqual([client.state, client.reason], ["offline", "not now"]);
  await pass(client.retryMs);
  FakeSocket.newest.accept();
  FakeSocket.newest.say("error", { code: "forbidden", message: "members only", retry: false });
  assert.deepEqual([client.state, client.reason], ["closed", "members only"]);
});

test("who hears that half of what they sent has come, comes back: a network cut or held it up", async (t) => {
  const client = await aClient(t);
  const half = { code: "bad_request", message: "half a message", retry: false };
  FakeSocket.newest.accept();
  FakeSocket.newest.say("error", half);
  assert.deepEqual([client.state, client.reason], ["offline", "half a message"]);
  await pass(client.retryMs);
  const socket = await greet();
  assert.equal(client.state, "online");
  assert.deepEqual(await uncaught(() => socket.say("error", half)), []);
  assert.equal(client.state, "offline");
});

test("who is refused as a whole stays away for good, whatever name it was given meanwhile", async (t) => {
  const client = await aClient(t);
  FakeSocket.newest.accept();
  client.rename("grace");
  const refuse = () => FakeSocket.newest.say("error", { code: "forbidden", message: "members only", retry: false });
  assert.deepEqual(await uncaught(refuse), []);
  assert.deepEqual([client.state, client.reason], ["closed", "members only"]);
});

test("who hears of a fault of the server that ends the connection, comes back", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const fault = { code: "internal", message: "reference 17", retry: true };
  assert.deepEqual(await uncaught(() => socket.say("error", fault)), []);
  assert.deepEqual([client.state, client.reason], ["offline", "reference 17"]);
  await pass(client.retryMs);
  await greet();
  assert.equal(client.state, "online");
});

test("an error that belongs to no request does not end a client that was greeted, and answers none", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  client.on("error", () => {});
  const asked = client.request("state", { channel: "doc" });
  socket.say("error", { code: "forbidden", message: "no", retry: false });
  assert.equal(client.state, "online");
  socket.answer("state", { entries: {} });
  assert.deepEqual((await asked).entries, {});
});

test("a closed client is silent, and says so to who still waits", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const publish = outcome(client.publish("lobby", 1));
  const history = outcome(client.history("lobby"));
  await settle();
  client.close();
  assert.equal((await publish).code, "closed");
  assert.equal((await history).code, "disconnected");
  assert.equal((await outcome(client.publish("lobby", 2))).code, "closed");
  assert.equal(socket.readyState, 3);
  assert.deepEqual(client.told, ["connecting", "online", "closed"]);
  await pass(100_000);
  assert.equal(FakeSocket.opened.length, 1);
});

for (const when of ["connecting", "online"]) {
  test(`a client may be closed by who hears that it is ${when}`, async (t) => {
    const client = await aClient(t);
    client.publish("lobby", 1).catch(() => {});
    FakeSocket.newest.end();
    client.on("state", ({ state }) => state === when && client.close());
    await pass(client.retryMs);
    if (when === "online") await greet();
    assert.equal(client.state, "closed");
    assert.equal(FakeSocket.newest.readyState, 3);
    FakeSocket.newest.onopen({});
    assert.equal(client.state, "closed");
  });
}

test("a closed client leaves nothing for which its program would wait", async () => {
  const timers = () => process.getActiveResourcesInfo().filter((kind) => kind === "Timeout").length;
  const before = timers();
  const client = connect("ws://server.example/", { WebSocket: FakeSocket });
  await settle();
  client.close();
  assert.equal(timers(), before);
});

test("requests are answered by their id, and fail when there is no connection", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const [one, two] = [outcome(client.history("a", { limit: 1 })), client.request("state", { channel: "b" })];
  socket.answer("state", { entries: {} });
  socket.refuse("history", "limit", { limit: "x", value: 3 });
  assert.deepEqual((await two).entries, {});
  const error = await one;
  assert.deepEqual([error.name, error.code, error.limit, error.value], ["TrisyncError", "limit", "x", 3]);
  const three = outcome(client.history("a"));
  socket.end();
  assert.equal((await three).code, "disconnected");
  assert.equal((await outcome(client.history("a"))).retry, true);
});

test("a request that no server could read is refused here: none could answer it", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  let deep = "leaf";
  for (let level = 0; level < 64; level++) deep = [deep];
  const requests = [client.history("\ud83d"), client.request("state", { channel: "doc", key: "\udc00" }), client.request("x", { deep })];
  for (const request of requests) assert.equal((await outcome(Promise.race([request, settle()]))).code, "bad_json");
  assert.deepEqual(socket.sent.map(({ op }) => op), ["hello"]);
});

test("a request or a name that the server would close on is refused here, and the client goes on", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const codes = [];
  const note = ({ code }) => void codes.push(code);
  const large = "x".repeat(LIMITS.message_bytes_max);
  const requests = [client.request("state", { channel: "doc", key: large }), client.request(large), client.request("x", { large: 1n })];
  client.on("error", note);
  client.rename(large);
  client.subscribe(large).on("error", note);
  const errors = await Promise.all(requests.map(outcome));
  assert.deepEqual(errors.map(({ name, code }) => code ?? name), ["too_large", "too_large", "TypeError"]);
  assert.deepEqual([client.name, codes], ["ada", ["too_large", "too_large"]]);
  assert.deepEqual(socket.sent.map(({ op }) => op), ["hello"]);
});

test("a name with half a character is refused like any other that cannot be", async (t) => {
  const name = "ada 😀".slice(0, 5);
  const { client, socket } = await anOnlineClient(t);
  const codes = [];
  client.on("error", ({ code }) => codes.push(code));
  client.rename(name);
  await settle();
  socket.end();
  client.rename(name);
  await pass(client.retryMs);
  FakeSocket.newest.accept();
  await settle();
  FakeSocket.newest.answer("hello", { limits: {}, seq: 0 });
  assert.deepEqual([client.state, client.name, codes], ["online", "ada", ["bad_json", "bad_json"]]);
});

test("a first name with half a character is the end, and not a connection that never comes", async (t) => {
  const client = await aClient(t, { name: "\ud83d" });
  FakeSocket.newest.accept();
  await settle();
  assert.deepEqual([client.state, client.reason], ["closed", "Too deep, or half a character."]);
});

test("a new name is told now and at every greeting", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  client.rename("grace");
  assert.equal(socket.asked("hello").at(-1).name, "grace");
  socket.end();
  await pass(client.retryMs);
  FakeSocket.newest.accept();
  assert.equal(FakeSocket.newest.sent[0].name, "grace");
});

test("a new name that is given while the greeting is on its way is told behind it", async (t) => {
  const client = await aClient(t);
  FakeSocket.newest.accept();
  client.rename("grace");
  client.publish("lobby", 1).catch(() => {});
  await settle();
  const [first] = FakeSocket.newest.asked("hello");
  FakeSocket.newest.say("ok", { id: first.id, server: "fake", limits: {}, seq: 0 });
  assert.deepEqual(FakeSocket.newest.sent.map(({ op, name }) => [op, name]), [
    ["hello", "ada"],
    ["hello", "grace"],
    ["publish", undefined],
  ]);
});

test("a name that is refused is not told again: the next greeting would be refused too", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const codes = [];
  client.on("error", ({ code }) => codes.push(code));
  client.rename("x".repeat(65));
  socket.refuse("hello", "bad_request");
  await settle();
  assert.deepEqual([client.name, codes], ["ada", ["bad_request"]]);
  socket.end();
  await pass(client.retryMs);
  FakeSocket.newest.accept();
  assert.equal(FakeSocket.newest.sent[0].name, "ada");
});

test("a name that is refused is not kept either if it was given while the greeting was on its way", async (t) => {
  const client = await aClient(t);
  const codes = [];
  client.on("error", ({ code }) => codes.push(code));
  FakeSocket.newest.accept();
  client.rename("bad\n");
  await settle();
  FakeSocket.newest.answer("hello", { limits: {}, seq: 0 });
  FakeSocket.newest.refuse("hello", "bad_request");
  await settle();
  assert.deepEqual([client.name, codes], ["ada", ["bad_request"]]);
  FakeSocket.newest.end();
  await pass(client.retryMs);
  assert.equal((await greet()).sent[0].name, "ada");
  assert.equal(client.state, "online");
});

test("a name that is refused does not end a client that took it while there was no connection", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  const codes = [];
  client.on("error", ({ code }) => codes.push(code));
  socket.end();
  client.rename("bad\n");
  await pass(client.retryMs);
  FakeSocket.newest.accept();
  FakeSocket.newest.refuse("hello", "bad_request");
  assert.deepEqual(FakeSocket.newest.asked("hello").map(({ name }) => name), ["bad\n", "ada"]);
  FakeSocket.newest.answer("hello", { limits: {}, seq: 0 });
  assert.deepEqual([client.state, client.name, codes], ["online", "ada", ["bad_request"]]);
});

test("a first name that is refused does not end a client that has another one by then", async (t) => {
  const client = await aClient(t, { name: "bad\n" });
  const codes = [];
  client.on("error", ({ code }) => codes.push(code));
  FakeSocket.newest.accept();
  client.rename("grace");
  FakeSocket.newest.refuse("hello", "bad_request");
  assert.deepEqual(FakeSocket.newest.asked("hello").map(({ name }) => name), ["bad\n", "grace"]);
  FakeSocket.newest.answer("hello", { limits: {}, seq: 0 });
  assert.deepEqual([client.state, client.name, codes], ["online", "grace", ["bad_request"]]);
});

test("who hears that a name is refused may close the client", async (t) => {
  const { client, socket } = await anOnlineClient(t);
  client.on("error", () => client.close());
  socket.end();
  client.rename("bad\n");
  await pass(client.retryMs);
  FakeSocket.newest.accept();
  FakeSocket.newest.refuse("hello", "bad_request");
  assert.equal(client.state, "closed");
});

test("debug logging tells the story of a lost connection", async (t) => {
  const story = [];
  const client = await aClient(t, { debug: (...what) => story.push(what.join(" ")) });
  const socket = await greet();
  client.subscribe("lobby", { since: 3 });
  client.publish("lobby", 1).catch(() => {});
  await settle();
  socket.end(1006);
  const told = story.join("\n");
  const lost = ["2 unanswered, 1 in the queue", "the connection closed: 1006", "offline no connection to the server 100"];
  for (const part of ["connecting", "online", ...lost]) assert.ok(told.includes(part), told);
});

test("an address that is none, or no WebSocket to connect with, is an error at once", (t) => {
  for (const address of ["nonsense", "localhost:8000", "tcp://localhost:2345", "/"]) {
    assert.throws(() => connect(address, { WebSocket: FakeSocket }), TypeError, address);
  }
  assert.throws(() => connect("ws://server.example/", { WebSocket: null }), TypeError);
});

test("a page's address is where its server is reached", (t) => {
  for (const [address, url] of [
    ["http://localhost:8000", "ws://localhost:8000/"],
    ["https://server.example/chat?a=1#lobby", "wss://server.example/chat?a=1"],
    ["WSS://server.example", "wss://server.example/"],
  ]) {
    const client = connect(address, { WebSocket: FakeSocket });
    assert.equal(client.url, url);
    client.close();
  }
});

test("a WebSocket that may not be made is the end, and says why", async (t) => {
  class Forbidden {
    constructor() {
      throw new Error("insecure");
    }
  }
  const errors = await uncaught(async () => {
    const client = await aClient(t, { WebSocket: Forbidden });
    assert.deepEqual([client.state, client.reason], ["closed", "insecure"]);
    const { name, code, message } = await outcome(client.publish("lobby", 1));
    assert.deepEqual([name, code, message], ["TrisyncError", "closed", "insecure"]);
  });
  assert.deepEqual(errors.map(({ message }) => message), ["insecure"]);
});

test("a WebSocket that may be made no longer is no error of the call that asked for one", async (t) => {
  class Forbidden extends FakeSocket {
    constructor(url) {
      if (FakeSocket.opened.length) throw new Error("insecure");
      super(url);
    }
  }
  const client = await aClient(t, { WebSocket: Forbidden });
  FakeSocket.newest.end();
  const errors = await uncaught(() => client.nudge());
  assert.deepEqual([client.state, client.reason], ["closed", "insecure"]);
  assert.deepEqual(errors.map(({ message }) => message), ["insecure"]);
});
