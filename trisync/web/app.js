// @ts-check
// The page: one channel at a time, its log, its document and who is there, and what is known of the connection. How
// messages get here and are neither lost nor doubled is trisync.js's matter; the log, the document and the people are
// drawn by log.js, board.js and people.js.
//
// For tests, these stay as they are:
//   #status[data-state=connecting|online|offline|closed], #reconnect (until online again), #head (the head's offset),
//   #channel, #name (inputs; Enter or leaving them commits), #composer (textarea), #send, #note (its errors),
//   #banner (what waits), body[data-view=chat|board] with #show-chat and #show-board on narrow screens

import { Board } from "./board.js";
import {
  $, counted, focusLog, isChannelName, isComposing, isPersonName, onCommit, rememberedName, rememberGuest, rememberName,
  wellFormed,
} from "./dom.js";
import { Log } from "./log.js";
import { showPeople } from "./people.js";
import { gapText } from "./rows.js";
import { connect, IndexedDbStore } from "./trisync.js";
/** @import { Item, Message, Queue, Replica } from "./trisync.js" */

const FIRST_LOOK = 50; // messages shown when a channel is opened
const CHANNEL_RULE = "Names have 1 to 200 letters, digits and _ - . : / @ # =, and $ never comes first.";
const STATES = { connecting: "Connecting", online: "Online", offline: "Offline", closed: "Closed" };

const composer = $("composer");
const channelInput = $("channel");
const nameInput = $("name");
nameInput.value = rememberedName();

const log = new Log(showTop, () => client.name);
const board = new Board(() => (client.state === "closed" ? client.reason : ""));
const url = `${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/`;
let keepsQueue = false;

/** Tells whether the queue is kept: storage may be forbidden, full, or late. */
class WatchedStore extends IndexedDbStore {
  async create() {
    const queue = await super.create();
    keepsQueue = true;
    return queue;
  }

  /** @param {Queue} queue @param {Item} item */
  async save(queue, item) {
    try {
      await super.save(queue, item);
    } catch (error) {
      keepsQueue = false;
      showWaitingSoon();
      throw error;
    }
  }

  close() {
    keepsQueue &&= client.state === "closed"; // else it goes on without
    super.close();
  }
}

const client = connect(url, {
  name: nameInput.value,
  debug: new URLSearchParams(location.search).has("debug"),
  store: new WatchedStore(url),
});

/** @type {Replica | any} the one that is shown */
let channel;
let keptFrom = 1; // the oldest message that the server may still have
let gapAbove = ""; // what the last gap took, for when its notice has left the log
let retryAt = 0;
let waitingTimer = 0;

// -- the connection and what waits for it

client.on("state", ({ state, retryMs }) => {
  $("status").dataset.state = state;
  $("state").ariaLive = client.reason ? "off" : "polite"; // the banner says once what each try would say again
  $("state").textContent = STATES[state];
  $("server").textContent = (client.server ?? "").replace(/^trisync[ /]*/i, "");
  const hadFocus = document.activeElement === $("reconnect");
  $("reconnect").hidden = client.reason === ""; // hidden at each try, it would lose the focus
  if (hadFocus && state === "online") focusLog();
  if (state === "closed") Object.assign($("reconnect"), { textContent: "reload", ariaLabel: "Reload the page" });
  retryAt = performance.now() + retryMs;
  showCountdown();
  log.labelPending(pendingLabel());
  showWaiting();
  if (channel) showPeople(channel, channel.live);
});

client.on("queued", (item) => {
  if (item.key === undefined) log.addPending(item, nameInput.value, pendingLabel());
  showWaitingSoon();
});

client.on("stored", ({ item, offset }) => {
  log.stored(item, offset);
  showWaitingSoon();
});

client.on("refused", ({ item, error }) => {
  if (item.key === undefined) log.refused(item, error.message, takeBack);
  else board.refused(item, error);
  if (item.channel !== channel.channel) {
    const why = error.code === "conflict" ? "somebody else was faster, and there you are asked" : error.message;
    showNote(`Something for #${item.channel} was refused: ${why}`);
  }
  showWaitingSoon();
});

client.on("error", (error) => log.notice("error", error.message));

const pendingLabel = () => (client.state === "online" ? "sending…" : "queued");

function showCountdown() {
  const seconds = Math.ceil((retryAt - performance.now()) / 1000);
  $("countdown").textContent = client.state === "offline" && seconds > 0 ? `in ${seconds} s` : "";
}

/** A full queue comes and goes at once: it is not to be counted for each of its items. */
function showWaitingSoon() {
  waitingTimer ||= setTimeout(showWaiting, 50);
}

/** Says what is queued, and whether this page may be closed meanwhile. */
function showWaiting() {
  clearTimeout(waitingTimer);
  waitingTimer = 0;
  const waiting = client.queue.length;
  let text = "";
  if (client.state === "closed") text = `${STATES.closed}: ${client.reason}.`;
  else if (client.reason) text = `${STATES.offline}: ${client.reason}.`; // the same at each try: it is read aloud
  if (waiting > 0 && client.state !== "online") {
    const where = keepsQueue ? "kept on this device, also if you close this page" : "lost if you close this page";
    text += ` ${counted(waiting, "change waits", "changes wait")} to be sent; ${where}.`;
    rememberGuest();
  } else if (client.reason && client.state !== "closed") text += " You can go on writing.";
  if ($("banner").textContent !== text.trim()) $("banner").textContent = text.trim();
}

