/**
 * trisync in browsers and Node: a connection that comes back by itself, subscriptions that miss and repeat nothing,
 * publishes that are stored once, and live replicas of a channel's state.
 *
 * ```js
 * import { connect } from "/trisync.js";
 *
 * const client = connect("ws://localhost:8000/", { name: "ada" });
 * const lobby = client.subscribe("lobby", { last: 20 });
 * lobby.on("message", ({ from, data }) => console.log(from, data));
 * lobby.on("gap", ({ from, to }) => console.warn(`${from}-${to} are no longer kept`));
 * await client.publish("lobby", { text: "hello" });
 *
 * const doc = client.replica("doc:42");
 * doc.on("change", ({ key, data }) => console.log(key, data));
 * doc.set("title", "Report");
 * await doc.update("count", (count) => (count ?? 0) + 1);
 * ```
 *
 * @module
 */

/**
 * Any value that JSON has. What was published is a copy, as JSON makes it: changing the object later changes nothing,
 * and `NaN` or an infinite number becomes `null`, which with a key is a deletion.
 */
export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };

/**
 * Connects to a server, now and whenever the connection was lost, until `close()`. Returns at once; what is published
 * meanwhile waits.
 *
 * @param url `ws://…` or `wss://…`; `http` and `https` stand for them, so a page's `location.href` will do
 * @throws TypeError if `url` is no such address, or if there is no WebSocket here (Node before 22: pass one)
 */
export function connect(url: string, options?: Options): Client;

export interface Options {
  /** What others see as `from` and in presence: 1 to 64 characters, no control characters. */
  name?: string;
  /** How many publishes may wait for their verdict before `publish()` is refused with `limit`. 1000 if not said. */
  queueMax?: number;
  /**
   * Where the queue is kept. In browsers it is IndexedDB, so that the reload or crash of a tab loses nothing: each tab
   * has a producer and a queue of its own, and the queue of a tab that is gone is sent by the next one that opens.
   * Elsewhere, and on pages that are not a secure context (plain http other than localhost), it is memory.
   */
  store?: Store;
  /** `true` tells the connection's story by `console.debug`; or a function that takes what is told. */
  debug?: boolean | ((...what: unknown[]) => void);
  /** The class to connect with, where there is no global one: such as that of the package `ws`. */
  WebSocket?: new (url: string) => unknown;
}

/** `connecting` at first and at each try, `offline` between them, and `closed` for good. */
export type State = "connecting" | "online" | "offline" | "closed";

export interface StateEvent {
  state: State;
  /** Why the connection is not there, for people; empty while it is. */
  reason: string;
  /** When `offline`: after how many milliseconds the next try begins. */
  retryMs: number;
}

/** Why something was refused. */
export class TrisyncError extends Error {
  constructor(error: { code: string; message?: string; retry?: boolean } & Record<string, unknown>);
  /**
   * One of the wire's (`bad_request`, `conflict`, `forbidden`, `limit`, `too_large`, `unavailable` … see protocol.md),
   * or of this side: `disconnected` (a request that does not wait was made or lost without a connection), `closed`
   * (the client was closed before the verdict), `gap`.
   */
  code: string;
  /** Whether the same may succeed later. */
  retry: boolean;
  /** With `limit` and `too_large`: which limit, and its value. */
  limit?: string;
  value?: number;
  /** With `conflict`: the key's newest offset (0: there is no such key) and, if it is still kept, its value. */
  offset?: number;
  data?: Json;
  /** With `gap`. */
  reason?: string;
  from?: number;
  to?: number;
}

export interface PublishOptions {
  /** Makes the message the newest word on this key of the channel's state; data `null` deletes the key. */
  key?: string;
  /** Store it only if the key's newest offset is this one (0: there is no such key); else `conflict`. */
  expect?: number;
  /** Apply `data` to the key's value as a JSON Merge Patch (RFC 7396). */
  merge?: boolean;
  /** Deliver to those who are there now, store nothing, and fail with `disconnected` rather than wait. */
  ephemeral?: boolean;
}

/** The server has stored a publish. */
export interface Verdict {
  /** Where; absent for ephemeral messages, and for the repeated verdict on a very old publish. */
  offset?: number;
  /** It had been stored already when it was sent again. */
  duplicate?: boolean;
}

/** A publish that has no final verdict yet. The same object is passed to `queued`, `stored` and `refused`. */
export interface Item {
  readonly seq: number;
  readonly channel: string;
  readonly data: Json;
  readonly key?: string;
  readonly expect?: number;
  /** The log that `expect` is of, if it was known: in another one it is not met. */
  readonly epoch?: string;
  readonly merge?: boolean;
}

export interface Message {
  channel: string;
  /** Its number in the channel; absent if it is ephemeral. */
  offset?: number;
  /** Unix time in milliseconds. */
  time: number;
  /** The name that its publisher gave. It proves nothing. */
  from?: string;
  key?: string;
  data: Json;
}

