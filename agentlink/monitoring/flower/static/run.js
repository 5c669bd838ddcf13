// The page of one run: its facts, what it waits for, its steps in three views, and the step that is chosen.

import { badge, changing, clockIs, count, duration, follow, id, make, now, readOnly, root, setText, shortName, sure,
  when } from "./page.js";
import { Graph } from "./graph.js";
import { StepPanel } from "./step.js";
import { STATES, Steps } from "./steps.js";
import { Timeline } from "./timeline.js";

const runId = id("al-run").dataset.run;
const address = `/workflows/run/${encodeURIComponent(runId)}`;
const steps = new Steps();
const graph = new Graph(steps, choose);
const timeline = new Timeline(steps, choose);
const panel = new StepPanel(id("al-step"), { address, retry, close: () => choose(null) });
const ROWS_MAX = 300;
let run = null;
let view = "graph";
let stale = true; // the view in sight has yet to be brought up to date

// -- What the stream tells.

function watch() {
  const chosen = new URLSearchParams(location.search).get("step");
  steps.byId.size && graph.mark(chosen);
  follow(`${address}/stream${chosen ? `?step=${encodeURIComponent(chosen)}` : ""}`, {
    graph: takeGraph,
    steps: takeSteps,
    run: takeRun,
    pauses: (bands) => { timeline.pauses = bands; stale = true; },
    step: (step) => panel.show(step, run),
  });
}

let shape = "";

function takeGraph(graphs) {
  const said = JSON.stringify(graphs);
  if (said === shape) return; // told again since another step is chosen
  shape = said;
  steps.graphs = graphs;
  graph.shape = true;
}

function takeSteps(told) {
  const places = steps.take(told);
  if (graph.shape) {
    graph.shape = false;
    graph.draw();
    graph.mark(new URLSearchParams(location.search).get("step"));
  } else graph.update(places);
  stale = true;
}

function takeRun(told) {
  clockIs(told.now);
  run = told;
  document.title = `${shortName(run.workflow)} · AgentLink`;
  setText(id("al-name"), shortName(run.workflow));
  id("al-state").replaceChildren(badge(run.state));
  const ended = Boolean(run.ended_at) && !["QUEUED", "RUNNING"].includes(run.state);
  if (!readOnly) {
    id("al-cancel").hidden = ended;
    id("al-resume").hidden = !["FAILED", "CANCELLED"].includes(run.state);
  }
  id("al-done").style.width = `${run.total ? (100 * run.done) / run.total : 0}%`;
  id("al-done").className = `al-bar-fill al-${run.state.toLowerCase()}`;
  if (run.parent_id) {
    id("al-parent").replaceChildren("a step of ", make("a", { href: `${root}/workflows/run/${encodeURIComponent(run.parent_id)}` }, run.parent_id.slice(0, 8)), " / ");
  }
  showFacts();
  showWaits();
  stale = true;
}

const facts = new Map(); // name -> what it says, and its two elements: what is the same stays, and can be copied meanwhile

function showFacts() {
  const { failure } = run;
  const wanted = [
    ["Workflow", run.workflow],
    ["Arguments", run.arguments || "none"],
    ["Called", `${when(run.called_at)}${run.agent ? ` by agent ${run.agent}` : ""}`],
    ["Time", "", () => make("span", { id: "al-time" })],
    ["Steps", `${count(run.done)} of ${count(run.total)} have ended`],
    run.tags.length && ["Tags", run.tags.join(", ")],
    failure.error && ["Failed", JSON.stringify(failure), failed],
    run.result !== null && ["Result", run.result, () => make("pre", { class: "al-code", tabindex: 0, "aria-label": "Result" }, run.result)],
  ].filter(Boolean);
  const names = wanted.map(([name]) => name);
  for (const [name, { title, body }] of facts) {
    if (!names.includes(name)) { title.remove(); body.remove(); facts.delete(name); }
  }
  for (const [name, said, made] of wanted) {
    const known = facts.get(name) || { title: make("dt", {}, name), body: make("dd") };
    if (known.said !== said) known.body.replaceChildren(made ? made() : said);
    if (!facts.has(name)) id("al-facts").append(known.title, known.body);
    facts.set(name, { ...known, said });
  }
  tickTime();
}

function failed() {
  const { failure } = run;
  return make("div", {},
    failure.step_id ? make("button", { type: "button", class: "al-link", onclick: () => choose(failure.step_id) }, `${shortName(failure.step || "step")} at ${failure.place || "-"}`) : null,
    make("pre", { class: "al-code al-error", tabindex: 0, "aria-label": "Error" }, failure.error),
    failure.traceback ? make("details", {}, make("summary", {}, "Traceback"), make("pre", { class: "al-code", tabindex: 0, "aria-label": "Traceback" }, failure.traceback)) : null);
}

function tickTime() {
  const time = id("al-time");
  if (time && run) setText(time, duration((run.ended_at || now()) - run.called_at));
}

// -- What it waits for, with the answers a person may give.

let waitsShown = "";

