// @ts-check
// The log of one channel in the document: what has arrived, and at its end what is published and not known to be
// stored. How a row looks is rows.js's matter.
//
// For tests, these stay as they are:
//   #log (scrolls), in it .row[data-offset] with .sender and .text, marked .own; .row.pending and .row.failed
//   have no offset; .notice[data-kind=trimmed|missed|epoch|error]; #earlier and #newer are its buttons

import { $, button, counted, element, focusLog } from "./dom.js";
import { joinTo, messageRow, noticeRow } from "./rows.js";
/** @import { Item, Message } from "./trisync.js" */

const ROWS_MAX = 500; // in the document, which is laid out anew for each; older ones are a "Load earlier" away
const READING_ROWS_MAX = 4000; // for who reads what is old, and should not see it vanish
const BOTTOM_PX = 48; // closer to the end than this is "at the end"

/**
 * The rows of one channel. What arrives is put into the document once a frame, so that a flood costs no
 * more than what can be seen of it.
 */
export class Log {
  channel = "";
  #scroller = $("log");
  #messages = $("messages");
  #outbox = $("outbox");
  #newer = $("newer");
  /** @type {(() => HTMLElement)[]} rows still to be made */
  #arriving = [];
  #scheduled = 0;
  #me;
  #following = true; // the reader is at the end, and wants to stay there
  #top = 0; // where the scrolling stood
  #unread = 0;
  #last = 0; // the newest offset in the document
  #own = new Set(); // offsets that this page published
  /** @type {Map<Item, {row: HTMLElement, offset: number}>} published, and not in the log as far as is known */
  #pending = new Map();

  /**
   * @param {() => void} onChange called after rows came or went
   * @param {() => string | undefined} me this page's name
   */
  constructor(onChange, me) {
    this.onChange = onChange;
    this.#me = me;
    this.#scroller.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    document.addEventListener("visibilitychange", () => this.#showUnread());
    this.#newer.addEventListener("click", () => (this.toEnd(), focusLog()));
    const resized = new ResizeObserver(() => this.#following && this.toEnd());
    for (const part of [this.#scroller, this.#outbox]) resized.observe(part);
  }

  /** The oldest offset shown, or 0. */
  get first() {
    return Number(this.#messages.querySelector("[data-offset]")?.dataset.offset ?? 0);
  }

  get showsGap() {
    return this.#messages.querySelector("[data-kind=trimmed]") !== null;
  }

  /** Starts empty, but for what was refused in `channel`. @param {string} channel */
  clear(channel) {
    this.channel = channel;
    this.#arriving = [];
    this.#last = 0;
    this.#own.clear();
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
      const isOwn = this.#isOwn(message);
      if (message.key === undefined && !isOwn && (!this.#following || document.hidden)) this.#unread += 1;
      return messageRow(message, isOwn);
    });
  }

  /** Takes out what the channel has no longer. @param {number} from @param {number} to */
  forget(from, to) {
    this.#flush();
    for (const row of this.#messages.querySelectorAll("[data-offset]")) {
      if (row.dataset.offset >= from && row.dataset.offset <= to) row.remove();
    }
    joinTo(this.#messages.firstElementChild, null);
    this.#last = Math.max(this.#last, to); // a message of this page's that is among them will not come any more
    this.#schedule();
  }

  /** @param {string} kind @param {string} text */
  notice(kind, text) {
    this.#arrive(() => noticeRow(kind, text));
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

  /**
   * Shows a publish at the end until it is stored or refused.
   * @param {Item} item @param {string} from @param {string} label what it waits for
   */
  addPending(item, from, label) {
    if (item.channel !== this.channel || this.#pending.has(item)) return;
    const row = messageRow({ from, time: Date.now(), data: item.data }, true);
    row.classList.add("pending");
    row.append(element("span", "label", label));
    this.#pending.set(item, { row, offset: 0 });
    this.#outbox.append(row);
    joinTo(row, row.previousElementSibling ?? this.#messages.lastElementChild);
    this.#following = true;
    this.#schedule();
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
      if (offset <= this.#last) this.#messages.querySelector(`[data-offset="${offset}"]`)?.classList.add("own");
      this.#schedule();
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
    failure.setAttribute("role", "alert");
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
    if (this.#arriving.length > READING_ROWS_MAX) {
      this.#arriving.splice(0, READING_ROWS_MAX - ROWS_MAX); // nobody could have read them, and "Load earlier" has them
      this.#messages.replaceChildren();
    }
    this.#schedule();
  }

  #schedule() {
    if (this.#scheduled) return;
    // A hidden page gets no frames; a slow timer keeps it going.
    this.#scheduled = setTimeout(() => this.#flush(), 100);
    requestAnimationFrame(() => this.#flush());
  }

  #flush() {
    if (!this.#scheduled) return;
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
  }

  #trim() {
    const spare = this.#messages.childElementCount - (this.#following ? ROWS_MAX : READING_ROWS_MAX);
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
    return this.#own.has(offset) || from === this.#me();
  }

  /** Changes what is above without moving what is being read. @param {() => void} change */
  #keepingPlace(change) {
    const fromEnd = this.#scroller.scrollHeight - this.#scroller.scrollTop;
    change();
    this.#scroller.scrollTop = this.#scroller.scrollHeight - fromEnd;
  }

  #onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.#scroller;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < BOTTOM_PX;
    // Only going up is a wish to read on there: what arrives below, or a keyboard, moves the end away too.
    if (isAtEnd || scrollTop < this.#top) this.#following = isAtEnd;
    this.#top = scrollTop;
    this.#showUnread();
  }

  #showUnread() {
    if (this.#following && !document.hidden) this.#unread = 0;
    const count = this.#unread;
    this.#newer.hidden = this.#following || count === 0;
    this.#newer.textContent = counted(count, "new message");
    document.title = `${count ? `(${count}) ` : ""}#${this.channel} · trisync`;
  }
}
