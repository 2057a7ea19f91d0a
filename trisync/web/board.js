// @ts-check
// The shared document: a channel's state, one line a key, edited in place. Items of a list are objects with a `text`
// and `done`; any other value is shown as JSON and can be edited as that. What is typed is compared with what others
// wrote meanwhile, so that nobody's words are replaced unseen.
//
// For tests, these stay as they are:
//   #entries > .entry[data-key], marked .pending, with .value (textarea), .done (checkbox) and .remove;
//   .conflict with .mine and .theirs; #add, #add-text, #board-summary, #board-note

import { $, button, counted, element, hueOf, isComposing, isolated, newItemKey, wellFormed } from "./dom.js";
/** @import { Entry, Item, Json, Message, Replica, TrisyncError } from "./trisync.js" */

const SHOWN_MAX = 300; // lines in the document; a state may have a million keys
const FLASH_MS = 1200; // how long a change by somebody else stands out

/** @param {Json | undefined} data @returns {data is {text: string, done?: boolean}} */
const isItem = (data) => typeof (/** @type {any} */ (data)?.text) === "string";

/** What an input shows of a value. @param {Json | undefined} data */
function valueText(data) {
  if (data === undefined) return "";
  if (isItem(data)) return data.text;
  return typeof data === "string" ? data : JSON.stringify(data);
}

/** A value as somebody typed it: JSON, or else text. @param {string} text @param {Json} before @returns {Json} */
function parsed(text, before) {
  if (typeof before === "string") return text;
  try {
    const data = JSON.parse(text);
    const losesDigits = typeof data === "number" && Math.abs(data) > Number.MAX_SAFE_INTEGER;
    return losesDigits ? text : data;
  } catch {
    return text;
  }
}

/** One key's line. It draws what it is told, except over what is being typed. */
class Line {
  #board;
  #key;
  /** @type {Entry | undefined} what was there when typing began */
  #before;
  /** What the input shows of that: it has line ends of its own. */
  #shown = "";
  #offset = 0;
  #asked = ""; // what somebody typed and is asked about
  #isItem;