// -- the channel

/** Reads another channel from now on. @param {string} name */
function open(name) {
  channel?.close();
  keptFrom = 1;
  gapAbove = "";
  channel = client.replica(name, { last: FIRST_LOOK, presence: true });
  showChannel(name);
  channel.on("subscribed", () => (showHead(), showTop(), lookWhetherEmptied()));
  channel.on("message", onMessage);
  channel.on("gap", onGap);
  channel.on("presence", () => showPeople(channel, true));
  channel.on("error", (/** @type {Error} */ error) => log.notice("error", error.message));
  board.show(channel);
  showPeople(channel, false);
}

/** @param {Message} message */
function onMessage(message) {
  log.add(message);
  board.sign(message, client.name);
  showHead();
}

/** @param {import("./trisync.js").Gap} gap */
function onGap(gap) {
  if (gap.reason === "epoch") {
    keptFrom = 1;
    gapAbove = "";
    log.clear(channel.channel);
  } else if (gap.reason === "trimmed") {
    const [from, to] = [Number(gap.from), Number(gap.to)];
    keptFrom = to + 1;
    gapAbove = `${gapText(gap)}.`;
    log.forget(from, to);
  }
  log.notice(gap.reason, gapText(gap));
}

/** @param {string} name */
function showChannel(name) {
  channelInput.value = name;
  composer.placeholder = `Message #${name}`;
  $("head").textContent = "–";
  $("help-join").textContent = `/join ${name}`;
  const examples = [{ op: "subscribe", channel: name, last: 10 }, { op: "publish", channel: name, data: "hello" }];
  $("help-json").textContent = examples.map((example) => JSON.stringify(example)).join("\n");
  const program = [`import { connect } from "/trisync.js";`, `connect("${url}").publish("${name}", "hello");`];
  $("help-module").textContent = program.join("\n");
  log.clear(name);
  for (const item of client.queue) {
    if (item.key === undefined) log.addPending(item, nameInput.value, pendingLabel());
  }
}

function showHead() {
  $("head").textContent = String(channel.head);
  $("head-note").title = `The newest message of this channel. Log (epoch) ${channel.epoch?.slice(0, 8)}`;
}

/** What stands above the first message: a way further back, or why there is none. */
function showTop() {
  const { first } = log;
  const name = `#${log.channel}`;
  const head = channel?.head ?? 0;
  $("earlier").hidden = first <= keptFrom;
  let text = "";
  if (first === 0 && head > 0 && keptFrom > head) text = `${name} is empty: what was said here is no longer kept.`;
  else if (first === 0 && head === 0 && channel?.live) text = `Nothing has been said in ${name} yet.`;
  else if (first === 1) text = `This is where ${name} begins.`;
  else if (first >= keptFrom && gapAbove && !log.showsGap) text = gapAbove;
  else if (first > 0 && first <= keptFrom) text = "What was before is no longer kept.";
  $("beginning").textContent = text;
  // What was said before is not to be read aloud; what comes to where nothing was is.
  $("messages").ariaBusy = String(text === "" && !$("messages").hasChildNodes());
}

/** A channel that has had messages and sends none may have none any more. */
async function lookWhetherEmptied() {
  const opened = channel;
  if (log.first !== 0 || opened.head === 0) return;
  const { trimmed } = await client.history(opened.channel, { limit: 1 }).catch(() => ({ trimmed: 0 }));
  if (opened !== channel) return;
  keptFrom = Math.max(keptFrom, trimmed + 1);
  showTop();
}

async function loadEarlier() {
  if ($("earlier").ariaDisabled === "true") return;
  const before = log.first;
  const start = Math.max(0, before - 1 - FIRST_LOOK);
  /** @type {Message[]} */
  const earlier = [];
  $("earlier").ariaDisabled = "true"; // disabled, it would lose the focus
  try {
    for (let since = start; since < before - 1; since = earlier[earlier.length - 1].offset ?? before) {
      // A page of large messages may be cut short, so this asks until there is no hole.
      const { messages, epoch, trimmed } = await client.history(channel.channel, { since, limit: before - 1 - since });
      const wanted = messages.filter(({ offset }) => Number(offset) < before);
      if (log.first !== before || epoch !== channel.epoch) return; // another channel, or another log, by now
      keptFrom = Math.max(keptFrom, trimmed + 1);
      if (wanted.length === 0) break;
      earlier.push(...wanted);
    }
    const hadFocus = document.activeElement === $("earlier");
    log.prepend(earlier);
    showTop();
    if (hadFocus && $("earlier").hidden) focusLog();
  } catch (error) {
    showNote(`Earlier messages could not be loaded. ${error.message}`);
  } finally {
    $("earlier").ariaDisabled = "false";
  }
}

