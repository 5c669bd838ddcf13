// The Resources page: how each worker is, plots, who uses what, and what is asked of all workers.

import { change, changing, clockIs, follow, id, make, readOnly, root, say, setText, shortName, size, when } from "./page.js";
import { Plots } from "./plots.js";

const plots = new Plots();
const query = new URLSearchParams(location.search);
let limits = [];

function watch() {
  const span = query.get("span") || "600";
  for (const chip of id("al-spans").querySelectorAll("[data-span]")) chip.setAttribute("aria-pressed", String(chip.dataset.span === span));
  plots.known = null;
  follow(`/resources/stream?span=${span}`, { now: show, plots: (told) => plots.take(told) });
}

for (const chip of id("al-spans").querySelectorAll("[data-span]")) {
  chip.addEventListener("click", () => {
    query.set("span", chip.dataset.span);
    history.replaceState(null, "", `?${query}`);
    watch();
  });
}

function show(told) {
  clockIs(told.at);
  limits = told.limits;
  id("al-empty").hidden = told.workers.length > 0;
  const cards = id("al-workers");
  while (cards.children.length > told.workers.length) cards.lastElementChild.remove();
  told.workers.forEach((worker, index) => {
    const said = JSON.stringify(worker);
    const before = cards.children[index];
    if (before && before.said === said) return;
    const card = workerCard(worker);
    card.said = said;
    if (before) before.replaceWith(card);
    else cards.append(card);
  });
  showPause(told.paused);
  id("al-no-tasks").hidden = told.tasks.length > 0;
  id("al-tasks").replaceChildren(...told.tasks.sort((one, other) => other.use_bytes - one.use_bytes).map(taskLine));
}

function showPause(paused) {
  const until = paused.until ? ` until ${when(paused.until)}` : "";
  id("al-paused").replaceChildren(...(paused.is ? [make("span", { class: "al-state al-asks" }, `paused by a person${until}${paused.reason ? `: ${paused.reason}` : ""}`)] : []));
  if (readOnly) return;
  id("al-resume").hidden = !paused.is;
  id("al-pause").hidden = paused.is;
}

function workerCard(worker) {
  const words = { ok: "takes tasks", paused: "takes no new tasks", unguarded: "no guard" }[worker.state] || worker.state;
  const look = { ok: "succeeded", paused: "asks", unguarded: "retrying" }[worker.state] || "waiting";
  const room = worker.room_bytes === null || worker.room_bytes === undefined ? "" : `, ${size(worker.reserved_bytes)} of ${size(worker.room_bytes)} reserved`;
  return make("section", { class: "al-card al-worker", "aria-label": `Worker ${worker.name}` },
    make("h2", {}, worker.name, " ", make("span", { class: `al-state al-${look}` }, words)),
    make("p", { class: "al-muted" }, `${worker.running} of ${worker.concurrency} running${worker.waiting ? `, ${worker.waiting} waiting for room` : ""}${room} · ${worker.queues.join(", ")}${worker.dry_run ? " · dry run" : ""}`),
    worker.state === "paused" ? make("p", {}, `since ${when(worker.since)}: ${worker.reason}`) : null,
    make("div", { class: "al-meters" }, ...worker.resources.map(meter)));
}

function meter(resource) {
  const bar = make("span", { class: `al-bar-fill al-level-${resource.level}` });
  bar.style.width = `${100 * resource.fraction}%`;
  return make("div", { class: "al-meter", title: resource.reason || null },
    make("b", {}, resource.name.replaceAll("_", " ")), make("span", {}, resource.use + (resource.where ? ` (${resource.where})` : "")),
    make("span", { class: "al-bar", role: "meter", "aria-label": resource.name, "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": Math.round(100 * resource.fraction) }, bar),
    resource.reason ? make("small", { class: "al-error" }, resource.reason) : null);
}

function taskLine(task) {
  const number = (words, bad) => make("td", { class: `al-number${bad ? " al-error" : ""}` }, words);
  const how = task.declared ? "declared" : task.runs ? "learned" : "guessed";
  return make("tr", {},
    make("td", { class: "al-workflow" }, make("a", { href: `${root}/task/${encodeURIComponent(task.id)}` }, shortName(task.name)), make("small", { class: "al-muted" }, task.id.slice(0, 8))),
    make("td", {}, task.worker), number(task.pid ? String(task.pid) : ""), number(size(task.use_bytes), task.use_bytes > task.reserved_bytes),
    number(`${size(task.reserved_bytes)} ${how}`), number(task.cap_bytes === null ? "none" : size(task.cap_bytes)), number(task.evictions ? String(task.evictions) : ""));
}

// -- What is asked of all workers.

if (!readOnly) {
  const pauseForm = id("al-pause-form"), limitsForm = id("al-limits-form");
  id("al-pause").addEventListener("click", () => pauseForm.showModal());
  pauseForm.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const facts = Object.fromEntries(new FormData(event.target));
    if (await changing(event.submitter || pauseForm.querySelector("[type=submit]"), "/resources/pause", facts, (answer) => answer.said)) pauseForm.close();
  });
  id("al-resume").addEventListener("click", (event) => changing(event.target, "/resources/resume", {}, (answer) => answer.said));
  id("al-limits").addEventListener("click", () => {
    id("al-limits-error").hidden = true;
    id("al-limits-fields").replaceChildren(...limits.map((limit) => {
      const input = make("input", { class: "form-control", name: limit.name, placeholder: limit.ordered || limit.settings, autocomplete: "off" });
      return make("label", { class: "al-field" },
        make("span", {}, limit.name.replaceAll("_", " "), make("small", { class: "al-muted" }, ` ${limit.settings} in the settings${limit.ordered ? `, ${limit.ordered} asked for` : ""}`)), input);
    }));
    limitsForm.showModal();
  });
  const ask = async (button, address, facts) => {
    button.disabled = true;
    try {
      say((await change(address, facts)).said);
      limitsForm.close();
    } catch (error) {
      setText(id("al-limits-error"), error.message);
      id("al-limits-error").hidden = false;
    } finally {
      button.disabled = false;
    }
  };
  limitsForm.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = Object.fromEntries([...new FormData(event.target)].filter(([, value]) => value.trim()));
    ask(event.submitter || limitsForm.querySelector("[type=submit]"), "/resources/limits", { limits: wanted });
  });
  id("al-reset").addEventListener("click", (event) => ask(event.target, "/resources/reset", {}));
}

watch();