/**
 * Messages that will not come. `trimmed`: the server keeps `from` to `to` no longer. `missed`: it skipped them without
 * a word, which it never should. `epoch`: the log is another one (a restored backup), and begins again from its
 * beginning: drop what you hold of the channel.
 */
export interface Gap {
  reason: "trimmed" | "missed" | "epoch";
  from?: number;
  to?: number;
}

export interface Member {
  /** An opaque id, the same in all channels; of who has a producer, over reconnects too, until the server restarts. */
  member: string;
  name?: string;
}

export interface Change {
  key: string;
  /** The value now, `undefined` if the key is gone. */
  data: Json | undefined;
  before: Json | undefined;
  /** It holds writes of this client that the server has not confirmed yet. */
  pending: boolean;
}

export interface ClientEvents {
  state: StateEvent;
  /** Something was published, or was found in a queue that this client goes on with. */
  queued: Item;
  stored: { item: Item; offset?: number };
  /** Will not be sent again. */
  refused: { item: Item; error: TrisyncError };
  /** A fault that belongs to no request. An uncaught error if nobody listens. */
  error: TrisyncError;
}

export interface SubscriptionEvents {
  /** The server has answered; messages up to `head` may still come. */
  subscribed: Subscription;
  /** In order, each offset once. */
  message: Message;
  /**
   * Comes before the message behind it. It cannot be overlooked: if somebody listens to `message` and nobody to `gap`,
   * the subscription is closed and the gap is an uncaught error.
   */
  gap: Gap;
  /** `members` has changed. */
  presence: Map<string, Member>;
  /** The subscription was refused. An uncaught error if nobody listens. */
  error: TrisyncError;
}

export interface ReplicaEvents extends SubscriptionEvents {
  /** The whole state is there; again after a gap, and after each reconnect. */
  ready: Replica;
  change: Change;
}

declare class Emitter<Events> {
  /** Calls `listener` with each event of a type, in order, at once. Returns a function that ends that. */
  on<Type extends keyof Events>(type: Type, listener: (event: Events[Type]) => void): () => void;
}

/** A connection that is there, or on its way back, or closed. Made by `connect()`. */
export class Client extends Emitter<ClientEvents> {
  private constructor();
  readonly url: string;
  /** Of the options, or the newest that the server has taken. */
  readonly name: string | undefined;
  readonly state: State;
  readonly reason: string;
  readonly retryMs: number;
  /** What the server calls itself, once it was reached. */
  readonly server: string | undefined;
  /** The server's limits by name, once it was reached. */
  readonly limits: Record<string, number>;
  /** What has no final verdict yet, in order, with that of tabs that are gone. */
  readonly queue: Item[];

  /**
   * Publishes, now or when the connection is back, once, in the order of the calls. Resolves when it is stored.
   *
   * @throws TrisyncError with the server's refusal, or at once: `limit` if the queue is full (nothing is dropped),
   * `too_large`, `bad_json` (half a surrogate pair, nested too deep), `closed`. After `closed` it is still in the
   * store, if that is IndexedDB, and may be stored later.
   * @throws TypeError or RangeError if `data` cannot become JSON (a BigInt, a circle, thousands of levels)
   */
  publish(channel: string, data: Json | undefined, options?: PublishOptions): Promise<Verdict>;

  /** @throws Error if the channel has a subscription or replica of this client already: a channel has one. */
  subscribe(channel: string, options?: SubscribeOptions): Subscription;
  /** @throws Error if the channel has a subscription or replica of this client already: a channel has one. */
  replica(channel: string, options?: SubscribeOptions): Replica;

  /**
   * The newest `limit` messages (100 if not said), or those behind offset `since`; fewer if they are large.
   * @throws TrisyncError, `disconnected` if there is no connection
   */
  history(channel: string, options?: { since?: number; limit?: number }): Promise<History>;
  /**
   * Any request of the wire, for its `ok`.
   * @throws TrisyncError, `disconnected` if there is no connection, `too_large` and `bad_json` as `publish()`
   */
  request(op: string, fields?: Record<string, unknown>): Promise<any>;
  /** Publishes and is seen under another name from now on. A name that is refused is an `error`, and not taken. */
  rename(name: string): void;
  /** Connects at once if offline, and makes an open connection prove that it lives. Done on `online` and when shown. */
  nudge(): void;
  /** Ends for good, and lets go of the queue, which another client may then go on with. */
  close(reason?: string): void;
}

export interface SubscribeOptions {
  /** Begin behind this offset … */
  since?: number;
  /** … of the log with this epoch: both as a subscription had them. */
  epoch?: string;
  /** Begin with the newest so many messages, 1 to 1000: fewer if fewer are kept. With neither, begin at the head. */
  last?: number;
  /** Also tell who is in the channel. */
  presence?: boolean;
}