function showWaits() {
  const said = JSON.stringify(run.waits);
  if (said === waitsShown) return; // a half-written answer stays
  waitsShown = said;
  graph.asks(run.waits.map((wait) => wait.step));
  id("al-waits").replaceChildren(...run.waits.map(waitCard));
}

function waitCard(wait) {
  const until = wait.until ? `, until ${when(wait.until)}` : "";
  if (!wait.name) return make("section", { class: "al-card al-wait" }, make("p", {}, `A step waits for its time${until}.`));
  const send = (button, payload) =>
    changing(button, `${address}/signal`, { name: wait.name, payload }, (answer) => answer.said);
  const other = make("input", { class: "form-control", placeholder: "other answer, as JSON", "aria-label": `Other answer to ${wait.name}, as JSON` });
  const actions = make("div", { class: "al-actions" },
    make("button", { type: "button", class: "btn btn-sm btn-primary", onclick: (event) => send(event.target, true) }, "Approve"),
    make("button", { type: "button", class: "btn btn-sm btn-outline-danger", onclick: (event) => send(event.target, false) }, "Refuse"),
    other,
    make("button", { type: "button", class: "btn btn-sm btn-outline-secondary", onclick: (event) => {
      let payload = other.value;
      try { payload = JSON.parse(other.value); } catch { /* text that is no JSON is the answer itself */ }
      send(event.target, payload);
    } }, "Send"));
  return make("section", { class: "al-card al-wait", "aria-label": `Waits for ${wait.name}` },
    make("p", {}, make("b", {}, wait.prompt || `Waits for the signal ${wait.name}`), make("small", { class: "al-muted" }, ` ${wait.name}, since ${when(wait.since)}${until}`)),
    readOnly ? null : actions);
}

// -- Choosing a step, and what is done.

function choose(stepId) {
  const query = new URLSearchParams(location.search);
  if (stepId) query.set("step", stepId);
  else query.delete("step");
  const words = query.toString();
  history.replaceState(null, "", words ? `?${words}` : location.pathname);
  panel.open(stepId);
  graph.mark(stepId);
  watch();
}

async function retry(button, step) {
  if (!sure(`Run ${shortName(step.name)} again, and all that comes after it?`)) return;
  await changing(button, `${address}/retry`, { step: step.id }, (answer) => answer.said);
}

if (!readOnly) {
  for (const action of ["cancel", "resume"]) {
    const button = id(`al-${action}`);
    button.addEventListener("click", () => {
      if (action === "resume" || sure("Cancel this run?")) changing(button, `${address}/${action}`, {}, (answer) => answer.said);
    });
  }
}

// -- The three views.

const tabs = [...document.querySelectorAll(".al-tabs [role=tab]")];

function look(name) {
  view = name;
  stale = true;
  for (const tab of tabs) {
    const shown = tab.id === `al-tab-${name}`;
    tab.setAttribute("aria-selected", String(shown));
    tab.tabIndex = shown ? 0 : -1;
    id(tab.getAttribute("aria-controls")).hidden = !shown;
  }
  if (name === "graph" && graph.updates) graph.scale(graph.fitted === false ? graph.zoom : null);
  refresh();
}
for (const tab of tabs) {
  tab.addEventListener("click", () => look(tab.id.slice("al-tab-".length)));
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const next = tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}

function refresh() {
  if (!run) return;
  tickTime();
  const going = !run.ended_at;
  if (view === "timeline" && (stale || going)) timeline.update(run);
  if (view === "steps" && (stale || going)) table();
  stale = false;
}
setInterval(() => document.hidden || refresh(), 1000);

function table() {
  const since = steps.ready(run.started_at || run.called_at);
  const text = id("al-steps-text").value.trim().toLowerCase();
  const found = [...steps.byId.values()].filter((step) =>
    !text || [step.name, step.place, step.id, STATES[step.state]].some((word) => word.toLowerCase().includes(text)));
  found.sort((one, other) => one.place.localeCompare(other.place, "en", { numeric: true }));
  setText(id("al-steps-count"), found.length > ROWS_MAX ? `the first ${ROWS_MAX} of ${count(found.length)}` : `${count(found.length)}`);
  id("al-steps").replaceChildren(...found.slice(0, ROWS_MAX).map((step) => {
    const ready = since.get(step.id);
    const begun = step.started || (step.ended ? null : now());
    const cell = (words) => make("td", { class: "al-number" }, words || "");
    return make("tr", { "data-step": step.id },
      make("td", { class: "al-workflow" }, make("button", { type: "button", class: "al-link", onclick: () => choose(step.id) }, shortName(step.name))),
      make("td", {}, step.place), make("td", {}, badge(STATES[step.state])), cell(step.attempt > 1 ? String(step.attempt) : ""),
      cell(ready && begun ? duration(Math.max(0, begun - ready)) : ""),
      cell(step.started ? duration((step.ended || now()) - step.started) : ""),
      cell(panel.size(step.peak)), cell(step.cpu ? duration(step.cpu) : ""));
  }));
}
id("al-steps-text").addEventListener("input", () => run && table());

panel.open(new URLSearchParams(location.search).get("step"));
watch();
