// @ts-check
// The page: one channel's log, a composer, and the state of the connection. Here is what people see and
// touch; how messages get here and are neither lost nor doubled is connection.js's matter.
//
// For tests, these stay as they are:
//   #status[data-state=connecting|online|offline], #reconnect (while offline), #head (text: the head's offset)
//   #channel, #name (inputs; Enter or leaving them commits), #composer (textarea), #send, #note (its errors)
//   #log (scrolls), in it .row[data-offset] with .sender and .text, marked .own; .row.pending and .row.failed
//   have no offset; .notice[data-kind=trimmed|missed|replaced|error]; #earlier and #newer are its buttons

import { Connection, FIRST_LOOK, isChannelName, isPersonName } from "./connection.js";
/** @import { Gap, Item, Message, State } from "./connection.js" */

const ROWS_MAX = 2000; // in the document; older ones are a "Load earlier" away
const TEXT_MAX = 4000; // characters of one message shown unasked
const FLAT_JSON_MAX = 72; // characters of JSON that stay on one line
const SAME_BREATH_MS = 5 * 60_000; // one person's messages closer than this share a heading
const BOTTOM_PX = 48; // closer to the end than this is "at the end"
const HUES = 6; // colours for names, see style.css
const CHANNEL_RULE = "Names have 1 to 200 letters, digits and _ - . : / @ # =, and $ never comes first.";

const clockTime = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const fullTime = new Intl.DateTimeFormat([], { dateStyle: "full", timeStyle: "medium" });
const dayName = new Intl.DateTimeFormat([], { weekday: "long", day: "numeric", month: "long", year: "numeric" });

/** @returns {any} the element, whose kind index.html decides */
const $ = (/** @type {string} */ id) => document.getElementById(id);

/**
 * An element with a class and, as text and never as markup, its content.
 * @param {string} tag @param {string} className @param {string} [text]
 */
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** @param {string} className @param {string} text @param {() => void} act */
function button(className, text, act) {
  const made = element("button", className, text);
  made.addEventListener("click", act);
  return made;
}

// -- one row

/** What a row says. @param {unknown} data */
function textElement(data) {
  const isText = typeof data === "string";
  const flat = isText ? data : JSON.stringify(data);
  const whole = isText || flat.length <= FLAT_JSON_MAX ? flat : JSON.stringify(data, null, 2);
  const made = element("div", isText ? "text" : "text json", whole.slice(0, TEXT_MAX));
  made.dir = "auto";
  if (whole.length > TEXT_MAX) {
    const showAll = () => (made.textContent = whole);
    made.append("… ", button("more", `Show all ${whole.length.toLocaleString()} characters`, showAll));
  }
  return made;
}

/** The same name has the same colour on everybody's screen. @param {string} name */
function hueOf(name) {
  let sum = 0;
  for (const character of name) sum = (sum * 31 + (character.codePointAt(0) ?? 0)) % 9973;
  return `hue-${sum % HUES}`;
}

/** @param {Partial<Message>} message @param {boolean} own */
function messageRow({ offset, time, from, key, data }, own) {
  const row = element("li", own ? "row own" : "row");
  const when = time === undefined ? "" : fullTime.format(time);
  const gutter = element("span", "offset", offset === undefined ? "·" : String(offset));
  gutter.title = offset === undefined ? "not stored" : when;
  const heading = element("div", "heading");
  const clock = element("time", "time", time === undefined ? "" : clockTime.format(time));
  clock.title = when;
  const sender = element("bdi", `sender ${from ? hueOf(from) : "nameless"}`, from ?? "anonymous");
  heading.append(sender, element("span", "you", "you"), clock);
  row.append(gutter, heading);
  if (key !== undefined) row.append(element("code", "key", key));
  row.append(textElement(data));
  if (offset !== undefined) row.dataset.offset = String(offset);
  row.dataset.from = from ?? "";
  if (time !== undefined) Object.assign(row.dataset, { time, day: dayName.format(time) });
  return row;
}

/** @param {Element | null} row @returns {HTMLElement | null} the nearest message at or above it */
function messageFrom(row) {
  while (row && !row.classList.contains("row")) row = row.previousElementSibling;
  return /** @type {HTMLElement | null} */ (row);
}

