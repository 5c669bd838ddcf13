// When each step waited and ran: only the rows in sight are drawn, so that 5,000 steps cost no more than 50.

import { duration, id, now, setText, shortName } from "./page.js";
import { STATES } from "./steps.js";

const ROW = 22, LABEL = 170, TOP = 24;

export class Timeline {
  constructor(steps, choose) {
    this.steps = steps;
    this.frame = id("al-timeline");
    [this.canvas, this.spacer] = this.frame.children;
    this.rows = [];
    this.pauses = [];
    this.run = null;
    this.frame.addEventListener("scroll", () => this.paint());
    addEventListener("resize", () => this.paint());
    this.canvas.addEventListener("click", (event) => {
      const row = this.rows[Math.floor((event.offsetY - TOP + this.frame.scrollTop) / ROW)];
      if (row) choose(row.step.id);
    });
  }

  /** Look at all steps anew, and paint. */
  update(run) {
    this.run = run;
    const since = this.steps.ready(run.started_at || run.called_at);
    this.rows = [...this.steps.byId.values()]
      .map((step) => ({ step, ready: since.get(step.id) ?? step.started }))
      .filter(({ step, ready }) => ready || step.started)
      .sort((one, other) => (one.step.started || Infinity) - (other.step.started || Infinity) || one.ready - other.ready);
    this.spacer.style.height = `${this.rows.length * ROW + TOP}px`;
    this.frame.setAttribute("aria-label", `Timeline of ${this.rows.length} steps; the Steps tab has the same as a table`);
    this.paint();
  }

  paint() {
    if (!this.run || !this.frame.clientWidth) return;
    const { clientWidth: width, clientHeight: height } = this.frame;
    const dense = window.devicePixelRatio || 1;
    if (this.canvas.width !== width * dense || this.canvas.height !== height * dense) {
      this.canvas.width = width * dense;
      this.canvas.height = height * dense;
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${height}px`;
    }
    const to = this.run.ended_at || now(), from = this.run.called_at;
    const label = Math.min(LABEL, width * 0.35);
    const x = (time) => label + ((width - label - 8) * (time - from)) / Math.max(0.001, to - from);
    const pen = this.canvas.getContext("2d");
    const style = getComputedStyle(this.frame);
    const colour = (name) => style.getPropertyValue(name).trim();
    pen.setTransform(dense, 0, 0, dense, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = `12px ${style.fontFamily}`;
    pen.textBaseline = "middle";
    for (const [begin, end] of this.pauses) this.bar(pen, x(Math.max(begin, from)), x(Math.min(end ?? to, to)), 0, height, colour("--al-pause"));
    const first = Math.floor(this.frame.scrollTop / ROW);
    for (let index = first; index < this.rows.length && (index - first) * ROW < height; index++) {
      const { step, ready } = this.rows[index];
      const y = TOP + index * ROW - this.frame.scrollTop;
      pen.fillStyle = colour("--bs-body-color");
      pen.fillText(shortName(step.name), 8, y + ROW / 2, label - 14);
      const begin = step.started ?? (step.ended || to);
      if (ready && begin > ready) this.bar(pen, x(ready), x(begin), y + 8, ROW - 16, colour("--al-waiting"));
      if (step.started) this.bar(pen, x(step.started), x(step.ended || to), y + 4, ROW - 8, colour(`--al-${STATES[step.state].toLowerCase()}`));
    }
    this.axis(pen, x, from, to, label, width, colour);
    setText(id("al-span"), duration(to - from));
  }

  bar(pen, left, right, top, height, fill) {
    pen.fillStyle = fill;
    pen.fillRect(left, top, Math.max(1.5, right - left), height);
  }

  axis(pen, x, from, to, label, width, colour) {
    pen.fillStyle = colour("--flower-surface");
    pen.fillRect(0, 0, width, TOP - 2);
    const wide = (to - from) / Math.max(2, Math.floor((width - label) / 110));
    const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400].find((one) => one >= wide) || wide;
    for (let time = 0; time <= to - from; time += step) {
      pen.fillStyle = colour("--bs-border-color");
      pen.fillRect(x(from + time), 0, 1, this.frame.clientHeight);
      pen.fillStyle = colour("--flower-text-muted");
      pen.fillText(duration(time), x(from + time) + 4, TOP / 2);
    }
  }
}