  /** @param {Board} board @param {string} key @param {Entry} entry */
  constructor(board, key, entry) {
    this.#board = board;
    this.#key = key;
    this.#isItem = isItem(entry.data);
    this.row = element("li", this.#isItem ? "entry item" : "entry");
    this.row.dataset.key = key;
    this.done = /** @type {HTMLInputElement} */ (element("input", "done"));
    this.done.type = "checkbox";
    this.value = /** @type {HTMLTextAreaElement} */ (element("textarea", "value"));
    this.value.rows = 1;
    this.value.dir = "auto";
    this.value.ariaLabel = this.#isItem ? "Item" : `Value of ${key}`;
    this.value.enterKeyHint = "done";
    this.value.spellcheck = false;
    this.remove = button("remove", "×", () => this.#delete());
    this.by = element("span", "by");
    this.row.append(...(this.#isItem ? [this.done] : [element("code", "key", key)]), this.value, this.by, this.remove);
    this.done.addEventListener("change", () => {
      board.write((replica) => replica.merge(key, { done: this.done.checked }));
      this.#redraw();
    });
    this.value.addEventListener("focus", () => this.#begin());
    this.value.addEventListener("blur", () => this.#commit());
    this.value.addEventListener("keydown", (event) => this.#onKey(event));
    this.draw(entry);
  }

  /** Whether this line can show the entry, or one of the other kind must take its place. @param {Entry} entry */
  fits = (entry) => isItem(entry.data) === this.#isItem;

  /** @param {Entry} entry */
  draw({ data, pending }) {
    this.row.classList.toggle("pending", pending);
    this.remove.ariaLabel = `Delete ${isItem(data) ? data.text : this.#key}`;
    if (isItem(data)) {
      this.done.ariaLabel = `Done: ${data.text}`;
      this.done.checked = Boolean(data.done);
      this.row.classList.toggle("is-done", this.done.checked);
    }
    this.explain();
    if (this.typed !== undefined) return;
    this.value.value = valueText(data);
    this.value.rows = this.value.value.split("\n").length; // where there is no field-sizing
    if (this.#before !== undefined) this.#begin();
  }

  /** What is being typed, if that is something else than what was there. */
  get typed() {
    const isTyping = this.#before !== undefined && this.value.value !== this.#shown;
    return isTyping ? wellFormed(this.value.value) : undefined;
  }

  /** Shows what there is now, or goes. */
  #redraw() {
    const now = this.#board.replica?.entry(this.#key);
    if (now) this.draw(now);
    else this.#board.drop(this.#key);
  }

  #begin() {
    this.#before = this.#board.replica?.entry(this.#key);
    this.#shown = this.value.value;
  }

  /** Says who wrote what is there. @param {string | undefined} name @param {boolean} isOther */
  sign(name, isOther) {
    this.by.textContent = name ?? "";
    this.by.className = `by ${name ? hueOf(name) : ""}`;
    this.explain();
    if (!isOther) return;
    this.row.classList.add("flash");
    setTimeout(() => this.row.classList.remove("flash"), FLASH_MS);
  }

  #delete() {
    const next = /** @type {HTMLElement | null} */ (this.row.nextElementSibling ?? this.row.previousElementSibling);
    this.#board.write((replica) => replica.delete(this.#key));
    if (this.row.isConnected) return;
    /** @type {HTMLElement} */ (next?.querySelector(".remove") ?? $("add-text")).focus();
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (isComposing(event) || event.shiftKey || (event.key !== "Enter" && event.key !== "Escape")) return;
    event.preventDefault();
    if (event.key === "Escape") this.value.value = this.#shown;
    this.value.blur();
  }

  /** Makes place for a line of the other kind. */
  leave() {
    this.#before = undefined;
    this.row.remove();
  }

  #commit() {
    const before = this.#before;
    const text = this.typed;
    this.#before = undefined;
    if (before === undefined) return;
    if (!text?.trim()) return this.#redraw();
    const now = this.#board.replica?.entry(this.#key);
    if (now === undefined || valueText(now.data) !== valueText(before.data)) return this.ask(text);
    this.#store(text, before.pending ? undefined : before.offset);
  }

  /** @param {string} text @param {number | undefined} expect the word that this replaces */
  #store(text, expect) {
    const options = expect === undefined ? {} : { expect };
    this.#board.write((replica) => {
      if (this.#isItem) return replica.merge(this.#key, { text }, options);
      return replica.set(this.#key, parsed(text, replica.get(this.#key) ?? null), options);
    });
  }

  /** Somebody else was faster: let the person choose. @param {string} text */
  ask(text) {
    this.row.querySelector(".conflict")?.remove();
    this.#asked = text;
    const question = element("div", "conflict");
    question.append(element("p", ""));
    const choose = (/** @type {() => void} */ act) => () => (question.remove(), act());
    question.setAttribute("role", "alert");
    question.tabIndex = -1;
    question.append(
      button("mine", "Use mine", choose(() => this.#store(text, undefined))),
      " ",
      button("theirs", "Keep theirs", choose(() => this.#redraw())),
    );
    this.row.append(question);
    const now = this.#board.replica?.entry(this.#key);
    if (now) this.draw(now);
    else this.explain();
    return question;
  }

  /** Says what a question is about, which may change while it is open; and no more who wrote what was there before. */
  explain() {
    const now = this.#board.replica?.entry(this.#key);
    const offset = now?.offset ?? 0;
    if (offset !== this.#offset) this.by.textContent = ""; // its message tells who wrote it, if it is still kept
    this.#offset = offset;
    const words = this.row.querySelector(".conflict p");
    if (!words) return;
    const theirs = now === undefined ? ["deleted it"] : ["wrote “", isolated(valueText(now.data)), "”"];
    const who = isolated(now?.pending ? "you" : this.by.textContent || "somebody");
    words.replaceChildren("Meanwhile ", who, " ", ...theirs, ". You wrote “", isolated(this.#asked), "”.");
  }
}

/** The document of the channel that is shown. */
export class Board {
  /** @type {Replica | undefined} */
  replica;
  /** @type {Map<string, Line>} */
  #lines = new Map();
  #whyNot;
  #entries = $("entries");
  #frame = 0;
  #isReady = false; // the replica's whole state has come
  /** @type {number | undefined} the head when the document was opened: what is older is no news */
  #openedAt;
  /** @type {Item[]} writes that lost against others', and that nobody was asked about yet */
  #lost = [];

  /** @param {() => string} whyNot why nothing can be written any more, if that is so */
  constructor(whyNot) {
    this.#whyNot = whyNot;
    $("add").addEventListener("submit", (/** @type {Event} */ event) => {
      event.preventDefault();
      this.#add();
    });
  }

  /** Shows another channel's document. @param {Replica} replica */
  show(replica) {
    this.#entries.querySelector(":focus")?.blur(); // what is being typed there belongs there
    this.replica = replica;
    this.#isReady = false;
    this.#openedAt = undefined;
    this.#lines.clear();
    this.#entries.replaceChildren();
    this.#say("");
    for (const key of replica.keys()) this.#draw(key);
    replica.on("subscribed", () => (this.#openedAt ??= replica.head));
    replica.on("change", ({ key }) => this.#draw(key));
    replica.on("ready", () => {
      this.#isReady = true;
      this.#askAll();
      this.#summarize();
    });
    this.#summarize();
  }

  /** Notes who wrote a word. @param {Message} message @param {string | undefined} me */
  sign({ key, from, offset = 0 }, me) {
    if (key !== undefined) this.#lines.get(key)?.sign(from, from !== me && offset > (this.#openedAt ?? 0));
  }

  /**
   * Writes, and shows what became of it.
   * @param {(replica: Replica) => Promise<unknown>} act @param {() => void} [takeBack] called if it is not even queued
   */
  write(act, takeBack = () => {}) {
    const reason = this.#whyNot();
    this.#say(reason && `Not saved: ${reason}.`);
    if (reason || !this.replica) return takeBack();
    act(this.replica).catch((error) => {
      if (error.code === "conflict" || error.code === "closed") return; // that is asked, and this is sent later
      this.#say(`Not saved: ${error.message}`);
      if (error.code === "limit") takeBack();
    });
  }

  /** @param {string} text */
  #say(text) {
    $("board-note").textContent = text;
  }

  /** A write will not be stored, perhaps one of an earlier page. @param {Item} item @param {TrisyncError} error */
  refused(item, error) {
    if (error.code === "conflict") this.#lost.push(item);
    else if (item.channel === this.replica?.channel) this.#say(`Not saved: ${error.message}`);
    this.#askAll();
  }

  /** Asks about what was lost here. What was lost elsewhere is asked there. */
  #askAll() {
    if (!this.#isReady) return;
    const items = this.#lost;
    this.#lost = items.filter(({ channel }) => channel !== this.replica?.channel);
    for (const { channel, key, data } of items) {
      if (channel !== this.replica?.channel || key === undefined) continue;
      const line = this.#lines.get(key) ?? this.#insert(key, { data, offset: 0, pending: false });
      line.ask(valueText(data));
    }
  }

  /** Takes a line away whose key is gone. @param {string} key */
  drop(key) {
    this.#lines.get(key)?.row.remove();
    this.#lines.delete(key);
    this.#summarizeSoon();
  }

  #add() {
    const input = $("add-text");
    const text = wellFormed(input.value.trim());
    if (text === "") return;
    const key = newItemKey();
    input.value = "";
    this.write((replica) => replica.set(key, { text, done: false }), () => (input.value ||= text));
    const entry = this.replica?.entry(key);
    if (!entry) return;
    const { row } = this.#lines.get(key) ?? this.#insert(key, entry); // one's own is shown however many there are
    row.scrollIntoView({ block: "nearest" });
  }

  /** @param {string} key */
  #draw(key) {
    const entry = this.replica?.entry(key);
    const line = this.#lines.get(key);
    if (!entry) {
      if (line && line.value !== document.activeElement && !line.row.querySelector(".conflict")) this.drop(key);
      else line?.explain();
    } else if (line?.fits(entry)) line.draw(entry);
    else if (line || this.#lines.size < SHOWN_MAX) {
      const typed = line?.typed;
      line?.leave();
      const made = this.#insert(key, entry);
      if (typed) made.ask(typed).focus();
    }
    this.#summarizeSoon();
  }

  /** The list stands behind the rest, its items in the order of their making. @param {string} key @param {Entry} entry */
  #insert(key, entry) {
    const line = new Line(this, key, entry);
    this.#lines.set(key, line);
    const rank = (/** @type {HTMLElement} */ row) => (row.classList.contains("item") ? "1" : "0") + row.dataset.key;
    const next = [...this.#entries.children].find((row) => rank(row) > rank(line.row));
    this.#entries.insertBefore(line.row, next ?? null);
    return line;
  }

  /** Gives places that have become free to others. @param {Replica} replica */
  #fill(replica) {
    for (const key of replica.keys()) {
      const entry = replica.entry(key);
      if (entry && !this.#lines.has(key)) this.#insert(key, entry);
      if (this.#lines.size >= SHOWN_MAX) return;
    }
  }

  /** A whole state comes at once, and is not to be counted for each of its keys. */
  #summarizeSoon() {
    this.#frame ||= requestAnimationFrame(() => this.#summarize());
  }

  #summarize() {
    this.#frame = 0;
    const { replica } = this;
    if (!replica) return;
    if (this.#lines.size < Math.min(replica.size, SHOWN_MAX)) this.#fill(replica);
    const values = [...this.#lines.keys()].map((key) => replica.get(key)).filter(isItem);
    const done = values.filter((item) => item.done).length;
    const more = replica.size - this.#lines.size;
    const parts = [values.length ? `${done} of ${values.length} done` : counted(replica.size, "entry", "entries")];
    if (more > 0) parts.push(`${more.toLocaleString()} not shown`);
    $("board-summary").textContent = replica.size ? parts.join(" · ") : "";
    $("board-empty").hidden = replica.size > 0 || !this.#isReady;
    $("board-empty").textContent = "Nothing here yet. What you add, everybody in the channel sees and can change.";
  }
}