// -- what people do

/** @param {string} text */
function showNote(text) {
  $("note").textContent = text;
}

async function publish() {
  const text = wellFormed(composer.value);
  if (text.trim() === "") return;
  if (client.state === "closed") return showNote(`Not sent: ${client.reason}.`);
  const publishing = client.publish(channel.channel, text);
  composer.value = "";
  showNote("");
  fitComposer();
  try {
    await publishing;
  } catch (error) {
    if (error.code !== "limit" && error.code !== "too_large") return; // the log shows it
    showNote(`Not sent: ${error.message}`);
    takeBack({ data: text });
  }
}

/** Puts a refused message back where it can be changed. @param {{data: any}} item */
function takeBack({ data }) {
  composer.value = [data, composer.value].filter(Boolean).join("\n");
  fitComposer();
  composer.focus();
}

function fitComposer() {
  const line = composer.parentElement;
  line.style.height = `${line.offsetHeight}px`; // or the log would move, as if somebody had scrolled it
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight + 2}px`; // and its border
  line.style.height = "";
}

/** What stands behind the address's #, as somebody wrote it. */
function askedHash() {
  const hash = location.hash.slice(1);
  try {
    return decodeURIComponent(hash);
  } catch {
    return hash;
  }
}

/** The channel that the address asks for; null if that is no channel's name. */
function channelInHash() {
  const hash = askedHash();
  if (hash === "") return "lobby";
  return isChannelName(hash) ? hash : null;
}

function followHash() {
  const name = channelInHash();
  if (name === null) {
    showNote(`“${askedHash()}” cannot be a channel. ${CHANNEL_RULE}`);
    if (channel) history.back(); // or it would lead here again
    else history.replaceState(null, "", "#lobby");
  } else if (name !== channel.channel) {
    open(name);
    showNote("");
  }
}

function commitChannel() {
  const name = channelInput.value.trim().replace(/^#/, "") || "lobby";
  if (!isChannelName(name)) {
    showNote(`“${name}” cannot be a channel. ${CHANNEL_RULE}`);
    channelInput.value = channel.channel;
    return;
  }
  channelInput.value = name;
  location.hash = name;
}

function commitName() {
  const name = nameInput.value.trim();
  if (isPersonName(name)) {
    rememberName(name);
    client.rename(name);
    showNote("");
  } else showNote("A name has 1 to 64 characters, and no control characters.");
  nameInput.value = isPersonName(name) ? name : rememberedName();
}

/** The names may not fit into their line. */
function togglePeople() {
  const isOpen = $("people").toggleAttribute("data-open");
  $("people-title").ariaExpanded = String(isOpen);
}

/** On narrow screens one of the two is shown. @param {"chat" | "board"} view */
function showView(view) {
  const wasHidden = $("log").clientHeight === 0;
  document.body.dataset.view = view;
  for (const each of ["chat", "board"]) $(`show-${each}`).ariaPressed = String(each === view);
  if (view === "chat" && wasHidden) log.toEnd();
}

onCommit(channelInput, commitChannel, () => composer.focus());
onCommit(nameInput, commitName, () => composer.focus());
window.addEventListener("hashchange", followHash);
$("people-title").addEventListener("click", togglePeople);
$("skip").addEventListener("click", () => (showView("chat"), composer.focus()));
$("show-chat").addEventListener("click", () => showView("chat"));
$("show-board").addEventListener("click", () => showView("board"));
$("send").addEventListener("click", () => (publish(), composer.focus()));
$("earlier").addEventListener("click", loadEarlier);
$("reconnect").addEventListener("click", () => (client.state === "closed" ? location.reload() : client.nudge()));
setInterval(showCountdown, 250);

composer.addEventListener("input", fitComposer);
window.addEventListener("pageshow", fitComposer); // who comes back finds what they had written
composer.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
  if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
  event.preventDefault();
  publish();
});

window.addEventListener("beforeunload", (event) => {
  if (client.queue.length > 0 && !keepsQueue) event.preventDefault();
});
// What comes next is another member: this one is not to be awaited. A page that only sleeps comes back as it was.
window.addEventListener("pagehide", ({ persisted }) => persisted || channel?.close());

document.addEventListener("click", (event) => {
  if (!$("help").contains(/** @type {Node} */ (event.target))) $("help").open = false;
});
document.addEventListener("keydown", (event) => {
  const { activeElement } = document;
  if (event.key !== "Escape" || !$("help").open) return;
  $("help").open = false;
  if (activeElement === document.body || $("help").contains(activeElement)) $("help-title").focus();
});

const tcpPort = document.querySelector("meta[name=trisync-tcp-port]")?.getAttribute("content");
const host = location.hostname.replace(/^\[|\]$/g, ""); // netcat wants a v6 address without its brackets
$("help-netcat").textContent = `nc ${host} ${tcpPort}`;

const asked = channelInHash();
if (asked === null) followHash();
open(asked ?? "lobby");
if (!matchMedia("(hover: none)").matches) composer.focus({ preventScroll: true }); // a phone's keyboard hides the log