/**
 * Gives a row its own heading and day, or leaves them to what stands above.
 * @param {any} row @param {Element | null} above
 */
function joinTo(row, above) {
  if (!row?.classList.contains("row")) return;
  const { day, time, from } = row.dataset;
  const before = messageFrom(above)?.dataset;
  const sameDay = day === undefined || day === before?.day;
  const closeBy = above?.classList.contains("row") && Number(time) - Number(before?.time) < SAME_BREATH_MS;
  row.classList.toggle("new-day", !sameDay);
  row.classList.toggle("continued", Boolean(sameDay && closeBy && from === before?.from));
}

// -- the log

/**
 * The rows of one channel. What arrives is put into the document once a frame, so that a flood costs no
 * more than what can be seen of it.
 */
class Log {
  channel = "";
  #scroller = $("log");
  #messages = $("messages");
  #outbox = $("outbox");
  #newer = $("newer");
  /** @type {(() => HTMLElement)[]} rows still to be made */
  #arriving = [];
  #scheduled = 0;
  #following = true; // the reader is at the end, and wants to stay there
  #unread = 0;
  #last = 0; // the newest offset in the document
  #own = new Set(); // offsets that this page published
  /** @type {Map<Item, {row: HTMLElement, offset: number}>} published, and not in the log as far as is known */
  #pending = new Map();

