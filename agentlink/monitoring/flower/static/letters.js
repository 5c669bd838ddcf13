// The Dead letters page.

import { ask, changing, count, follow, id, make, readOnly, root, say, setText, shortName, sure, when } from "./page.js";

const query = new URLSearchParams(location.search);
const filters = id("al-filters");
const chosen = new Set();
let rows = [];

function watch() {
  const address = query.toString();
  history.replaceState(null, "", address ? `?${address}` : location.pathname);
  follow(`/letters/stream?${address}`, { letters: show });
}

let typing = 0;
filters.addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => {
    query.set(event.target.name, event.target.value.trim());
    query.delete("page");
    watch();
  }, 300);
});
filters.addEventListener("submit", (event) => event.preventDefault());
for (const field of filters.querySelectorAll("input")) field.value = query.get(field.name) || "";

function turn(by) {
  query.set("page", String(Math.max(0, Number(query.get("page") || 0) + by)));
  watch();
}
id("al-newer").addEventListener("click", () => turn(-1));
id("al-older").addEventListener("click", () => turn(1));

function show(told) {
  rows = told.rows;
  setText(id("al-total"), count(told.total));
  id("al-empty").hidden = rows.length > 0;
  id("al-newer").disabled = told.skip === 0;
  id("al-older").disabled = !told.more;
  for (const letterId of chosen) if (!rows.some((row) => row.id === letterId)) chosen.delete(letterId);
  id("al-letters").replaceChildren(...rows.map(line));
  choose();
}

function line(row) {
  const check = make("input", { type: "checkbox", class: "form-check-input", "aria-label": `Choose letter ${row.id}`, "data-letter": row.id,
    onchange: (event) => { event.target.checked ? chosen.add(row.id) : chosen.delete(row.id); choose(); } });
  return make("tr", {},
    readOnly ? null : make("td", { class: "al-check" }, check),
    make("td", { class: "al-workflow" },
      make("button", { type: "button", class: "al-link", onclick: () => look(row) }, shortName(row.task)),
      make("small", { class: "al-muted" }, row.id.slice(0, 8))),
    make("td", {}, row.queue), make("td", { class: "al-number" }, String(row.attempts)), make("td", {}, when(row.buried_at)),
    make("td", { class: "al-what al-error", title: row.reason }, row.reason));
}

function choose() {
  for (const check of document.querySelectorAll("[data-letter]")) check.checked = chosen.has(check.dataset.letter);
  if (readOnly) return;
  id("al-all").checked = chosen.size > 0 && chosen.size === rows.length;
  id("al-bulk").hidden = chosen.size === 0;
  setText(id("al-chosen"), `${chosen.size} chosen`);
}

if (!readOnly) {
  id("al-all").addEventListener("change", (event) => {
    chosen.clear();
    if (event.target.checked) for (const row of rows) chosen.add(row.id);
    choose();
  });
  for (const button of document.querySelectorAll("[data-bulk]")) {
    const action = button.dataset.bulk;
    button.addEventListener("click", () => {
      const letters = [...chosen];
      if (action === "drop" && !sure(`Drop ${letters.length} for good?`)) return;
      changing(button, `/letters/${action}`, { letters }, (answer) => `${answer.changed} ${action === "drop" ? "dropped" : "sent again"}`);
    });
  }
}

async function look(row) {
  try {
    const letter = await ask(`/letters/letter/${encodeURIComponent(row.id)}`);
    setText(id("al-letter-title"), letter.task);
    const facts = [
      ["Id", letter.id],
      ["Run", letter.run_id ? make("a", { href: `${root}/workflows/run/${encodeURIComponent(letter.run_id)}` }, letter.run_id) : "none"],
      ["Queue", letter.queue],
      ["Attempts", String(letter.attempts)],
      ["Died", when(letter.buried_at)],
      ["Why", letter.reason],
    ];
    const texts = [["Arguments", letter.arguments], ["Traceback", letter.traceback], ["Message", JSON.stringify(letter.message, null, 1)]];
    id("al-letter-facts").replaceChildren(
      make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
      ...texts.filter(([, words]) => words).flatMap(([title, words]) => [make("h3", {}, title), make("pre", { class: "al-code", tabindex: 0 }, words)]));
    id("al-letter").showModal();
  } catch (error) {
    say(error.message, true);
  }
}

watch();
