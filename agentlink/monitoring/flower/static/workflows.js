// The Workflows page: the table of runs, its filters, what is done to several runs, and the form that starts one.

import { badge, changing, clockIs, count, duration, follow, id, make, now, readOnly, root, setText, shortName, size, sure,
  when } from "./page.js";
import { WorkflowForm } from "./form.js";

const STATES = ["", "QUEUED", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLED"];
const ENDED = ["SUCCEEDED", "FAILED", "CANCELLED"];

const filters = id("al-filters");
const body = id("al-runs").tBodies[0];
const lines = new Map(); // run's id -> { row: what is known, cells, line }
const chosen = new Set();
const query = new URLSearchParams(location.search);

// -- Filters: kept in the address, so that a link leads to the same runs.

function watch() {
  const address = query.toString();
  history.replaceState(null, "", address ? `?${address}` : location.pathname);
  follow(`/workflows/stream?${address}`, { runs: show });
}

function filter(name, value) {
  if (value) query.set(name, value);
  else query.delete(name);
  query.delete("page");
  choose([]);
  watch();
}

for (const state of STATES) {
  const button = make("button", { type: "button", class: "al-chip", "data-state": state,
    onclick: () => { filter("state", state); mark(); } },
    make("span", {}, state ? state.toLowerCase() : "all"), make("b", {}));
  id("al-states").append(button);
}

function mark() {
  for (const button of id("al-states").children) {
    button.setAttribute("aria-pressed", String(button.dataset.state === (query.get("state") || "")));
  }
}

let typing = 0;
filters.addEventListener("input", (event) => {
  clearTimeout(typing);
  typing = setTimeout(() => filter(event.target.name, event.target.value.trim()), 300);
});
filters.addEventListener("submit", (event) => event.preventDefault());
for (const field of filters.querySelectorAll("input")) field.value = query.get(field.name) || "";

function turn(by) {
  query.set("page", String(Math.max(0, Number(query.get("page") || 0) + by)));
  choose([]);
  watch();
}
id("al-newer").addEventListener("click", () => turn(-1));
id("al-older").addEventListener("click", () => turn(1));

// -- The table.

function show(told) {
  clockIs(told.now);
  const kept = new Set(told.order);
  for (const [runId, { line }] of lines) {
    if (!kept.has(runId)) { line.remove(); lines.delete(runId); chosen.delete(runId); }
  }
  for (const [runId, row] of Object.entries(told.rows)) fill(runId, row);
  let place = body.firstElementChild;
  for (const runId of told.order) {
    const line = lines.get(runId).line;
    if (line === place) place = place.nextElementSibling;
    else body.insertBefore(line, place);
  }
  id("al-empty").hidden = told.order.length > 0;
  const last = told.skip + told.order.length;
  const total = told.total === null ? `more than ${count(last)}` : count(told.total);
  setText(id("al-range"), told.order.length ? `${count(told.skip + 1)}–${count(last)} of ${total}` : "");
  id("al-newer").disabled = told.skip === 0;
  id("al-older").disabled = told.total !== null && last >= told.total;
  let all = 0;
  for (const button of id("al-states").children) {
    const number = told.counts[button.dataset.state];
    if (number !== undefined) { setText(button.querySelector("b"), count(number)); all += number; }
  }
  setText(id("al-states").firstElementChild.querySelector("b"), count(all));
  choose(chosen);
  for (const { row } of lines.values()) name(row.workflow);
}

const names = new Set();

function name(workflow) {
  if (names.has(workflow)) return;
  names.add(workflow);
  id("al-names").append(make("option", { value: shortName(workflow) }));
}

function begin(runId) {
  const cell = (name) => make("td", { class: name });
  const cells = { workflow: cell("al-workflow"), state: cell(), progress: cell("al-progress"), called: cell(),
    time: cell("al-number"), memory: cell("al-number"), cpu: cell("al-number"), what: cell("al-what") };
  cells.link = make("a", { href: `${root}/workflows/run/${encodeURIComponent(runId)}` });
  cells.about = make("small", { class: "al-muted" });
  cells.workflow.append(cells.link, cells.about);
  cells.bar = make("span", { class: "al-bar-fill" });
  cells.steps = make("small");
  cells.progress.append(make("span", { class: "al-bar", "aria-hidden": "true" }, cells.bar), cells.steps);
  cells.check = make("input", { type: "checkbox", class: "form-check-input",
    onchange: (event) => { event.target.checked ? chosen.add(runId) : chosen.delete(runId); choose(chosen); } });
  const line = make("tr", { "data-run": runId },
    readOnly ? null : make("td", { class: "al-check" }, cells.check),
    cells.workflow, cells.state, cells.progress, cells.called, cells.time, cells.memory, cells.cpu, cells.what);
  const known = { line, cells, row: null };
  lines.set(runId, known);
  return known;
}

function fill(runId, row) {
  const known = lines.get(runId) || begin(runId);
  const { cells } = known;
  setText(cells.link, shortName(row.workflow));
  cells.link.title = `${row.workflow} ${runId}`;
  cells.check.setAttribute("aria-label", `Choose run ${runId} of ${shortName(row.workflow)}`);
  const about = [runId.slice(0, 8), row.agent && `agent ${row.agent}`, ...row.tags.map((tag) => `#${tag}`),
    row.parent_id && "a step of another run"];
  setText(cells.about, about.filter(Boolean).join(" · "));
  if (!known.row || known.row.state !== row.state || known.row.waits !== row.waits) {
    cells.state.replaceChildren(badge(row.state));
    if (row.waits) cells.state.append(make("span", { class: "al-state al-asks" }, "waits for a signal"));
  }
  cells.bar.style.width = `${row.total ? (100 * row.done) / row.total : 0}%`;
  cells.bar.className = `al-bar-fill al-${row.state.toLowerCase()}`;
  const running = row.running ? `, ${count(row.running)} running` : "";
  setText(cells.steps, row.total ? `${count(row.done)} of ${count(row.total)}${running}` : "");
  setText(cells.called, when(row.called_at));
  setText(cells.memory, size(row.peak_bytes));
  setText(cells.cpu, row.cpu_s ? duration(row.cpu_s) : "");
  setText(cells.what, row.error || row.arguments);
  cells.what.classList.toggle("al-error", Boolean(row.error));
  cells.what.title = row.error || row.arguments;
  known.row = row;
  tick(known);
}

function tick({ row, cells }) {
  setText(cells.time, duration((row.ended_at || now()) - row.called_at));
}
setInterval(() => {
  if (document.hidden) return;
  for (const known of lines.values()) if (!ENDED.includes(known.row.state)) tick(known);
}, 1000);

// -- Several at once.

function choose(ids) {
  if (ids !== chosen) { chosen.clear(); for (const runId of ids) chosen.add(runId); }
  for (const [runId, { cells }] of lines) cells.check.checked = chosen.has(runId);
  if (readOnly) return;
  id("al-all").checked = chosen.size > 0 && chosen.size === lines.size;
  id("al-bulk").hidden = chosen.size === 0;
  setText(id("al-chosen"), `${chosen.size} chosen`);
}

if (!readOnly) {
  id("al-all").addEventListener("change", (event) => choose(event.target.checked ? [...lines.keys()] : []));
  for (const button of document.querySelectorAll("[data-bulk]")) {
    const action = button.dataset.bulk;
    button.addEventListener("click", async () => {
      const runs = [...chosen];
      if (action === "cancel" && !sure(`Cancel ${runs.length} ${runs.length === 1 ? "run" : "runs"}?`)) return;
      const answer = await changing(button, `/workflows/${action}`, { runs }, (done) => {
        const refused = Object.values(done.refused);
        return `${done.changed} ${action === "cancel" ? "cancelled" : "resumed"}`
          + (refused.length ? `; ${refused.length} not: ${refused[0]}` : "");
      });
      if (answer) choose([]);
    });
  }
}

if (!readOnly) {
  const form = new WorkflowForm("al-form", "/workflows/start", ({ run }) => `Run ${run} is queued.`);
  id("al-start").addEventListener("click", () => form.open());
}

mark();
watch();
