// What the client's tests share: sockets that do what a test says, time that passes when a test says, and luck that
// is always the same.

import { mock } from "node:test";
import { connect } from "../../../trisync/web/trisync.js";

export const LIMITS = { message_bytes_max: 1 << 20, unanswered_max: 256 };
export const EPOCH = "one";

/** A WebSocket whose server is the test. */
export class FakeSocket {
  static opened = [];

  static get newest() {
    return FakeSocket.opened.at(-1);
  }

  readyState = 0;
  sent = [];

  constructor(url) {
    this.url = url;
    FakeSocket.opened.push(this);
  }

  send(text) {
    this.sent.push(JSON.parse(text));
  }

  close() {
    this.readyState = 3;
  }

  // What the test does as the server

  accept() {
    this.readyState = 1;
    this.onopen({});
  }

  say(op, fields) {
    this.onmessage({ data: JSON.stringify({ op, ...fields }) });
  }

  end(code = 1006) {
    this.readyState = 3;
    this.onclose({ code, reason: "" });
  }

  /** The requests of one kind so far. */
  asked(op) {
    return this.sent.filter((message) => message.op === op);
  }

  /** Answers the newest request of a kind. */
  answer(op, fields) {
    this.say("ok", { id: this.asked(op).at(-1).id, ...fields });
  }

  refuse(op, code, fields) {
    this.say("error", { id: this.asked(op).at(-1).id, code, message: code, retry: false, ...fields });
  }
}

/** Lets everything happen that waits for nothing but its turn. */
export const settle = () => new Promise((resolve) => setImmediate(resolve));

/** Lets time pass. */
export async function pass(ms) {
  mock.timers.tick(ms);
  await settle();
}

/** A client whose timers stand still and whose luck is `luck`; called from a test with its context. */
export async function aClient(context, options = {}, luck = 0.5) {
  FakeSocket.opened = [];
  mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  mock.method(Math, "random", () => luck);
  const client = connect("ws://server.example/", { WebSocket: FakeSocket, name: "ada", ...options });
  context.after(() => {
    client.close();
    mock.restoreAll();
    mock.timers.reset();
  });
  client.told = [];
  client.on("state", ({ state }) => client.told.push(state));
  await settle();
  return client;
}

/** Accepts the newest socket and greets, with what the server knows of the producer. */
export async function greet(fields) {
  FakeSocket.newest.accept();
  FakeSocket.newest.answer("hello", { protocol: 1, server: "fake", epoch: EPOCH, limits: LIMITS, seq: 0, ...fields });
  await settle();
  return FakeSocket.newest;
}

/** A client that is online, and its socket. */
export async function anOnlineClient(context, options) {
  const client = await aClient(context, options);
  return { client, socket: await greet() };
}

/** What a promise will come to: its value or its error. */
export const outcome = (promise) => promise.catch((error) => error);

/** Runs `act`, and returns the errors that nobody caught meanwhile. */
export async function uncaught(act) {
  const others = process.rawListeners("unhandledRejection");
  const errors = [];
  process.removeAllListeners("unhandledRejection");
  process.on("unhandledRejection", (error) => errors.push(error));
  try {
    await act();
    await settle();
  } finally {
    process.removeAllListeners("unhandledRejection");
    for (const other of others) process.on("unhandledRejection", other);
  }
  return errors;
}
