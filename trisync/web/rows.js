// @ts-check
// One line of the log as it looks: a message, an edit of the shared document, a notice. When and where rows stand is
// log.js's matter.

import { button, element, focusLog, hueOf, isItemKey, isolated } from "./dom.js";
/** @import { Gap, Message } from "./trisync.js" */

const TEXT_MAX = 4000; // characters of one message shown unasked
const LINKS_MAX = 500; // in one message: 70,000 of them held the page up for half a minute
const FLAT_JSON_MAX = 72; // characters of JSON that stay on one line
const EDIT_MAX = 160; // characters of an edit, which the document shows in full
const SAME_BREATH_MS = 5 * 60_000; // one person's messages closer than this share a heading

// What ends a sentence is not of an address, nor what stands in no address at all or would turn it round (UAX #9).
const NOT_OF_ADDRESS = String.raw`\s<>"\\()\p{Bidi_Control}`;
const IN_BRACKETS = String.raw`\([^${NOT_OF_ADDRESS}]*\)`; // as encyclopedias have it
const ITS_END = String.raw`[/#&%@*_\-]|[^${NOT_OF_ADDRESS}\p{P}\x60]`;
const WEB_ADDRESS = new RegExp(
  String.raw`https?://(?:${IN_BRACKETS}|[^${NOT_OF_ADDRESS}])*(?:${IN_BRACKETS}|${ITS_END})`,
  "giu",
);

const clockTime = new Intl.DateTimeFormat([], { hour: "2-digit", minute: "2-digit" });
const fullTime = new Intl.DateTimeFormat([], { dateStyle: "full", timeStyle: "medium" });
const dayName = new Intl.DateTimeFormat([], { weekday: "long", day: "numeric", month: "long", year: "numeric" });

/**
 * The beginning of a text, in which web addresses can be followed; nobody there is told from where.
 * @param {string} text
 */
function withLinks(text, length = text.length) {
  const parts = [];
  let end = 0;
  for (const { 0: address, index } of text.matchAll(WEB_ADDRESS)) {
    // Half an address leads elsewhere.
    if (index + address.length > length || parts.length >= 2 * LINKS_MAX) break;
    const link = /** @type {HTMLAnchorElement} */ (element("a", "", address));
    Object.assign(link, { href: address, target: "_blank", rel: "noreferrer", dir: "ltr" });
    parts.push(text.slice(end, index), link);
    end = index + address.length;
  }
  return [...parts, text.slice(end, length)];
}

/** What a message says. @param {unknown} data */
function textElement(data) {
  const isText = typeof data === "string";
  const flat = isText ? data : JSON.stringify(data);
  const whole = isText || flat.length <= FLAT_JSON_MAX ? flat : JSON.stringify(data, null, 2);
  const made = element("div", isText ? "text" : "text json");
  made.append(...withLinks(whole, TEXT_MAX));
  made.dir = "auto";
  if (whole.length > TEXT_MAX) {
    const showAll = () => {
      made.replaceChildren(...withLinks(whole));
      focusLog();
    };
    made.append("… ", button("more", `Show all ${whole.length.toLocaleString()} characters`, showAll));
  }
  return made;
}

/** @param {string | undefined} name */
const senderElement = (name) => element("bdi", `sender ${name ? hueOf(name) : "nameless"}`, name ?? "anonymous");

/**
 * An edit in few words, the key and the value apart: the document shows the rest. Items of the list have no key that
 * says anything.
 * @param {string} key @param {any} data
 */
function editWords(key, data) {
  if (data === null) return isItemKey(key) ? ["", "deleted an item", ""] : [key, "deleted", ""];
  if (typeof data.text === "string") return ["", data.done ? "done: " : "list: ", data.text];
  return [key, "= ", typeof data === "string" ? data : JSON.stringify(data)];
}

/** @param {Partial<Message>} message @param {boolean} own */
export function messageRow({ offset, time, from, key, data }, own) {
  const row = element("div", own ? "row own" : "row");
  const when = time === undefined ? "" : fullTime.format(time);
  const gutter = element("span", "offset", offset === undefined ? "·" : String(offset));
  gutter.title = offset === undefined ? "not stored" : when;
  row.append(gutter);
  if (key === undefined) {
    const heading = element("div", "heading");
    const clock = element("time", "time", time === undefined ? "" : clockTime.format(time));
    clock.title = when;
    heading.append(senderElement(from), element("span", "you", "you"), clock);
    row.append(heading, textElement(data));
  } else {
    row.classList.add("edit");
    const [word, verb, value] = editWords(key, data);
    const name = element("code", "");
    name.append(isolated(word));
    const what = element("span", "text", verb);
    what.append(isolated(value.length > EDIT_MAX ? `${value.slice(0, EDIT_MAX)}…` : value));
    const line = element("div", "line");
    line.append(senderElement(from), " ", ...(word ? [name, " "] : []), what);
    line.title = `${key} = ${JSON.stringify(data)}`.slice(0, TEXT_MAX);
    row.append(line);
  }
  if (offset !== undefined) row.dataset.offset = String(offset);
  row.dataset.from = from ?? "";
  if (time !== undefined) Object.assign(row.dataset, { time, day: dayName.format(time) });
  return row;
}

/** A line of the page's own between the messages. @param {string} kind @param {string} text */
export function noticeRow(kind, text) {
  const row = element("div", "notice");
  row.append(element("span", "", text));
  row.dataset.kind = kind;
  return row;
}

/** What a gap took, in words. @param {Gap} gap */
export function gapText({ reason, from, to }) {
  if (reason === "epoch") return "The log was replaced; starting again";
  const range = from === to ? `Message ${to} is` : `Messages ${from}–${to} are`;
  if (reason === "missed") return `${range} missing: the server skipped them`;
  return `${range} no longer kept`;
}

/** @param {Element | null} row @returns {HTMLElement | null} the nearest message at or above it */
function messageFrom(row) {
  while (row && !row.classList.contains("row")) row = row.previousElementSibling;
  return /** @type {HTMLElement | null} */ (row);
}

/**
 * Gives a row its own heading and day, or leaves them to what stands above.
 * @param {any} row @param {Element | null | undefined} above
 */
export function joinTo(row, above) {
  if (!row?.classList.contains("row")) return;
  const { day, time, from } = row.dataset;
  const before = messageFrom(above ?? null)?.dataset;
  const sameDay = day === undefined || day === before?.day;
  const isSpeech = [row, above].every((each) => each?.matches(".row:not(.edit)"));
  const closeBy = isSpeech && Number(time) - Number(before?.time) < SAME_BREATH_MS;
  row.classList.toggle("new-day", !sameDay);
  row.classList.toggle("continued", Boolean(sameDay && closeBy && from === before?.from));
}
