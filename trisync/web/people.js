// @ts-check
// Who is in the channel, as a row of names: all of them are seen when it is opened.
//
// For tests: #members > .person, marked .me; #people[data-stale] while nobody can know

import { $, element, hueOf } from "./dom.js";
/** @import { Member, Subscription } from "./trisync.js" */

const SHOWN_MAX = 50;

/**
 * The first of them: myself, then by name, its numbers as numbers, then those without one. All are not put in order:
 * of 20,000 that made drawing the list last 125 ms (measured), each time that somebody came or went.
 * @param {Subscription<any>} subscription @returns {Member[]}
 */
function firstInOrder({ members, member: me }) {
  const named = (/** @type {string | undefined} */ name) => (name === undefined ? "2" : `1 ${name}`);
  const rank = (/** @type {Member} */ { member, name }) => (member === me ? "0" : named(name));
  const { compare } = new Intl.Collator(undefined, { numeric: true });
  const inOrder = (/** @type {Member} */ one, /** @type {Member} */ other) => compare(rank(one), rank(other));
  /** @type {Member[]} */
  const first = [];
  for (const each of members.values()) {
    if (first.length === SHOWN_MAX && inOrder(each, first[SHOWN_MAX - 1]) >= 0) continue;
    const place = first.findIndex((other) => inOrder(each, other) < 0);
    first.splice(place < 0 ? SHOWN_MAX : place, 0, each);
    first.splice(SHOWN_MAX);
  }
  return first;
}

/** @param {Subscription<any>} subscription @param {boolean} isLive whether the list is of now */
export function showPeople(subscription, isLive) {
  const count = subscription.members.size;
  $("people").toggleAttribute("data-stale", !isLive);
  $("people").style.visibility = isLive || count > 0 ? "visible" : "hidden"; // it keeps its room
  $("people-title").textContent = isLive ? `${count} here` : "Were here";
  const rows = firstInOrder(subscription).map(({ member, name }) => {
    const isMe = member === subscription.member;
    const row = element("li", `person ${isMe ? "me" : ""}`);
    const initial = element("span", `initial ${name ? hueOf(name) : "nameless"}`, [...(name ?? "?")][0]);
    initial.ariaHidden = "true";
    row.append(initial, element("bdi", "name", name ?? "anonymous"), isMe ? element("span", "you", " you") : "");
    return row;
  });
  if (count > SHOWN_MAX) rows.push(element("li", "more", `and ${count - SHOWN_MAX} more`));
  $("members").replaceChildren(...rows);
}
