// @ts-check
// The conversation with the server: one WebSocket that comes back by itself, a cursor into one channel's
// log, and the outbox of what was published but not yet answered. It knows the protocol and nothing of the
// page: what it finds out, it tells to the `Handlers` it was given. Drawing is app.js's matter.

/**
 * @typedef {{channel: string, offset?: number, time?: number, from?: string, key?: string, data: unknown}} Message
 *   One entry of a log. Without an `offset` it is ephemeral: seen now, stored nowhere.
 * @typedef {{reason: "trimmed" | "missed" | "replaced", from?: number, to?: number}} Gap
 *   Why the next message does not follow the last one. `trimmed`: the server keeps from–to no longer;
 *   `missed`: it skipped them without a word; `replaced`: it has another log now, and begins it again.
 * @typedef {{channel: string, data: unknown, seq: number, attempt: number}} Item
 *   One publish in the outbox. `seq` is 0 until it is first sent; `attempt` counts the times it was.
 * @typedef {"connecting" | "online" | "offline"} State
 *
 * @typedef {object} Handlers
 * @property {(state: State, retryInMs: number) => void} onState  `retryInMs` only says something when offline
 * @property {(server: string) => void} onServer  the server's own name for itself
 * @property {(head: number, epoch: string) => void} onSubscribed  comes before the first message
 * @property {(message: Message) => void} onMessage  in order, each offset once
 * @property {(gap: Gap) => void} onGap  comes before the message that stands behind the gap
 * @property {(item: Item, offset: number | undefined) => void} onStored  comes before its own message
 * @property {(item: Item, reason: string) => void} onRefused  final: the item will not be sent again
 * @property {(text: string) => void} onNotice  an error that belongs to no publish
 */

export const FIRST_LOOK = 50; // messages shown when a channel is opened
export const OUTBOX_MAX = 256; // the server remembers as many verdicts per producer (protocol.md: producers)

const BACKOFF_MS_BASE = 200;
const BACKOFF_MS_MAX = 20_000;
const BACKOFF_MS_MIN = 50;
const STABLE_MS = 5_000; // a connection that lasted so long makes the next backoff start small again
const GOODBYE_MS_MAX = 60_000; // no server may send a page away for longer
const QUIET_MS = 25_000; // silence after which the server is asked whether it is there
const ANSWER_MS = 10_000; // and the time it has for any answer, or for opening a connection
const IN_DOUBT_MS = 2_000; // how long reading waits for the verdicts on what was under way

