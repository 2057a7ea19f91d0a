// trisync in browsers and Node. What it promises: trisync.d.ts; the wire: protocol.md; _names are between classes.

const BACKOFF_MS_BASE = 200;
const BACKOFF_MS_MAX = 20_000;
const PAUSE_MS_MAX = 60_000;
const STORE_MS_MAX = 10_000;
const TICK_MS = 1000;
const STABLE_TICKS = 5; // then the next backoff begins small again
const QUIET_TICKS = 25; // then the server is asked whether it is there
const ANSWER_TICKS = 10;
const PROBE_TICKS = 4; // when the network is back
const DEPTH_MAX = 64;

const backoffMs = (attempt) => Math.random() * Math.min(BACKOFF_MS_MAX, BACKOFF_MS_BASE * 2 ** attempt);

/** What nobody listens for is an uncaught error. */
const report = (error) => void Promise.reject(error);

export class TrisyncError extends Error {
  constructor({ op, id, code, message, retry = false, ...details }) {
    super(message || code);
    Object.assign(this, details, { name: "TrisyncError", code, retry });
  }
}

const failure = (code, message, details) => new TrisyncError({ code, message, ...details });

const isObject = (value) => Object(value) === value && !Array.isArray(value);

/** RFC 7396. */
function mergePatch(target, patch) {
  if (!isObject(patch)) return patch;
  const merged = new Map(isObject(target) ? Object.entries(target) : []);
  for (const [name, value] of Object.entries(patch)) {
    if (value === null) merged.delete(name);
    else merged.set(name, mergePatch(merged.get(name), value));
  }
  return Object.fromEntries(merged);
}

/** What the server cannot read, it cannot answer. */
function isReadable(data, depth = 1) {
  if (Object(data) !== data) return !/\p{Surrogate}/u.test(data);
  return depth <= DEPTH_MAX && Object.entries(data).flat().every((part) => isReadable(part, depth + 1));
}

class Emitter {
  #listeners = {};

