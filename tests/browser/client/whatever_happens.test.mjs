// Whatever happens, in whatever order: connections that open, break and lose what was on its way, answers, messages and
// hellos that come late, a full disk, trimmed logs, others who write, tabs that crash; and at the end every publish is
// stored once, in order, nothing was passed on twice or missed untold, and the replica is the server's state.

import assert from "node:assert/strict";
import { test } from "node:test";
import { connect } from "../../../trisync/web/trisync.js";
import { mock } from "node:test";
import { FakeSocket, pass, settle } from "./fakes.mjs";
import { ModelServer } from "./model_server.mjs";

const SHAPES = [
  { worlds: 100, steps: 120 },
  { worlds: 700, steps: 30 }, // what is wrong is not made good by what comes later
];

/** Mulberry32: the same numbers for the same seed. */
function seeded(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** What a browser keeps when a tab crashes: JSON, and locks that are let go. */
class Disk {
  records = new Map();
  made = 0;

  store() {
    const { records } = this;
    const write = ({ producer, seq, items }) => void records.set(producer, JSON.stringify({ producer, seq, items }));
    const create = () => ({ producer: `producer-number-${++this.made}`, seq: 0, items: [] });
    const open = () => [...records.values()].map((text) => JSON.parse(text));
    const forget = ({ producer }) => void records.delete(producer);
    return { open, create, save: write, remove: write, forget, close() {} };
  }
}

class World {
  server = new ModelServer();
  disk = new Disk();
  published = []; // what is to be in the log, in order
  rolledBack = new Set();
  number = 0;

  constructor(seed) {
    this.random = seeded(seed);
  }

  pick(things) {
    return things[Math.floor(this.random() * things.length)];
  }

  openTab() {
    this.client = connect("ws://model/", { WebSocket: FakeSocket, store: this.disk.store() });
    this.client.on("refused", ({ item }) => this.rolledBack.add(item.data));
    this.reader = this.client.subscribe("log", { since: 0 });
    this.doc = this.client.replica("doc", this.pick([{}, { last: 2 }]));
    this.next = 1;
    this.reader.on("gap", ({ reason, from, to }) => {
      assert.deepEqual([reason, from], ["trimmed", this.next]);
      this.next = to + 1;
    });
    this.reader.on("message", ({ offset, data }) => {
      assert.equal(offset, this.next++);
      assert.equal(data, this.server.log("log").messages[offset - 1].data);
    });
  }

  /** Everything that can happen now, by its name; the likelier are named more often. */
  actions() {
    const key = this.pick(["a", "b", "c"]);
    const quietly = (promise) => void promise.catch(({ code }) => assert.ok(["closed", "conflict"].includes(code), code));
    const actions = {
      publish: () => {
        this.published.push(`mine ${++this.number}`);
        quietly(this.client.publish("log", `mine ${this.number}`));
      },
      set: () => quietly(this.doc.set(key, { by: "me", number: ++this.number })),
      expect: () => quietly(this.doc.set(key, { by: "me", number: ++this.number }, { expect: this.pick([0, 1, 2]) })),
      merge: () => quietly(this.doc.merge(key, { [this.pick(["x", "y"])]: ++this.number })),
      delete: () => quietly(this.doc.delete(key)),
      others: () => this.server.publish({ channel: "log", data: `theirs ${++this.number}` }),
      othersSet: () => this.server.publish({ channel: "doc", key, data: { by: "them", number: ++this.number } }),
      othersDelete: () => this.server.publish({ channel: "doc", key, data: null }),
      trim: () => this.server.trim(this.pick(["log", "doc"]), 2),
      disk: () => (this.server.isFull = !this.server.isFull),
      wait: () => pass(this.pick([100, 1000, 5000])),
      nudge: () => this.client.nudge(),
      crash: () => this.crash(),
    };
    if (FakeSocket.newest?.readyState === 0) actions.accept = actions.accept2 = () => this.accept();
    if (this.connection) {
      actions.cut = () => this.cut();
      actions.fence = () => (this.connection.isFenced = true);
      for (const often of [1, 2, 3, 4]) {
        actions[`take${often}`] = () => this.connection.take();
        actions[`give${often}`] = () => this.connection.give();
      }
    }
    return Object.values(actions);
  }

  /** The connection as the client has it: one that it abandoned is none. */
  get connection() {
    return [...this.server.connections].find(({ socket }) => socket === FakeSocket.newest && socket.readyState === 1);
  }

  accept() {
    this.server.connect(FakeSocket.newest);
    FakeSocket.newest.accept();
  }

  cut() {
    this.connection.cut();
  }

  crash() {
    this.client.close();
    this.openTab();
  }

  async comeToRest() {
    this.server.isFull = false;
    for (let rounds = 0; rounds < 2000; rounds++) {
      if (FakeSocket.newest.readyState === 0) this.accept();
      this.connection?.take();
      this.connection?.give();
      await settle();
      if (!this.connection || this.connection.idle) await pass(20_000);
      if (this.connection?.idle && this.client.queue.length === 0) return;
    }
    assert.fail("it did not come to rest");
  }

  check() {
    const log = this.server.log("log").messages.map(({ data }) => data);
    assert.deepEqual(log.filter((data) => data.startsWith("mine")), this.published);
    assert.equal(this.next, log.length + 1);
    assert.deepEqual(Object.fromEntries([...this.doc.keys()].map((key) => [key, this.doc.get(key)])), this.server.state("doc"));
  }
}

async function live(world, steps) {
  FakeSocket.opened = [];
  mock.method(Math, "random", world.random);
  try {
    world.openTab();
    await settle();
    for (let step = 0; step < steps; step++) {
      await world.pick(world.actions())();
      await settle();
    }
    await world.comeToRest();
    world.check();
  } finally {
    world.client.close();
  }
}

for (const { worlds, steps } of SHAPES) {
  test(`every order of ${steps} events keeps the promises`, async (t) => {
    t.after(() => mock.timers.reset());
    t.after(() => mock.restoreAll());
    mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
    for (let seed = 1; seed <= worlds; seed++) {
      await live(new World(seed), steps).catch((error) => {
        error.message = `world ${seed}: ${error.message}`;
        throw error;
      });
    }
  });
}