const CHANNEL_NAME = /^(?!\$)[A-Za-z0-9_\-.:/@#=]{1,200}$/;

/** Whether the server would accept `name` as a channel. @param {string} name */
export const isChannelName = (name) => CHANNEL_NAME.test(name);

/** Whether the server would accept `name` for a person. @param {string} name */
export const isPersonName = (name) => /^\P{Cc}{1,64}$/u.test(name);

/** Why a request did not succeed; `code` is the protocol's, or `disconnected` when no answer came at all. */
export class RequestError extends Error {
  /** @param {{code: string, message?: string, retry?: boolean, retry_ms?: number, seq?: number}} reply */
  constructor({ code, message, retry = false, retry_ms, seq }) {
    super(message || code);
    this.code = code;
    this.retry = retry;
    this.retryMs = retry_ms;
    this.settled = seq;
  }
}

/**
 * A place in one channel's log. It decides what is new: nothing passes twice, and what is skipped is said.
 * `offset` is the last one passed, or null while nothing is known of the log.
 */
class Cursor {
  /** @type {number | null} */
  offset = null;
  epoch = "";
  head = 0;
  live = false; // messages before the subscription's `ok` are of an earlier subscription

  /** @param {string} channel */
  constructor(channel) {
    this.channel = channel;
  }

  request() {
    const from = this.offset === null ? { last: FIRST_LOOK } : { since: this.offset, epoch: this.epoch };
    return { op: "subscribe", channel: this.channel, ...from };
  }

  /**
   * Takes the `ok`. A replaced log is recognised here and not only by its `gap`: were the connection lost
   * between the two, the new epoch with the old offset would skip messages without anyone noticing.
   * @param {{offset: number, epoch: string}} ok
   * @returns {Gap | null}
   */
  begin({ offset: head, epoch }) {
    const replaced = this.offset !== null && (epoch !== this.epoch || head < this.offset);
    this.live = true;
    this.epoch = epoch;
    this.head = head;
    if (head === 0) this.offset ??= 0;
    return replaced ? this.#startAgain() : null;
  }

  /** @param {{reason: string, from?: number, to?: number}} gap @returns {Gap | null} */
  skip({ reason, from, to = 0 }) {
    if (reason === "epoch") return this.offset ? this.#startAgain() : null;
    this.offset = Math.max(this.offset ?? 0, to);
    return { reason: "trimmed", from, to };
  }

  /**
   * Whether the message at `offset` is new, and what was missed just before it.
   * @param {number} offset
   * @returns {{fresh: boolean, gap: Gap | null}}
   */
  pass(offset) {
    const last = this.offset;
    if (last !== null && offset <= last) return { fresh: false, gap: null };
    this.offset = offset;
    this.head = Math.max(this.head, offset);
    const follows = last === null || offset === last + 1;
    return { fresh: true, gap: follows ? null : { reason: "missed", from: last + 1, to: offset - 1 } };
  }

  /** @returns {Gap} */
  #startAgain() {
    this.offset = 0;
    return { reason: "replaced" };
  }
}

/**
 * A connection that is always there or on its way back, reading one channel at a time.
 *
 * Reading resumes after the last message passed on, so each is passed on once. What is published stays in
 * the outbox until the server has given a final verdict, and is sent again under the same `seq` after every
 * reconnect, so each is stored once.
 */
export class Connection {
  #url;
  #handlers;
  #name;
  #producer = randomHex(16);
  #limits = { message_bytes_max: 1 << 20 };

  /** @type {WebSocket | null} */
  #socket = null;
  /** @type {State} */
  #state = "connecting";
  #attempt = 0;
  #retryTimer = 0;
  #onlineAt = Infinity;
  #greeted = false; // by the server, on this socket
  /** @type {number | null} */
  #goodbyeMs = null;

  #heardAt = 0;
  #dueAt = Infinity; // by when something must have been heard

  #lastId = 0;
  /** @type {Map<number, {resolve: (reply: any) => void, reject: (error: RequestError) => void}>} */
  #waiting = new Map();

  #cursor;

  /** @type {Item[]} */
  #outbox = [];
  #lastSeq = 0;
  #sending = false; // whether a publish may go out at once, or only queues
  #resendTimer = 0;
  #resendMs = 0;

  /**
   * Call `start` when the handlers are ready to be called.
   * @param {{url: string, name: string, channel: string, handlers: Handlers}} options
   */
  constructor({ url, name, channel, handlers }) {
    this.#url = url;
    this.#name = name;
    this.#cursor = new Cursor(channel);
    this.#handlers = handlers;
  }

  get channel() {
    return this.#cursor.channel;
  }

  /** The newest offset known of the channel. */
  get head() {
    return this.#cursor.head;
  }

  /** How many publishes have no final verdict yet. */
  get unsettled() {
    return this.#outbox.length;
  }

