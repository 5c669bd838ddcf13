// What all our pages share: elements made from text alone (never from HTML), the page's one stream, changes, words.

const page = document.querySelector(".al-page");
export const root = page.dataset.root;
export const readOnly = "readOnly" in page.dataset;
for (const element of readOnly ? document.querySelectorAll("[data-change]") : []) element.remove();

/** An element with attributes (`onclick` and the like as functions) and children; text stays text. */
export function make(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:")
    ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4))
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set a text only if it is another one: most of what is told anew is the same. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const id = (name) => document.getElementById(name);

// -- The stream: closed while nobody sees the page, and begun anew when somebody does.

let source = null;
let wanted = null;

/** Be told what changes at an address, by the names of events; once more, and the page has another stream. */
export function follow(address, receivers) {
  wanted = { address, receivers };
  open();
}

function open() {
  if (source) source.close();
  source = null;
  if (!wanted || document.hidden) return;
  const opened = (source = new EventSource(root + wanted.address));
  for (const [name, receive] of Object.entries(wanted.receivers)) {
    opened.addEventListener(name, (event) => opened === source && receive(JSON.parse(event.data)));
  }
  opened.addEventListener("trouble", (event) => trouble(JSON.parse(event.data)));
  opened.onopen = () => trouble(null);
  opened.onerror = () => {
    if (opened !== source) return;
    trouble("Flower does not answer; what is shown may be old.");
    // A browser does not try again what was refused.
    if (opened.readyState === EventSource.CLOSED) setTimeout(() => opened === source && open(), 3000);
  };
}

document.addEventListener("visibilitychange", open);
addEventListener("pagehide", () => source && source.close());
addEventListener("pageshow", (event) => event.persisted && open());

function trouble(text) {
  const line = id("al-trouble");
  line.hidden = !text;
  setText(line, text || "");
}

// -- Changes: with the token from the cookie that Flower has set.

function token() {
  const match = document.cookie.match(/(?:^|;\s*)_xsrf=([^;]*)/);
  return match ? decodeURIComponent(match[1]) : "";
}

async function answerOf(response) {
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error || `${response.status} ${response.statusText}`);
  return answer;
}

export async function ask(address) {
  return answerOf(await fetch(root + address, { headers: { Accept: "application/json" } }));
}

export async function change(address, facts) {
  return answerOf(
    await fetch(root + address, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-XSRFToken": token() },
      body: JSON.stringify(facts),
    }),
  );
}

/** Make a change while a button is not to be pressed again, and say what came of it. */
export async function changing(button, address, facts, words) {
  button.disabled = true;
  try {
    const answer = await change(address, facts);
    say(words(answer));
    return answer;
  } catch (error) {
    say(error.message, true);
    return null;
  } finally {
    button.disabled = false;
  }
}

let saidTimer = 0;

/** A sentence at the foot of the page, for a while. */
export function say(text, bad = false) {
  const line = id("al-said");
  setText(line, text);
  line.classList.toggle("al-bad", bad);
  line.hidden = false;
  clearTimeout(saidTimer);
  saidTimer = setTimeout(() => (line.hidden = true), bad ? 15000 : 6000);
}

/** Ask before something that can't be undone. */
export const sure = (question) => window.confirm(question);

for (const close of document.querySelectorAll("[data-close]")) {
  close.addEventListener("click", () => close.closest("dialog").close());
}

// -- Words.

let ahead = 0;

/** The server's clock, by what it has last said. */
export const now = () => Date.now() / 1000 + ahead;
export function clockIs(serverNow) {
  ahead = serverNow - Date.now() / 1000;
}

export const shortName = (name) => name.slice(name.lastIndexOf(".") + 1);

export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "";
  if (seconds < 0) seconds = 0;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  const two = (number) => String(number).padStart(2, "0");
  if (minutes < 60) return `${minutes} m ${two(Math.floor(seconds % 60))} s`;
  if (minutes < 2880) return `${Math.floor(minutes / 60)} h ${two(minutes % 60)} m`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

export function size(bytes) {
  if (bytes === null || bytes === undefined) return "";
  for (const [unit, factor] of [["TB", 1e12], ["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (Math.abs(bytes) >= factor) return `${Number((bytes / factor).toPrecision(3))} ${unit}`;
  }
  return `${Math.round(bytes)} B`;
}

export function when(at) {
  if (!at) return "";
  const then = new Date(at * 1000);
  const time = then.toLocaleTimeString([], { hour12: false });
  return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString()} ${time}`;
}

export const count = (number) => number.toLocaleString();

/** A state as a word with its colour. */
export function badge(state) {
  return make("span", { class: `al-state al-${state.toLowerCase()}` }, state.toLowerCase());
}
