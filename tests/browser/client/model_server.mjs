// A server in a few lines, as protocol.md has it, for random tests: a log per channel, state, producers and trimming.
// Its connections carry messages one by one, when the test says, and lose what is on its way when they break.

export class ModelServer {
  epoch = "one";
  logs = new Map();
  producers = new Map();
  connections = new Set();
  isFull = false; // answers "unavailable"
  conflicts = 0;

  log(channel) {
    if (!this.logs.has(channel)) this.logs.set(channel, { messages: [], trimmed: 0, words: new Map() });
    return this.logs.get(channel);
  }

  state(channel) {
    return Object.fromEntries([...this.log(channel).words].map(([key, { data }]) => [key, data]));
  }

  /** Stores a publish; returns its verdict, and delivers it to who is subscribed. */
  publish({ channel, data, key, expect, merge }, after = () => {}) {
    const log = this.log(channel);
    const word = log.words.get(key) ?? { offset: 0, data: null };
    if (expect !== undefined && expect !== word.offset) {
      this.conflicts++;
      return { op: "error", code: "conflict", message: "", retry: false, ...word };
    }
    if (merge) data = { ...(word.data ?? {}), ...data };
    const offset = log.messages.length + 1;
    const message = { op: "message", channel, offset, time: offset, data, ...(key === undefined ? {} : { key }) };
    log.messages.push(message);
    if (key !== undefined && data === null) log.words.delete(key);
    else if (key !== undefined) log.words.set(key, { offset, data });
    after({ op: "ok", offset });
    for (const connection of this.connections) if (connection.reads.has(channel)) connection.out.push(message);
    return { op: "ok", offset };
  }

  trim(channel, count) {
    const log = this.log(channel);
    log.trimmed = Math.max(log.trimmed, Math.min(log.messages.length, log.trimmed + count));
  }

  connect(socket) {
    const connection = new Connection(this, socket);
    this.connections.add(connection);
    return connection;
  }
}

class Connection {
  reads = new Set();
  isFenced = false; // as by a late hello
  out = []; // on its way to the client
  taken = 0; // of what the client sent

  constructor(server, socket) {
    Object.assign(this, { server, socket });
  }

  get idle() {
    return this.out.length === 0 && this.taken === this.socket.sent.length;
  }

  /** Takes the client's next request, if there is one. */
  take() {
    const request = this.socket.sent[this.taken];
    if (request === undefined) return;
    this.taken++;
    const { id } = request;
    const reply = (fields) => this.out.push({ op: "ok", ...fields, id });
    if (request.op === "hello") reply({ seq: this.#become(request.producer), server: "model", limits: {} });
    else if (request.op === "ping") reply({ op: "pong" });
    else if (request.op === "subscribe") this.#subscribe(request, reply);
    else if (request.op === "publish") this.#publish(request, reply);
    else throw new Error(`the model knows no ${request.op}`);
  }

  /** Lets the client have the next message, if there is one. */
  give() {
    const message = this.out.shift();
    if (message) this.socket.onmessage({ data: JSON.stringify(message) });
  }

  cut() {
    this.server.connections.delete(this);
    this.socket.end();
  }

  #become(producer) {
    const { producers } = this.server;
    if (!producers.has(producer)) producers.set(producer, { verdicts: [] });
    this.producer = producers.get(producer);
    return this.producer.verdicts.length;
  }

  #publish(request, reply) {
    const { verdicts } = this.producer;
    const settled = verdicts.length;
    const known = verdicts[request.seq - 1];
    if (this.isFenced) reply({ op: "error", code: "fenced", retry: false });
    else if (known) reply({ ...known, ...(known.op === "ok" ? { duplicate: true } : {}) });
    else if (request.seq > settled + 1) reply({ op: "error", code: "out_of_sequence", retry: true, seq: settled });
    else if (this.server.isFull) reply({ op: "error", code: "unavailable", retry: true });
    else {
      const verdict = this.server.publish(request, reply);
      if (verdict.op === "error") reply(verdict);
      verdicts.push(verdict);
    }
  }

  #subscribe({ channel, since, epoch, last, state }, reply) {
    const { messages, trimmed, words } = this.server.log(channel);
    const head = messages.length;
    reply({ offset: head, epoch: this.server.epoch });
    let cursor = since ?? Math.max(head - (last ?? 0), trimmed);
    if (cursor > head || (epoch ?? this.server.epoch) !== this.server.epoch) {
      this.out.push({ op: "gap", channel, reason: "epoch" });
      cursor = 0;
    }
    if (cursor < trimmed) this.out.push({ op: "gap", channel, reason: "trimmed", from: cursor + 1, to: trimmed });
    const entries = [...words].map(([key, word]) => [key, word]);
    const half = Math.floor(entries.length / 2);
    for (const [part, more] of [[entries.slice(0, half), true], [entries.slice(half), false]]) {
      if (state) this.out.push({ op: "state", channel, entries: Object.fromEntries(part), more });
    }
    this.out.push(...messages.slice(Math.max(cursor, trimmed)));
    this.reads.add(channel);
  }
}