  start() {
    setInterval(() => this.#watch(), 1000);
    this.#open();
  }

  /** Reads `channel` from now on, beginning with its newest messages. @param {string} channel */
  join(channel) {
    const left = this.#cursor;
    this.#cursor = new Cursor(channel);
    if (!this.#greeted) return; // the greeting will subscribe
    this.#send({ op: "unsubscribe", channel: left.channel });
    this.#subscribe();
  }

  /** Publishes under `name` from now on. @param {string} name */
  rename(name) {
    this.#name = name;
    if (this.#greeted) this.#hello().catch((error) => this.#report(error));
  }

  /**
   * Publishes to the current channel, now or when the connection is back. `onStored` or `onRefused` follows.
   * Throws a RequestError, and keeps nothing, when the outbox is full or the message too large.
   * @param {unknown} data
   * @returns {Item}
   */
  publish(data) {
    if (this.#outbox.length >= OUTBOX_MAX) {
      throw new RequestError({ code: "limit", message: `${OUTBOX_MAX} messages are already waiting to be sent.` });
    }
    const item = { channel: this.channel, data, seq: 0, attempt: 0 };
    this.#checkSize(item);
    this.#outbox.push(item);
    if (this.#sending) this.#transmit(item);
    return item;
  }

  /**
   * Up to `limit` messages after the offset `since`, ascending; fewer when they are large.
   * @param {number} since
   * @param {number} limit
   * @returns {Promise<Message[]>}
   */
  async history(since, limit) {
    const cursor = this.#cursor;
    const reply = await this.#request({ op: "history", channel: cursor.channel, since, limit });
    if (reply.epoch !== cursor.epoch) throw new RequestError({ code: "epoch", message: "The log was replaced." });
    return reply.messages;
  }

  /** The network or the person is back: connect at once, or make sure that the connection still lives. */
  nudge() {
    if (this.#socket) this.#probe();
    else this.#open();
  }

  // -- the socket: open, watch, lose, come back

  #open() {
    clearTimeout(this.#retryTimer);
    const socket = new WebSocket(this.#url);
    // A socket that was dropped may still speak while it closes; only the current one is listened to.
    const ifCurrent = (/** @type {(event: any) => void} */ act) => (/** @type {any} */ event) => {
      if (this.#socket === socket) act(event);
    };
    socket.onopen = ifCurrent(() => this.#greet());
    socket.onmessage = ifCurrent((event) => this.#receive(event.data));
    socket.onclose = ifCurrent(() => this.#drop());
    this.#socket = socket;
    this.#dueAt = performance.now() + ANSWER_MS;
    this.#setState("connecting");
  }

  /** Leaves the socket without waiting for its closing handshake: a dead peer would never answer that. */
  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
    this.#stopSending();
    this.#greeted = this.#cursor.live = false;
    this.#dueAt = Infinity;
    if (performance.now() - this.#onlineAt > STABLE_MS) this.#attempt = 0;
    this.#onlineAt = Infinity;

    const delay = this.#goodbyeMs ?? backoffMs(this.#attempt);
    this.#goodbyeMs = null;
    this.#attempt += 1;
    this.#retryTimer = setTimeout(() => this.#open(), delay);
    this.#setState("offline", delay);

    const unanswered = [...this.#waiting.values()];
    this.#waiting.clear();
    for (const { reject } of unanswered) reject(new RequestError({ code: "disconnected" }));
  }

  /** A TCP connection can die without a word, so silence is questioned, and not endured for ever. */
  #watch() {
    if (!this.#socket) return;
    const now = performance.now();
    if (now > this.#dueAt) this.#drop();
    else if (now - this.#heardAt > QUIET_MS) this.#probe();
  }

  #probe() {
    if (this.#dueAt !== Infinity) return; // an answer is already due
    this.#dueAt = performance.now() + ANSWER_MS;
    this.#request({ op: "ping" }).catch(() => {});
  }

  /** @param {State} state @param {number} [retryInMs] */
  #setState(state, retryInMs = 0) {
    this.#state = state;
    this.#handlers.onState(state, retryInMs);
  }

  // -- requests and what comes back

  /** @param {object} message */
  #send(message) {
    this.#socket?.send(JSON.stringify(message));
  }

  /**
   * Sends a request and waits for its answer. Promises continue before the browser hands over the next
   * message, so the order of answers and messages on the wire is kept.
   * @param {object} message
   * @returns {Promise<any>}
   */
  #request(message) {
    if (this.#socket?.readyState !== WebSocket.OPEN) {
      return Promise.reject(new RequestError({ code: "disconnected", message: "Not connected." }));
    }
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#send({ ...message, id });
    });
  }

  /** @param {string} text */
  #receive(text) {
    this.#heardAt = performance.now();
    this.#dueAt = Infinity;
    const message = JSON.parse(text);
    switch (message.op) {
      case "ok":
      case "pong":
        return this.#take(message.id)?.resolve(message);
      case "error": {
        const error = new RequestError(message);
        const request = this.#take(message.id);
        return request ? request.reject(error) : this.#report(error);
      }
      case "message":
        return this.#onMessage(message);
      case "gap":
        return this.#isRead(message) && this.#tellGap(this.#cursor.skip(message));
      case "goodbye":
        return this.#onGoodbye(message);
    } // anything else is of a later protocol, and not for this page
  }

  /** @param {number} id */
  #take(id) {
    const request = this.#waiting.get(id);
    this.#waiting.delete(id);
    return request;
  }

  /** @param {RequestError} error */
  #report(error) {
    if (error.code !== "disconnected") this.#handlers.onNotice(error.message);
  }

  /** The server stops: it will still answer what it has, but takes nothing new. */
  #onGoodbye({ reconnect_ms = 0 }) {
    this.#goodbyeMs = Math.min(Math.max(reconnect_ms, BACKOFF_MS_MIN), GOODBYE_MS_MAX);
    this.#stopSending();
    this.#dueAt = performance.now() + ANSWER_MS;
  }

  // -- greeting and reading

  async #greet() {
    const socket = this.#socket;
    try {
      const { server, limits, seq } = await this.#hello();
      Object.assign(this.#limits, limits);
      this.#handlers.onServer(String(server ?? ""));
      this.#renumber(seq ?? 0);
      await this.#askAgain();
    } catch (error) {
      this.#report(error);
      if (this.#socket === socket) this.#drop();
    }
    if (this.#socket !== socket) return;
    this.#greeted = true;
    this.#subscribe();
  }

  #hello() {
    return this.#request({ op: "hello", name: this.#name, producer: this.#producer });
  }

  async #subscribe() {
    const cursor = this.#cursor;
    try {
      const ok = await this.#request(cursor.request());
      if (cursor !== this.#cursor) return; // another channel was joined meanwhile
      this.#tellGap(cursor.begin(ok));
      this.#handlers.onSubscribed(cursor.head, cursor.epoch);
    } catch (error) {
      this.#report(error);
      if (error.code === "disconnected" || cursor !== this.#cursor) return;
      if (error.retry) return this.#drop();
    }
    if (this.#state !== "online") this.#goOnline();
  }

  #goOnline() {
    this.#onlineAt = performance.now();
    this.#setState("online");
    if (!this.#resendTimer) this.#transmitAll((item) => item.seq === 0);
  }

  /** Whether a message belongs to the subscription that is being read. @param {{channel: string}} message */
  #isRead({ channel }) {
    return this.#cursor.live && channel === this.#cursor.channel;
  }

  /** @param {Message} message */
  #onMessage(message) {
    if (!this.#isRead(message)) return;
    if (message.offset === undefined) return this.#handlers.onMessage(message);
    const { fresh, gap } = this.#cursor.pass(message.offset);
    this.#tellGap(gap);
    if (fresh) this.#handlers.onMessage(message);
  }

  /** @param {Gap | null} gap */
  #tellGap(gap) {
    if (gap) this.#handlers.onGap(gap);
  }

  // -- publishing

  /**
   * Asks first what became of the publishes that were under way when the connection was lost. Only then is
   * the log read on, so that the page already knows them for its own when they come along.
   */
  async #askAgain() {
    const inDoubt = this.#outbox.filter((item) => item.seq > 0);
    if (inDoubt.length === 0) return;
    const verdicts = Promise.all(inDoubt.map((item) => this.#transmit(item)));
    await Promise.race([verdicts, new Promise((resolve) => setTimeout(resolve, IN_DOUBT_MS))]);
  }

  /** @param {(item: Item) => boolean} which */
  #transmitAll(which) {
    this.#sending = true;
    for (const item of this.#outbox.filter(which)) this.#transmit(item);
  }

  /** Sends one item and sees to its verdict; never throws. @param {Item} item */
  async #transmit(item) {
    const attempt = ++item.attempt;
    try {
      this.#checkSize(item); // the limit may have been learnt, or lowered, since it was queued
      item.seq ||= ++this.#lastSeq;
      const { channel, data, seq } = item;
      const { offset } = await this.#request({ op: "publish", channel, data, seq });
      this.#resendMs = 0;
      if (this.#settle(item)) this.#handlers.onStored(item, offset);
    } catch (error) {
      this.#onVerdictMissing(item, attempt, error);
    }
  }

  /** @param {Item} item @param {number} attempt @param {RequestError} error */
  #onVerdictMissing(item, attempt, error) {
    if (error.code === "disconnected") return; // unknown: it is sent again after the greeting
    if (error.code === "fenced") return this.#drop(); // only a new greeting takes the producer back
    if (!error.retry) {
      if (this.#settle(item)) this.#handlers.onRefused(item, error.message);
    } else if (attempt === item.attempt) {
      // An attempt that was overtaken by a newer one has nothing to say.
      if (error.code === "out_of_sequence") this.#renumber(error.settled ?? 0);
      this.#resendLater(error.retryMs);
    }
  }

  /** Takes the item out of the outbox; false if it was settled before. @param {Item} item */
  #settle(item) {
    const index = this.#outbox.indexOf(item);
    if (index < 0) return false;
    this.#outbox.splice(index, 1);
    return true;
  }

  /**
   * The server has settled everything up to `settled`: what it has not seen goes on from there. Numbers only
   * change when the server forgot this producer (a restored backup) or refused one without counting it.
   * @param {number} settled
   */
  #renumber(settled) {
    this.#lastSeq = settled;
    for (const item of this.#outbox) if (item.seq > settled) item.seq = ++this.#lastSeq;
  }

  /**
   * One failure makes all that were sent behind it fail too: wait once, for all of them, then send in order.
   * @param {number} [delayMs]
   */
  #resendLater(delayMs) {
    if (this.#resendTimer) return;
    this.#sending = false;
    this.#resendMs = Math.min(this.#resendMs * 2 || 250, 10_000);
    this.#resendTimer = setTimeout(() => {
      this.#resendTimer = 0;
      this.#transmitAll(() => true);
    }, delayMs ?? this.#resendMs);
  }

  #stopSending() {
    this.#sending = false;
    clearTimeout(this.#resendTimer);
    this.#resendTimer = 0;
  }

  /**
   * The server closes the connection on anything larger, which sending it again would only repeat.
   * @param {Pick<Item, "channel" | "data">} item
   */
  #checkSize({ channel, data }) {
    const envelope = 128; // op, id and seq at their longest
    const text = JSON.stringify({ channel, data });
    if (new TextEncoder().encode(text).length + envelope <= this.#limits.message_bytes_max) return;
    const limit = this.#limits.message_bytes_max.toLocaleString();
    throw new RequestError({ code: "too_large", message: `This is too long: the server takes ${limit} bytes at most.` });
  }
}

/** Full jitter: after a restart, a thousand pages must not return in step. @param {number} attempt */
function backoffMs(attempt) {
  const ceiling = Math.min(BACKOFF_MS_MAX, BACKOFF_MS_BASE * 2 ** attempt);
  return Math.max(BACKOFF_MS_MIN, Math.random() * ceiling);
}

/** @param {number} bytes */
function randomHex(bytes) {
  const random = crypto.getRandomValues(new Uint8Array(bytes));
  return Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