export interface History {
  messages: Message[];
  /** The channel's head. */
  offset: number;
  /** The newest offset that is no longer kept; 0 if all are. */
  trimmed: number;
  epoch: string;
  /** Whether the channel goes on behind the last of `messages`. */
  more: boolean;
}

/** One channel, read from a place on; resumed by itself after a reconnect. Made by `client.subscribe()`. */
export class Subscription<Events extends SubscriptionEvents = SubscriptionEvents> extends Emitter<Events> {
  protected constructor();
  readonly channel: string;
  /**
   * All up to this one was passed on, or was not asked for; `undefined` until the server has answered. Keep it with
   * `epoch` to resume in a later page.
   */
  readonly offset: number | undefined;
  readonly epoch: string | undefined;
  /** The newest offset known. */
  readonly head: number;
  /** Whether the server is sending: `false` without a connection. */
  readonly live: boolean;
  /** With `presence`: who is here. While offline, who was. */
  readonly members: Map<string, Member>;
  /** With `presence`: this client among the members. */
  readonly member: string | undefined;
  /**
   * Follow no longer, and be no member. A page that is left stays a member for some seconds, as one that may come back;
   * closing at `pagehide` spares others that.
   */
  close(): void;
}

export interface Entry {
  data: Json;
  /** Of the newest confirmed word, as for `expect`; 0 if there is none. */
  offset: number;
  pending: boolean;
}

/**
 * A live copy of a channel's state. Reading is local. What is written shows at once and is sent as by `publish()`: when
 * the server has confirmed it, it stays; when it is refused, it is rolled back to what the server has. Of two writers of
 * one key the later one wins, unless `expect`, `merge` or `update()` is used. Made by `client.replica()`.
 */
export class Replica extends Subscription<ReplicaEvents> {
  /** Resolves when the whole state has come for the first time; rejects when it is refused, or closed before that. */
  readonly ready: Promise<Replica>;
  readonly size: number;
  keys(): IterableIterator<string>;
  /** The value of a key, `undefined` if there is none. Do not change it in place. */
  get(key: string): Json | undefined;
  entry(key: string): Entry | undefined;
  set(key: string, data: Json | undefined, options?: { expect?: number }): Promise<Verdict>;
  delete(key: string, options?: { expect?: number }): Promise<Verdict>;
  /** Applies a JSON Merge Patch (RFC 7396): patches of different members do not disturb each other. */
  merge(key: string, patch: Json, options?: { expect?: number }): Promise<Verdict>;
  /**
   * Replaces a value by what `change` makes of it, so that no other's write is lost: on a conflict `change` is called
   * again with what is there now, until it was the faster one. It may change its argument in place, and returns
   * `undefined` or `null` to delete the key; what it throws is passed on. What it has queued outlives the page, the
   * trying again does not. Numbers beyond 2^53 in the value lose digits, as they do wherever JavaScript reads them.
   */
  update(key: string, change: (data: Json | undefined) => Json | undefined): Promise<Verdict>;
}

/** The publishes of one producer. */
export interface Queue {
  /** Its secret id, 16 to 64 printable characters. No two clients may use one at the same time. */
  producer: string;
  /** The last number given. */
  seq: number;
  items: Item[];
}

/**
 * Where queues are kept. Methods may return promises. Nothing is sent before its `save` has ended, or failed; where it
 * does not open, or not within ten seconds, the queue is in memory.
 */
export interface Store {
  /** What clients that are gone have left: this one sends it as they would have, and adds nothing to it. */
  open(): Queue[] | Promise<Queue[]>;
  /** A new, empty queue, held by this client: its own. */
  create(): Queue | Promise<Queue>;
  /** Keeps an item that was just added to a queue, and the queue's `seq`, in one step. */
  save(queue: Queue, item: Item): void | Promise<void>;
  /** An item is settled. */
  remove(queue: Queue, item: Item): void | Promise<void>;
  /** A queue is empty and not needed any more. */
  forget(queue: Queue): void | Promise<void>;
  /** Lets go of all queues. */
  close(): void;
}

/** Keeps nothing. */
export class MemoryStore implements Store {
  open(): Queue[];
  create(): Queue;
  save(): void;
  remove(): void;
  forget(): void;
  close(): void;
}

/** Keeps the queues for one server in a browser; which tab holds which, Web Locks tell. */
export class IndexedDbStore implements Store {
  constructor(url: string);
  open(): Promise<Queue[]>;
  create(): Promise<Queue>;
  save(queue: Queue, item: Item): Promise<void>;
  remove(queue: Queue, item: Item): Promise<void>;
  forget(queue: Queue): Promise<void>;
  close(): void;
}
