// @ts-check
// Small things that the page's modules share: elements, what is remembered, and the server's rules for names.

const CHANNEL_NAME = /^(?!\$)[A-Za-z0-9_\-.:/@#=]{1,200}$/;
const HUES = 6; // colours for names, see style.css

/** Whether the server would accept `name` as a channel. @param {string} name */
export const isChannelName = (name) => CHANNEL_NAME.test(name);

/** Whether the server would accept `name` for a person. @param {string} name */
export const isPersonName = (name) => /^[^\p{Cc}\p{Cs}]{1,64}$/u.test(name);

/** The keys that the page makes for the list in a document. */
export const newItemKey = () => `item-${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 6)}`;

/** @param {string} key */
export const isItemKey = (key) => key.startsWith("item-");

/** @returns {any} the element, whose kind index.html decides */
export const $ = (/** @type {string} */ id) => document.getElementById(id);

/**
 * An element with a class and, as text and never as markup, its content.
 * @param {string} tag @param {string} className @param {string} [text]
 */
export function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}

/** What somebody wrote, in a sentence of the page's: each reads in its own direction (UAX #9). @param {string} text */
export const isolated = (text) => element("bdi", "", text);

/** @param {string} className @param {string} text @param {() => void} act */
export function button(className, text, act) {
  const made = /** @type {HTMLButtonElement} */ (element("button", className, text));
  made.type = "button";
  made.addEventListener("click", act);
  return made;
}

/** For a button that goes when it is pressed: who has only a keyboard scrolls on. */
export const focusLog = () => $("log").focus({ preventScroll: true });

/** The same name has the same colour on everybody's screen. @param {string} name */
export function hueOf(name) {
  let sum = 0;
  for (const character of name) sum = (sum * 31 + (character.codePointAt(0) ?? 0)) % 9973;
  return `hue-${sum % HUES}`;
}

/** JSON has no place for half a character. @param {string} text @returns {string} */
export const wellFormed = (text) => /** @type {any} */ (text).toWellFormed?.() ?? text;

/** @param {number} count @param {string} one @param {string} [many] */
export const counted = (count, one, many = `${one}s`) => `${count.toLocaleString()} ${count === 1 ? one : many}`;

/** Storage may be forbidden; then the page just forgets. @param {() => string | null | void} use */
function tryStorage(use) {
  try {
    return use() ?? null;
  } catch {
    return null;
  }
}

/** A tab keeps its name; a new one begins with what was chosen last, or as a guest. */
export function rememberedName() {
  const known = tryStorage(() => sessionStorage.getItem("name") ?? localStorage.getItem("name")) ?? "";
  const name = isPersonName(known) ? known : `guest-${1000 + Math.floor(Math.random() * 99_000)}`;
  tryStorage(() => sessionStorage.setItem("name", name));
  return name;
}

/** @param {string} name */
export function rememberName(name) {
  tryStorage(() => sessionStorage.setItem("name", name));
  tryStorage(() => localStorage.setItem("name", name));
}

/** For who has not chosen a name: the next page that opens may be the one that sends what waits. */
export const rememberGuest = () =>
  tryStorage(() => localStorage.getItem("name") ?? localStorage.setItem("name", rememberedName()));

/**
 * Whether a key is an input method's own. Safari ends the composition before it tells of the key that ended it (WebKit
 * bug 165004), which is known by its code alone then.
 * @param {KeyboardEvent} event
 */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Enter commits, Escape takes back. @param {HTMLInputElement} input @param {() => void} commit @param {() => void} leave */
export function onCommit(input, commit, leave) {
  let before = input.value;
  input.addEventListener("focus", () => (before = input.value));
  input.addEventListener("change", commit);
  input.addEventListener("keydown", (event) => {
    if (isComposing(event)) return;
    if (event.key === "Escape") input.value = before;
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // or the Enter would go on into what is focused next
    input.blur(); // which commits it
    leave();
  });
}
