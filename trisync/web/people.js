// @ts-check
// Who is in the channel, as a row of names: all of them are seen when it is opened.
//
// For tests: #members > .person, marked .me; #people[data-stale] while nobody can know

import { $, element, hueOf } from "./dom.js";
/** @import { Member, Subscription } from "./trisync.js" */

const SHOWN_MAX = 50;

/**
 * Myself first, then by name, its numbers as numbers, then those without one.
 * @param {Subscription<any>} subscription @returns {Member[]}
 */
function inOrder({ members, member: me }) {
  const named = (/** @type {string | undefined} */ name) => (name === undefined ? "2" : `1 ${name}`);
  const rank = (/** @type {Member} */ { member, name }) => (member === me ? "0" : named(name));
  const order = new Intl.Collator(undefined, { numeric: true });
  return [...members.values()].sort((one, other) => order.compare(rank(one), rank(other)));
}

/** @param {Subscription<any>} subscription @param {boolean} isLive whether the list is of now */
export function showPeople(subscription, isLive) {
  const people = inOrder(subscription);
  $("people").toggleAttribute("data-stale", !isLive);
  $("people").style.visibility = isLive || people.length > 0 ? "visible" : "hidden"; // it keeps its room
  $("people-title").textContent = isLive ? `${people.length} here` : "Were here";
  const rows = people.slice(0, SHOWN_MAX).map(({ member, name }) => {
    const isMe = member === subscription.member;
    const row = element("li", `person ${isMe ? "me" : ""}`);
    const initial = element("span", `initial ${name ? hueOf(name) : "nameless"}`, [...(name ?? "?")][0]);
    initial.ariaHidden = "true";
    row.append(initial, element("bdi", "name", name ?? "anonymous"), isMe ? element("span", "you", " you") : "");
    return row;
  });
  if (people.length > SHOWN_MAX) rows.push(element("li", "more", `and ${people.length - SHOWN_MAX} more`));
  $("members").replaceChildren(...rows);
}