  /** @param {() => void} onChange called after rows came or went */
  constructor(onChange) {
    this.onChange = onChange;
    this.#scroller.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    document.addEventListener("visibilitychange", () => this.#showUnread());
    this.#newer.addEventListener("click", () => this.toEnd());
    const resized = new ResizeObserver(() => this.#following && this.toEnd());
    for (const part of [this.#scroller, this.#outbox]) resized.observe(part);
  }

  /** The oldest offset shown, or 0. */
  get first() {
    return Number(this.#messages.querySelector("[data-offset]")?.dataset.offset ?? 0);
  }

  /** Starts empty, but for what waits to be sent to `channel`. @param {string} channel */
  clear(channel) {
    this.channel = channel;
    this.#arriving = [];
    this.#last = 0;
    this.#own.clear();
    this.#messages.ariaBusy = "true"; // what was said before is not to be read aloud
    this.#messages.replaceChildren();
    this.#outbox.replaceChildren();
    for (const [item, { row, offset }] of this.#pending) {
      if (offset) this.#pending.delete(item); // stored: it comes with the log
      else if (item.channel === channel) this.#outbox.append(row);
    }
    this.onChange();
    this.toEnd();
  }

  /** @param {Message} message */
  add(message) {
    this.#arrive(() => {
      this.#last = message.offset ?? this.#last;
      if (!this.#following || document.hidden) this.#unread += 1;
      return messageRow(message, this.#isOwn(message));
    });
  }

  /** A line of the page's own between the messages. @param {string} kind @param {string} text */
  notice(kind, text) {
    this.#arrive(() => {
      const row = element("li", "notice", text);
      row.dataset.kind = kind;
      return row;
    });
  }

  /** Puts earlier messages, ascending, above the first. @param {Message[]} messages */
  prepend(messages) {
    const rows = messages.map((message) => messageRow(message, this.#isOwn(message)));
    const formerFirst = this.#messages.firstElementChild;
    this.#keepingPlace(() => {
      this.#messages.prepend(...rows);
      for (const row of [...rows, formerFirst]) joinTo(row, row?.previousElementSibling);
      this.onChange();
    });
  }

  /** Shows a publish at the end until it is stored or refused. @param {Item} item @param {string} from */
  addPending(item, from) {
    const row = messageRow({ from, time: Date.now(), data: item.data }, true);
    row.classList.add("pending");
    row.append(element("span", "label"));
    this.#pending.set(item, { row, offset: 0 });
    this.#outbox.append(row);
    joinTo(row, row.previousElementSibling ?? this.#messages.lastElementChild);
    this.toEnd();
  }

  /** @param {string} text what the pending ones are waiting for */
  labelPending(text) {
    for (const { row } of this.#pending.values()) {
      const label = row.querySelector(".label");
      if (label) label.textContent = text;
    }
  }

  /**
   * The pending row stays until the message itself takes its place.
   * @param {Item} item @param {number | undefined} offset
   */
  stored(item, offset) {
    const pending = this.#pending.get(item);
    if (!pending) return;
    if (offset && item.channel === this.channel) {
      pending.offset = offset;
      this.#own.add(offset);
      this.#messages.querySelector(`[data-offset="${offset}"]`)?.classList.add("own");
      this.#removeArrived();
    } else this.#remove(item);
  }

  /** @param {Item} item @param {string} reason @param {(item: Item) => void} edit */
  refused(item, reason, edit) {
    const row = this.#pending.get(item)?.row;
    if (!row) return;
    row.classList.replace("pending", "failed");
    row.querySelector(".label")?.remove();
    const failure = element("p", "failure", `Not sent: ${reason} `);
    failure.append(button("", "Edit", () => (this.#remove(item), edit(item))));
    row.append(failure);
  }

  toEnd() {
    this.#following = true;
    this.#scroller.scrollTop = this.#scroller.scrollHeight;
    this.#showUnread();
  }

  /** @param {() => HTMLElement} make */
  #arrive(make) {
    this.#arriving.push(make);
    if (this.#arriving.length > 2 * ROWS_MAX) {
      this.#arriving.splice(0, ROWS_MAX); // nobody could have read them, and "Load earlier" has them
      this.#messages.replaceChildren();
    }
    // A hidden page gets no frames; a slow timer keeps it going.
    this.#scheduled ||= setTimeout(() => this.#flush(), 100);
    if (this.#arriving.length === 1) requestAnimationFrame(() => this.#flush());
  }

  #flush() {
    clearTimeout(this.#scheduled);
    this.#scheduled = 0;
    const batch = document.createDocumentFragment();
    let above = this.#messages.lastElementChild;
    for (const make of this.#arriving.splice(0)) {
      const row = make();
      joinTo(row, above);
      batch.append((above = row));
    }
    this.#messages.append(batch);
    this.#removeArrived();
    this.#trim();
    joinTo(this.#outbox.firstElementChild, this.#messages.lastElementChild);
    this.onChange();
    if (this.#following) this.toEnd();
    else this.#showUnread();
    this.#messages.ariaBusy = "false";
  }

  #trim() {
    // Someone who reads what is old should not see it vanish, within reason.
    const spare = this.#messages.childElementCount - (this.#following ? ROWS_MAX : 2 * ROWS_MAX);
    if (spare <= 0) return;
    const cut = () => {
      for (let count = spare; count > 0; count--) this.#messages.firstElementChild.remove();
      joinTo(this.#messages.firstElementChild, null);
    };
    if (this.#following) cut();
    else this.#keepingPlace(cut);
  }

  #removeArrived() {
    for (const [item, { offset }] of this.#pending) if (offset && offset <= this.#last) this.#remove(item);
  }

  /** @param {Item} item */
  #remove(item) {
    this.#pending.get(item)?.row.remove();
    this.#pending.delete(item);
  }

  /** Known from its offset; after a reload, from the name. @param {Message} message */
  #isOwn({ offset, from }) {
    return this.#own.has(offset) || from === $("name").value;
  }

  /** Changes what is above without moving what is being read. @param {() => void} change */
  #keepingPlace(change) {
    const fromEnd = this.#scroller.scrollHeight - this.#scroller.scrollTop;
    change();
    this.#scroller.scrollTop = this.#scroller.scrollHeight - fromEnd;
  }

  #onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    this.#following = scrollHeight - scrollTop - clientHeight < BOTTOM_PX;
    this.#showUnread();
  }

  #showUnread() {
    if (this.#following && !document.hidden) this.#unread = 0;
    const count = this.#unread;
    this.#newer.hidden = this.#following || count === 0;
    this.#newer.textContent = `${count} new ${count === 1 ? "message" : "messages"}`;
    document.title = `${count ? `(${count}) ` : ""}#${this.channel} · trisync`;
  }
}

// -- the page

/** Storage may be forbidden; then the page just forgets. @param {() => string | null | void} use */
function tryStorage(use) {
  try {
    return use() ?? null;
  } catch {
    return null;
  }
}

/** A chosen name is remembered for good, a guest's for as long as the tab is open. */
function rememberedName() {
  const chosen = tryStorage(() => localStorage.getItem("name")) ?? tryStorage(() => sessionStorage.getItem("guest"));
  if (chosen !== null && isPersonName(chosen)) return chosen;
  const guest = `guest-${100 + Math.floor(Math.random() * 900)}`;
  tryStorage(() => sessionStorage.setItem("guest", guest));
  return guest;
}

/** The channel that the address asks for; null if that is no channel's name. */
function channelInHash() {
  const hash = location.hash.slice(1);
  if (hash === "") return "lobby";
  return isChannelName(hash) ? hash : null;
}

const composer = $("composer");
const channelInput = $("channel");
const nameInput = $("name");
nameInput.value = rememberedName();

let subscribed = false;
let noneEarlier = false; // the server has nothing before the first message
let retryAt = 0;

const log = new Log(showTop);
const connection = new Connection({
  url: `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/`,
  name: nameInput.value,
  channel: channelInHash() ?? "lobby",
  handlers: {
    onState(state, retryInMs) {
      $("status").dataset.state = state;
      $("state").textContent = { connecting: "Connecting", online: "Online", offline: "Offline" }[state];
      $("reconnect").hidden = state !== "offline";
      retryAt = Date.now() + retryInMs;
      showCountdown();
      labelPending();
    },
    onServer(server) {
      $("server").textContent = server.replace(/^trisync[ /]*/i, "");
    },
    onSubscribed(_head, epoch) {
      subscribed = true;
      $("head-note").title = `The newest message of this channel. Log (epoch) ${epoch.slice(0, 8)}`;
      showHead();
      showTop();
    },
    onMessage(message) {
      log.add(message);
      showHead();
    },
    onGap({ reason, from, to }) {
      const range = from === to ? `${to}` : `${from}–${to}`;
      if (reason === "replaced") {
        noneEarlier = false;
        log.clear(connection.channel);
        log.notice(reason, "The log was replaced; starting again");
      } else log.notice(reason, reason === "missed" ? `Missed ${range}` : `${range} are no longer kept`);
    },
    onStored: (item, offset) => log.stored(item, offset),
    onRefused: (item, reason) => log.refused(item, reason, takeBack),
    onNotice: (text) => log.notice("error", text),
  },
});

// -- what is shown of the connection and the channel

function showCountdown() {
  const seconds = Math.ceil((retryAt - Date.now()) / 1000);
  const offline = $("status").dataset.state === "offline";
  $("countdown").textContent = offline && seconds > 0 ? `in ${seconds} s` : "";
}

function labelPending() {
  log.labelPending($("status").dataset.state === "online" ? "sending…" : "queued");
}

function showHead() {
  $("head").textContent = String(connection.head);
}

/** What stands above the first message: a way further back, or why there is none. */
function showTop() {
  const { first, channel } = log;
  $("earlier").hidden = first <= 1 || noneEarlier;
  let text = "";
  if (first === 1) text = `This is where #${channel} begins.`;
  else if (noneEarlier) text = "What was before is no longer kept.";
  else if (first === 0 && subscribed && connection.head === 0) text = `Nothing has been said in #${channel} yet.`;
  $("beginning").textContent = text;
}

async function loadEarlier() {
  const before = log.first;
  const start = Math.max(0, before - 1 - FIRST_LOOK);
  /** @type {Message[]} */
  const earlier = [];
  $("earlier").disabled = true;
  try {
    for (let since = start; since < before - 1; since = earlier[earlier.length - 1].offset ?? before) {
      // A page of large messages may be cut short, so this asks until the gap is closed.
      const page = await connection.history(since, before - 1 - since);
      const wanted = page.filter(({ offset }) => Number(offset) < before);
      if (log.first !== before) return; // another channel, or another log, by now
      if (wanted.length === 0) break;
      earlier.push(...wanted);
    }
    noneEarlier = (earlier[0]?.offset ?? before) > start + 1;
    log.prepend(earlier);
  } catch (error) {
    showNote(`Earlier messages could not be loaded. ${error.message}`);
  } finally {
    $("earlier").disabled = false;
  }
}

// -- what people do

/** @param {string} text */
function showNote(text) {
  $("note").textContent = text;
}

function publish() {
  const text = composer.value.toWellFormed?.() ?? composer.value; // JSON has no place for half a character
  if (text.trim() === "") return;
  try {
    log.addPending(connection.publish(text), nameInput.value);
    labelPending();
    composer.value = "";
    showNote("");
  } catch (error) {
    showNote(error.message);
  }
  fitComposer();
}

/** Puts a refused message back where it can be changed. @param {Item} item */
function takeBack({ data }) {
  composer.value = [data, composer.value].filter(Boolean).join("\n");
  fitComposer();
  composer.focus();
}

function fitComposer() {
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight + 2}px`; // and its border
}

/** @param {string} channel */
function showChannel(channel) {
  channelInput.value = channel;
  composer.placeholder = `Message #${channel}`;
  $("head").textContent = "–";
  $("help-join").textContent = `/join ${channel}`;
  const examples = [{ op: "subscribe", channel, last: 10 }, { op: "publish", channel, data: "hello" }];
  $("help-json").textContent = examples.map((example) => JSON.stringify(example)).join("\n");
  subscribed = noneEarlier = false;
  log.clear(channel);
}

function followHash() {
  const channel = channelInHash();
  if (channel === null) {
    showNote(`“${location.hash.slice(1)}” cannot be a channel. ${CHANNEL_RULE}`);
    history.replaceState(null, "", `#${connection.channel}`);
  } else if (channel !== connection.channel) {
    connection.join(channel);
    showChannel(channel);
    showNote("");
  }
}

function commitChannel() {
  const channel = channelInput.value.trim().replace(/^#/, "") || "lobby";
  if (!isChannelName(channel)) {
    showNote(`“${channel}” cannot be a channel. ${CHANNEL_RULE}`);
    channelInput.value = connection.channel;
    return;
  }
  channelInput.value = channel;
  location.hash = channel;
}

function commitName() {
  const name = nameInput.value.trim();
  if (isPersonName(name)) {
    tryStorage(() => localStorage.setItem("name", name));
    connection.rename(name);
    showNote("");
  } else showNote("A name has 1 to 64 characters, and no control characters.");
  nameInput.value = isPersonName(name) ? name : rememberedName();
}

/** Enter commits, Escape takes back. @param {HTMLInputElement} input @param {() => void} commit */
function onCommit(input, commit) {
  let before = input.value;
  input.addEventListener("focus", () => (before = input.value));
  input.addEventListener("change", commit);
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") input.value = before;
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // or the Enter would go on into the composer
    composer.focus(); // leaving the input is what commits it
  });
}

onCommit(channelInput, commitChannel);
onCommit(nameInput, commitName);
window.addEventListener("hashchange", followHash);
$("send").addEventListener("click", () => (publish(), composer.focus()));
$("earlier").addEventListener("click", loadEarlier);
$("reconnect").addEventListener("click", () => connection.nudge());
window.addEventListener("online", () => connection.nudge());
document.addEventListener("visibilitychange", () => document.hidden || connection.nudge());
setInterval(showCountdown, 250);

composer.addEventListener("input", fitComposer);
composer.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return; // an input method's Enter is its own
  event.preventDefault();
  publish();
});

window.addEventListener("beforeunload", (event) => {
  if (connection.unsettled > 0) event.preventDefault();
});

document.addEventListener("click", (event) => {
  if (!$("help").contains(/** @type {Node} */ (event.target))) $("help").open = false;
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") $("help").open = false;
});

const tcpPort = document.querySelector("meta[name=trisync-tcp-port]")?.getAttribute("content");
const host = location.hostname.replace(/^\[|\]$/g, ""); // netcat wants a v6 address without its brackets
$("help-netcat").textContent = `nc ${host} ${tcpPort}`;

if (channelInHash() === null) followHash();
showChannel(connection.channel);
connection.start();