  on(type, listener) {
    const those = (this.#listeners[type] ??= new Set()).add(listener);
    return () => void those.delete(listener);
  }

  _isHeard = (type) => this.#listeners[type]?.size;

  _emit(type, event) {
    for (const listener of [...(this.#listeners[type] ?? [])]) {
      try {
        listener(event);
      } catch (error) {
        report(error); // the others get it
      }
    }
  }

  _fail(error) {
    this._end?.(error);
    this._isHeard("error") ? this._emit("error", error) : report(error);
  }
}

// A cursor into one channel's log: all up to `offset` was passed on or not asked for; up to `_excused`, less may be kept.
export class Subscription extends Emitter {
  head = 0;
  live = false; // what comes before the `ok` is of an earlier subscription
  members = new Map();

  constructor(client, channel, { since, epoch, last, presence }) {
    super();
    Object.assign(this, { _client: client, channel, epoch, _last: last, _watches: presence });
    this.offset = this._excused = since;
  }

  close() {
    this._client._leave(this);
  }

  _request() {
    const { channel, offset: since, epoch, _last: last, _watches: presence } = this;
    const state = this._state && true; // anew: emptied, it may have no gap
    return { op: "subscribe", channel, presence, state, since, epoch, last: since >= 0 ? undefined : last };
  }

  // The `gap` of another log may be lost.
  _begin({ offset: head, epoch, member }) {
    const isOther = this.offset >= 0 && (head < this.offset || epoch !== (this.epoch ?? epoch));
    Object.assign(this, { live: true, head, epoch, member });
    this.offset ??= Math.max(0, (this._excused = head) - (this._last ?? 0)); // of the newest, fewer may be kept
    if (isOther) this._gap({ reason: "epoch" });
    this._emit("subscribed", this);
  }

  _message(message) {
    const { offset, key } = message;
    if (offset <= this.offset) return;
    if (offset > this._excused + 1) this._gap({ reason: "missed", from: this._excused + 1, to: offset - 1 });
    if (!this.live) return;
    if (offset) {
      this.offset = this._excused = offset;
      if (offset > this.head) {
        this.head = offset;
        if (key !== undefined) this._word?.(message);
      }
    }
    this._emit("message", message);
  }

  _gap({ op, reason, from, to }) {
    if (op && !to) return; // another log, which the `ok` has said
    const gap = { reason, from, to };
    if (to && this.offset < this._excused) gap.from = this._excused + 1;
    const isLost = to ? gap.from <= to : this.offset > 0; // of nothing, nothing is
    this.offset = to ?? 0;
    if (!to || isLost) this._excused = this.offset;
    if (this._state) this._client._subscribe(this);
    if (!isLost) return;
    if (this._isHeard("gap") || !this._isHeard("message")) return this._emit("gap", gap);
    this.close();
    report(failure("gap", `#${this.channel} has a gap (${reason}), and nobody listens for it.`, gap));
  }

  _presence({ members, joined = members ?? [], left = [], updated = [] }) {
    if (members) this.members.clear();
    for (const member of [...joined, ...updated]) this.members.set(member.member, member);
    for (const { member } of left) this.members.delete(member);
    this._emit("presence", this.members);
  }
}

// A channel's state as the server confirmed it, and over it what the queue holds.
export class Replica extends Subscription {
  #words = new Map(); // confirmed; null is a deletion of ours whose message is to come
  #arriving; // pages of a state that is not whole yet
  #upTo = 0; // the offset that #words are of then
  #view = new Map();
  #ready;
  ready = new Promise((resolve, reject) => (this.#ready = { resolve, reject }));
  #unheard = this.ready.catch(() => {});

  get size() {
    return this.#view.size;
  }

  keys = () => this.#view.keys();
  entry = (key) => this.#view.get(key);
  get = (key) => this.entry(key)?.data;
  set = (key, data, options) => this._client.publish(this.channel, data, { ...options, key });
  delete = (key, options) => this.set(key, null, options);
  merge = (key, patch, options) => this.set(key, patch, { ...options, merge: true });

  async update(key, change) {
    await this.ready;
    let { data, offset: expect, pending } = this.entry(key) ?? { offset: 0 };
    // Refused or merged, it may be another: a conflict tells.
    if (pending || expect > this.offset + 1 || this.epoch !== this._client._epoch) expect = 2 ** 53 - 1;
    for (;;) {
      try {
        return await this.set(key, change(structuredClone(data ?? undefined)), { expect });
      } catch (error) {
        if (error.code !== "conflict") throw error;
        ({ data, offset: expect } = error);
        if (data === undefined) {
          const { entries } = await this._client.request("state", { channel: this.channel, key });
          ({ data, offset: expect } = entries[key] ?? { offset: 0 });
        }
      }
    }
  }

  _end = (error) => this.#ready.reject(error);

  _begin(ok) {
    if (!this.#arriving) this.#upTo = this.head;
    this.#arriving = new Map();
    super._begin(ok);
  }

  _state({ entries, more }) {
    for (const [key, word] of Object.entries(entries)) this.#put(key, word);
    if (more) return;
    const keys = new Set([...this.#view.keys(), ...this.#arriving.keys()]);
    this.#words = this.#arriving;
    this.#arriving = undefined;
    const items = this._client._pending(this.channel);
    for (const key of keys) this._refresh(key, items);
    this.#ready.resolve(this);
    this._emit("ready", this);
  }

  _word({ key, offset, data }) {
    this.#put(key, { offset, data });
    if (data === null && this.#words.get(key)?.offset === offset) this.#words.delete(key);
    this._refresh(key);
  }

  // The `ok` comes before the message, or page: else the old word would show between. Sent again, it may come late.
  _settle({ key, data: patch, merge }, offset) {
    const data = merge ? mergePatch(this.#words.get(key)?.data, patch) : patch;
    if (offset > this.#upTo && this.#arriving) this.#words.set(key, { offset, data });
    if (offset > this.head) this.#put(key, { offset, data });
    this._refresh(key);
  }

  #put(key, word) {
    const words = this.#arriving ?? this.#words;
    if (!(words.get(key)?.offset > word.offset)) words.set(key, word);
  }

  _refresh(key, waiting = this._client._pending(this.channel)) {
    const { data: confirmed = null, offset } = this.#words.get(key) ?? {};
    const items = waiting.filter((item) => item.key === key);
    const data = items.reduce((value, item) => (item.merge ? mergePatch(value, item.data) : item.data), confirmed);
    const before = this.entry(key);
    const pending = items.length > 0;
    if (data === null) this.#view.delete(key);
    else this.#view.set(key, { data, pending, offset: confirmed === null ? 0 : offset });
    const entry = this.entry(key);
    if (JSON.stringify(entry) === JSON.stringify(before)) return;
    this._emit("change", { key, data: entry?.data, before: before?.data, pending });
  }
}

// The connection, and queues of what is not settled: the first has it; all but the last are of clients that are gone.
export class Client extends Emitter {
  state = "connecting";
  reason = "";
  retryMs = 0;
  limits = { message_bytes_max: 1 << 20, unanswered_max: 256 };

  #options;
  #log;
  #socket;
  #attempt = 0;
  #heldTicks = 0;
  #quietTicks = 0;
  #goodbyeMs;
  #wanted; // a name that the server may refuse
  #ticker;
  #reopening;
  #listening = new AbortController();

  #lastId = 0;
  #answers = new Map(); // by the request's id
  #subscriptions = new Map();

  #store = new MemoryStore(); // until the other has opened
  #queues = [newQueue()];
  #agreed; // the queue that the server takes items of
  #promises = new WeakMap(); // of publish(), by item
  #unsaved = new Map(); // to the queue whose store lacks it: what was sent is in it
  #sent = 0; // items of the first queue that are on their way
  #round = 0; // of sending them: an earlier one's failures do not count
  #failures = 0;
  #resending = 0;

  constructor(url, options) {
    super();
    this.url = new URL(url).href.replace(/^http/, "ws").replace(/#.*/, "");
    if (!/^ws/.test(this.url)) throw new TypeError("No ws:// or wss:// address.");
    this.#options = { WebSocket: globalThis.WebSocket, queueMax: 1000, ...options };
    const { WebSocket, name, debug, store } = this.#options;
    if (!WebSocket) throw new TypeError("No WebSocket: pass one.");
    this.name = this.#wanted = name;
    this.#log = debug === true ? console.debug.bind(console, "trisync:") : debug || (() => {});
    const { signal } = this.#listening;
    globalThis.addEventListener?.("online", () => this.nudge(), { signal });
    globalThis.document?.addEventListener("visibilitychange", () => document.hidden || this.nudge(), { signal });
    this.#ticker = setInterval(() => this.#tick(), TICK_MS);
    this.#start(store ?? new IndexedDbStore(this.url));
  }

  get queue() {
    return this.#queues.flatMap(({ items }) => items);
  }

  async publish(channel, data = null, { key, expect, merge, ephemeral } = {}) {
    const epoch = expect ? this._epoch : undefined;
    const item = JSON.parse(JSON.stringify({ seq: 0, channel, key, expect, epoch, merge, data }));
    const fault = this.#fault(item);
    if (fault) throw fault;
    if (ephemeral) return this.request("publish", { ...item, seq: undefined, ephemeral });
    if (this.state === "closed") throw failure("closed", this.reason);
    const { queueMax: value } = this.#options;
    if (this.queue.length >= value) throw failure("limit", `${value} are waiting.`, { limit: "queueMax", value });
    return new Promise((resolve, reject) => {
      this.#promises.set(item, { resolve, reject });
      this.#add(this.#queues.at(-1), item);
      this.#announce(item);
    });
  }

  subscribe = (channel, options = {}) => this.#join(new Subscription(this, channel, options));
  replica = (channel, options = {}) => this.#join(new Replica(this, channel, options));
  history = (channel, options) => this.request("history", { ...options, channel });

  request(op, fields) {
    return new Promise((resolve, reject) => {
      if (this.state !== "online") throw failure("disconnected", "There is no connection.", { retry: true });
      this.#ask({ ...fields, op }, (error, ok) => (error ? reject(error) : resolve(ok)));
    });
  }

  rename(name) {
    this.#wanted = name;
    if (this.state === "online") this.#ask({ op: "hello", name }, (error) => error?.retry || this.#take(name, error));
  }

  nudge() {
    this.state === "offline" ? this.#open() : this.#probe(PROBE_TICKS);
  }

  close(reason = "closed by the program") {
    if (this.state === "closed") return;
    this.#change("closed", reason);
    this.#abandon();
    clearTimeout(this.#reopening);
    clearInterval(this.#ticker);
    this.#listening.abort();
    this.#store.close();
    for (const item of this.queue) this.#promises.get(item)?.reject(failure("closed", reason));
    for (const subscription of this.#subscriptions.values()) this._leave(subscription);
  }

  // -- the socket

  async #start(store) {
    const opening = this.#keep(async () => [...(await store.open()), await store.create()]);
    const late = new Promise((resolve) => (this.#reopening = setTimeout(resolve, STORE_MS_MAX)));
    const queues = await Promise.race([opening, late]);
    if (!queues || this.state === "closed") opening.then(() => store.close());
    else {
      const early = this.queue;
      this.#store = store;
      this.#queues = queues;
      const found = this.queue;
      for (const item of early) this.#add(queues.at(-1), item);
      for (const item of found) this.#announce(item);
    }
    this.#open();
  }

  #open() {
    if (this.state === "closed") return; // by a listener
    clearTimeout(this.#reopening);
    this.#quietTicks = QUIET_TICKS;
    let socket;
    try {
      socket = this.#socket = new this.#options.WebSocket(this.url);
    } catch (error) {
      report(error);
      return this.close(error.message);
    }
    const ifCurrent = (act) => (event) => this.#socket === socket && act(event);
    socket.onopen = ifCurrent(() => this.#greet());
    socket.onmessage = ifCurrent(({ data }) => this.#receive(data));
    socket.onerror = () => socket.readyState || socket.onclose({}); // Node 22 fails and never closes
    socket.onclose = ifCurrent(({ code }) => {
      this.#log("the connection closed:", code);
      if (code === 1009) this.close("a message was too large for the server");
      else this.#lose(this.#goodbyeMs === undefined ? "no connection to the server" : "the server stops");
    });
    this.#change("connecting", this.reason);
  }

  #lose(reason) {
    if (!this.#socket) return;
    const delay = this.#goodbyeMs ?? backoffMs(this.#attempt++);
    this.#abandon();
    this.#reopening = setTimeout(() => this.#open(), delay);
    this.#change("offline", reason, delay);
  }

  // A dead peer answers no Close.
  #abandon() {
    const socket = this.#socket;
    const answers = this.#answers;
    this.#socket = this.#goodbyeMs = this.#agreed = undefined;
    this.#answers = new Map();
    clearTimeout(this.#resending);
    this.#resending = this.#heldTicks = 0;
    for (const subscription of this.#subscriptions.values()) subscription.live = false;
    socket?.close();
    this.#log(`${answers.size} unanswered, ${this.queue.length} in the queue`);
    for (const answer of answers.values()) answer(failure("disconnected", "There is no connection.", { retry: true }));
  }

  // Ticks, no clock: a machine that slept has not listened.
  #tick() {
    if (this.state === "online" && ++this.#heldTicks === STABLE_TICKS) this.#attempt = 0;
    if (++this.#quietTicks > QUIET_TICKS + ANSWER_TICKS) this.#lose("the server does not answer");
    else if (this.#quietTicks === QUIET_TICKS) this.#probe(ANSWER_TICKS);
  }

  #probe(ticks) {
    this.#quietTicks = Math.max(this.#quietTicks, QUIET_TICKS + ANSWER_TICKS - ticks);
    if (this.state === "online") this.#ask({ op: "ping" });
  }

  #change(state, reason, retryMs = 0) {
    this.#log(state, reason, retryMs);
    Object.assign(this, { state, reason, retryMs });
    this._emit("state", { state, reason, retryMs });
  }

  // -- requests and answers

  #ask(fields, answer = () => {}) {
    const error = !fields.seq && this.#fault(fields); // items were looked at
    if (error) return Promise.resolve(error).then(answer);
    const id = ++this.#lastId;
    this.#answers.set(id, answer);
    if (this.#socket.readyState === 1) this.#socket.send(JSON.stringify({ ...fields, id }));
  }

  // Answers are called, not promised: no message is to overtake one.
  #receive(text) {
    this.#quietTicks = 0;
    const message = JSON.parse(text);
    const { op, id, channel } = message;
    const error = op === "error" && new TrisyncError(message);
    if (id) {
      const answer = this.#answers.get(id);
      this.#answers.delete(id);
      error ? answer?.(error) : answer?.(null, message);
    } else if (error) {
      if (error.retry || error.code === "bad_request") this.#lose(error.message); // or half of ours came
      else if (this.state === "online") this._fail(error);
      else this.close(error.message);
    } else if (op === "goodbye") {
      this.#goodbyeMs = Math.min(message.reconnect_ms, PAUSE_MS_MAX);
      this.#probe(ANSWER_TICKS);
    } else {
      const subscription = this.#subscriptions.get(channel);
      if (subscription?.live) subscription[`_${op}`]?.(message); // what is not there is of a later protocol
    }
  }

  #greet() {
    const queue = this.#queues[0];
    const name = this.#wanted;
    this.#agreed = undefined;
    this.#ask({ op: "hello", name, producer: queue.producer }, (error, ok) => {
      if (error?.retry) return this.#lose(error.message);
      if (error && name === this.name && name === this.#wanted) return this.close(error.message);
      this.#take(name, error);
      if (error) return this.#socket && this.#greet();
      Object.assign(this.limits, ok.limits);
      const again = this.state === "online";
      this.state = "online";
      this.server = ok.server;
      this._epoch = ok.epoch;
      for (const subscription of this.#subscriptions.values())
        if (!again || subscription._watches) this._subscribe(subscription);
      if (ok.seq + 1 < (queue.items[0]?.seq ?? queue.seq + 1)) this.#renew(queue);
      else this.#agreed = queue;
      this.#sent = 0;
      if (this.#wanted !== name) this.rename(this.#wanted);
      this.#pump();
      if (!again) this.#change("online", "");
    });
  }

  #take(name, error) {
    if (!error) return (this.name = name);
    if (this.#wanted === name) this.#wanted = this.name;
    this._fail(error);
  }

  // -- subscriptions

  #join(subscription) {
    const { channel } = subscription;
    if (this.#subscriptions.has(channel)) throw new Error(`#${channel} has a subscription.`);
    this.#subscriptions.set(channel, subscription);
    for (const { key } of this._pending(channel)) subscription._refresh?.(key);
    if (this.state === "online") this._subscribe(subscription);
    if (this.state === "closed") this._leave(subscription);
    return subscription;
  }

  _subscribe(subscription) {
    subscription.live = false;
    const request = (subscription._asked = subscription._request());
    this.#log(request);
    this.#ask(request, (error, ok) => {
      if (subscription._asked !== request) return; // left, or asked again
      if (ok) subscription._begin(ok);
      else if (error.retry) this.#lose(error.message);
      else subscription._fail(error);
    });
  }

  _leave(subscription) {
    subscription.live = subscription._asked = false;
    subscription._end?.(failure("closed", this.reason));
    const { channel } = subscription;
    if (this.#subscriptions.get(channel) !== subscription) return;
    this.#subscriptions.delete(channel);
    if (this.state === "online") this.#ask({ op: "unsubscribe", channel });
  }

  _pending(channel) {
    return this.queue.filter((item) => item.channel === channel && item.key !== undefined);
  }

  // -- publishing

  #announce(item) {
    if (item.key !== undefined) this.#subscriptions.get(item.channel)?._refresh?.(item.key);
    this._emit("queued", item);
  }

  async #add(queue, item) {
    item.seq = ++queue.seq;
    queue.items.push(item);
    this.#unsaved.set(item, queue);
    await this.#keep(() => this.#store.save(queue, item));
    if (this.#unsaved.get(item) === queue) this.#unsaved.delete(item);
    this.#pump();
  }

  async #keep(act) {
    try {
      return await act();
    } catch (error) {
      this.#log("the store failed:", error);
    }
  }

  #pump() {
    const queue = this.#agreed;
    if (!queue || this.#resending || this.#goodbyeMs !== undefined) return;
    if (queue.items.length === 0 && this.#queues.length > 1) {
      this.#queues.shift();
      this.#keep(() => this.#store.forget(queue));
      return this.#greet();
    }
    for (const item of queue.items.slice(this.#sent, this.limits.unanswered_max)) {
      if (this.#unsaved.has(item)) return;
      this.#sent++;
      this.#transmit(queue, item);
    }
  }

  #transmit(queue, item) {
    const round = this.#round;
    const fault = this.#fault(item);
    if (item.epoch && item.epoch !== this._epoch) item.expect = 2 ** 53 - 1; // which no key has
    // The server would close; a seq alone it refuses, which settles it.
    this.#ask({ op: "publish", ...(fault ? { seq: item.seq } : item) }, (error, ok) => {
      if (error?.code === "disconnected") return; // sent again
      if (error?.code === "fenced") return this.#lose(error.message); // by a late hello of ours
      if (!error?.retry) this.#settle(queue, item, error && (fault ?? error), ok);
      else if (round === this.#round) this.#resendLater(error);
    });
  }

  #settle(queue, item, error, ok) {
    const index = queue.items.indexOf(item);
    if (index < 0) return;
    queue.items.splice(index, 1);
    if (index < this.#sent) this.#sent--;
    this.#failures = 0;
    this.#keep(() => this.#store.remove(queue, item));
    if (item.key !== undefined) this.#subscriptions.get(item.channel)?._settle?.(item, ok?.offset);
    const promise = this.#promises.get(item);
    if (error) {
      this._emit("refused", { item, error });
      promise?.reject(error);
    } else {
      this._emit("stored", { item, offset: ok.offset });
      promise?.resolve(ok);
    }
    this.#pump();
  }

  // One failure makes all behind it fail: wait once, send all.
  #resendLater({ code, retry_ms: delay = backoffMs(++this.#failures) }) {
    this.#log("resending:", code, delay);
    this.#round++;
    this.#resending = setTimeout(() => {
      this.#resending = this.#sent = 0;
      code === "out_of_sequence" ? this.#greet() : this.#pump(); // a page before left a hole
    }, Math.min(delay, PAUSE_MS_MAX));
  }

  async #renew(queue) {
    this.#log("the server forgot this producer");
    const socket = this.#socket;
    const renewed = (await this.#keep(() => this.#store.create())) ?? newQueue();
    if (this.state === "closed") return this.#store.close();
    // Else another connection was faster.
    if (this.#queues[0] === queue) {
      for (const item of queue.items) this.#add(renewed, item);
      this.#queues[0] = renewed;
      this.#keep(() => this.#store.forget(queue));
    }
    if (socket === this.#socket) this.#greet();
  }

  #fault(fields) {
    // What publish() has promised, it has looked at.
    if (!this.#promises.has(fields) && !isReadable(fields)) return failure("bad_json", "Too deep, or half a character.");
    const { message_bytes_max: value } = this.limits;
    const request = { op: "publish", ...fields, id: Number.MAX_VALUE };
    const bytes = new TextEncoder().encode(JSON.stringify(request)).length;
    if (bytes > value)
      return failure("too_large", `The server takes ${value} bytes.`, { limit: "message_bytes_max", value });
  }
}

// -- stores

const newQueue = () => ({ producer: crypto.getRandomValues(new Uint32Array(4)).join("-"), seq: 0, items: [] });

export class MemoryStore {
  create = newQueue;
  open() {
    return [];
  }
  save() {}
  remove() {}
  forget() {}
  close() {}
}

const finished = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = request.oncomplete = () => resolve(request.result);
    request.onerror = request.onabort = () => reject(request.error);
  });

// A tab locks its producers until it is gone. As seq 0, the last number is kept.
export class IndexedDbStore {
  #name;
  #database;
  #releases = new Map();

  constructor(url) {
    this.#name = `trisync ${url}`;
  }

  async open() {
    const opening = indexedDB.open(this.#name, 1);
    opening.onupgradeneeded = () => opening.result.createObjectStore("queue", { keyPath: ["producer", "seq"] });
    this.#database = await finished(opening);
    this.#database.onversionchange = () => this.#database.close();
    const keys = await this.#in((records) => records.getAllKeys());
    const found = [];
    for (const producer of new Set(keys.map(([producer]) => producer))) {
      if (!(await this.#lock(producer))) continue;
      const [first, ...items] = await this.#in((records) => records.getAll(rangeOf(producer)));
      if (items.length === 0) await this.forget({ producer });
      else found.push({ producer, seq: first.last, items: items.map(({ producer, ...item }) => item) });
    }
    return found;
  }

  async create() {
    const queue = newQueue();
    await this.#lock(queue.producer);
    return queue;
  }

  save({ producer, seq: last }, item) {
    return this.#in((records) => {
      records.put({ ...item, producer });
      return records.put({ producer, seq: 0, last });
    });
  }

  remove({ producer }, { seq }) {
    return this.#in((records) => records.delete([producer, seq]));
  }

  async forget({ producer }) {
    await this.#in((records) => records.delete(rangeOf(producer)));
    this.#releases.get(producer)?.();
  }

  close() {
    this.#database?.close();
    for (const release of this.#releases.values()) release();
  }

  async #in(act) {
    const transaction = this.#database.transaction("queue", "readwrite");
    const request = act(transaction.objectStore("queue"));
    transaction.commit(); // else it waits for this tab, which may crash
    await finished(transaction);
    return request.result;
  }

  #lock(producer) {
    return new Promise((resolve, reject) => {
      navigator.locks.request(`${this.#name} ${producer}`, { ifAvailable: true }, (lock) => {
        resolve(lock);
        return lock && new Promise((release) => this.#releases.set(producer, release));
      }).catch(reject);
    });
  }
}

const rangeOf = (producer) => IDBKeyRange.bound([producer], [producer, []]);

export const connect = (url, options) => new Client(url, options);
