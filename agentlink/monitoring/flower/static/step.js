// The panel beside the graph: all there is to see of one step.

import { badge, duration, make, readOnly, root, shortName, size, when } from "./page.js";

export class StepPanel {
  constructor(frame, { retry, close }) {
    this.frame = frame;
    this.retry = retry;
    this.close = close;
  }

  size(bytes) {
    return size(bytes);
  }

  open(stepId) {
    this.frame.hidden = !stepId;
    if (stepId) this.frame.replaceChildren(make("p", { class: "al-muted" }, "…"));
  }

  show(step, run) {
    const log = this.frame.querySelector(".al-log");
    const atEnd = !log || log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    const scrolled = this.frame.scrollTop;
    this.frame.replaceChildren(...(step.gone ? this.none(step) : this.facts(step, run)));
    this.frame.scrollTop = scrolled;
    const newLog = this.frame.querySelector(".al-log");
    if (newLog) newLog.scrollTop = atEnd ? newLog.scrollHeight : log.scrollTop;
  }

  none(step) {
    return [this.head("Step", null), make("p", { class: "al-muted" }, `This run has no step ${step.id}.`)];
  }

  head(name, state) {
    return make("header", {}, make("h2", {}, name, " ", state && badge(state)),
      make("button", { class: "btn-close", type: "button", "aria-label": "Close", onclick: this.close }));
  }

  facts(step, run) {
    const took = step.started_at && step.ended_at ? duration(step.ended_at - step.started_at) : "";
    const facts = [
      ["Task", step.name],
      ["Id", make("code", {}, step.id)],
      step.place && ["Place", step.place],
      step.attempt && ["Attempt", String(step.attempt)],
      step.worker && ["Worker", step.worker],
      step.started_at && ["Began", `${when(step.started_at)}${took && `, took ${took}`}`],
      step.waiting_for && ["Waits for", step.waiting_for],
      (step.peak_bytes !== null || step.reserved_bytes) && ["Memory", memory(step)],
      step.cpu_s !== null && ["CPU", duration(step.cpu_s)],
    ].filter(Boolean);
    const may = run && ["FAILED", "CANCELLED", "SUCCEEDED"].includes(run.state) && step.place && !readOnly;
    return [
      this.head(shortName(step.name), step.state),
      make("div", { class: "al-actions" },
        may ? make("button", { type: "button", class: "btn btn-sm btn-outline-primary", onclick: (event) => this.retry(event.target, step) }, "Run again from here") : null,
        step.is_run ? make("a", { class: "btn btn-sm btn-outline-secondary", href: `${root}/workflows/run/${encodeURIComponent(step.id)}` }, "Open its run") : null),
      make("dl", {}, ...facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)])),
      ...text("Arguments", step.arguments ?? "Flower was not there when the step was sent"),
      ...text("Error", step.error, "al-error"),
      ...text("Traceback", step.traceback),
      ...text("Result", step.result),
      ...text("Output", step.output),
      ...text("Log", step.log.map(([at, attempt, line]) => `${when(at)} ${attempt > 1 ? `(${attempt}) ` : ""}${line}`).join("\n"), "al-log"),
    ];
  }
}

function memory({ peak_bytes: peak, reserved_bytes: reserved }) {
  if (peak === null) return `${size(reserved)} reserved`;
  if (!reserved) return size(peak);
  const over = peak > reserved;
  return make("span", { class: over ? "al-error" : null }, `${size(peak)} of ${size(reserved)} reserved`,
    make("span", { class: "al-bar", "aria-hidden": "true" }, fill(Math.min(100, (100 * peak) / reserved), over)));
}

function fill(percent, over) {
  const bar = make("span", { class: `al-bar-fill${over ? " al-failed" : ""}` });
  bar.style.width = `${percent}%`;
  return bar;
}

function text(title, words, more = "") {
  return words ? [make("h3", {}, title), make("pre", { class: `al-code ${more}`, tabindex: 0, "aria-label": title }, words)] : [];
}
