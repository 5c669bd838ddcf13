// Plots of the history: limits dashed, pauses shaded, evictions marked; what is new is added at the end.

import { id, make, size } from "./page.js";

const PERCENT = (value) => `${Math.round(100 * value)} %`;
const COUNT = (value) => (Math.abs(value) >= 1000 ? `${Number((value / 1000).toPrecision(3))} k` : String(Number(value.toFixed(1))));
const PLOTS = [
  { title: "Memory", unit: size, lines: [["memory_bytes", "used", 0], ["reserved_bytes", "reserved", 3], ["memory_limit_bytes", "limit", "limit"]] },
  { title: "CPU", unit: PERCENT, lines: [["cpu_fraction", "used", 0], ["cpu_limit_fraction", "limit", "limit"]] },
  { title: "Tasks", unit: COUNT, lines: [["tasks_running", "running", 0], ["tasks_waiting", "waiting for room", 3]] },
  { title: "Messages in queues", unit: COUNT, queues: true, lines: [] },
  { title: "Tasks that ended", unit: COUNT, lines: [["tasks_done", "succeeded", 1], ["tasks_failed", "failed", 2], ["tasks_retried", "retried", 3]] },
  { title: "Free disk", unit: size, lines: [["disk_free_bytes", "free", 0], ["disk_free_limit_bytes", "must stay", "limit"]] },
  { title: "Memory of the broker", unit: size, lines: [["broker_memory_bytes", "used", 0], ["broker_memory_limit_bytes", "limit", "limit"]] },
];
const COLOURS = ["--al-running", "--al-succeeded", "--al-failed", "--al-retrying", "--al-cancelled", "--al-asks"];
const DEPTH = "queue_depth:";
const HEIGHT = 170;

export class Plots {
  constructor() {
    this.frame = id("al-plots");
    this.known = null; // times and values by series
    this.drawn = [];
    new ResizeObserver(() => this.fit()).observe(this.frame);
    new MutationObserver(() => this.known && this.draw()).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
  }

  /** Rows of the history: all, or those that have come since. */
  take(told) {
    if (!told.more || !this.known) {
      this.known = told;
      this.draw();
      return;
    }
    const { known } = this;
    known.times.push(...told.times);
    for (const [name, values] of Object.entries(told.values)) known.values[name].push(...values);
    const old = known.times.findIndex((time) => time > known.times[known.times.length - 1] - told.span_s);
    known.times.splice(0, old);
    for (const values of Object.values(known.values)) values.splice(0, old);
    for (const { plot, lines } of this.drawn) plot.setData(this.data(lines));
  }

  data(lines) {
    return [this.known.times, ...lines.map(([name]) => this.known.values[name] || [])];
  }

  draw() {
    const style = getComputedStyle(this.frame);
    const colour = (name) => style.getPropertyValue(name).trim();
    for (const { plot } of this.drawn) plot.destroy();
    this.frame.replaceChildren();
    this.drawn = PLOTS.map((wanted) => {
      const lines = wanted.queues
        ? Object.keys(this.known.values).filter((name) => name.startsWith(DEPTH)).map((name, index) => [name, name.slice(DEPTH.length), index % COLOURS.length])
        : wanted.lines;
      const card = make("section", { class: "al-card al-plot", "aria-label": `Plot: ${wanted.title}` }, make("h3", {}, wanted.title));
      this.frame.append(card);
      const plot = new uPlot(this.options(wanted, lines, card.clientWidth, colour), this.data(lines), card);
      return { plot, lines, card };
    });
  }

  options({ unit }, lines, width, colour) {
    const axis = { stroke: colour("--flower-text-muted"), grid: { stroke: colour("--bs-border-color"), width: 0.5 }, ticks: { show: false }, font: "11px sans-serif" };
    const shown = (_, value) => (value === null || value === undefined ? "–" : unit(value));
    return {
      width: Math.max(200, width - 8), height: HEIGHT,
      scales: { y: { range: (_, least, most) => [0, Math.max(most || 0, 1e-9) * 1.08] } },
      axes: [{ ...axis, values: (_, times) => times.map((time) => this.clock(time)) }, { ...axis, size: 62, values: (_, values) => values.map(unit) }],
      series: [{ value: (_, at) => (at ? new Date(at * 1000).toLocaleTimeString([], { hour12: false }) : "") },
        ...lines.map(([, label, look]) => look === "limit"
          ? { label, stroke: colour("--al-failed"), dash: [6, 4], width: 1.2, points: { show: false }, value: shown }
          : { label, stroke: colour(COLOURS[look]), width: 1.6, points: { show: false }, value: shown })],
      cursor: { sync: { key: "resources" }, points: { size: 6 } },
      hooks: { drawClear: [(plot) => this.shade(plot, colour)] },
    };
  }

  /** A time of the axis: the day where the plot shows several. */
  clock(at) {
    const then = new Date(at * 1000);
    if (this.known.span_s > 86400) return then.toLocaleDateString([], { month: "short", day: "numeric" });
    const fine = this.known.span_s <= 3600 && at % 60 !== 0;
    return then.toLocaleTimeString([], { hour12: false, hour: "2-digit", minute: "2-digit", ...(fine ? { second: "2-digit" } : {}) });
  }

  /** Behind the lines: when workers were paused, and where something was evicted. */
  shade(plot, colour) {
    const { times, values } = this.known;
    const { left, top, width, height } = plot.bbox;
    const pen = plot.ctx;
    const x = (time) => Math.min(left + width, Math.max(left, plot.valToPos(time, "x", true)));
    pen.save();
    pen.fillStyle = colour("--al-pause");
    for (let index = 0; index < times.length; index++) {
      if (!(values.paused_fraction[index] > 0)) continue;
      const begin = index;
      while (index + 1 < times.length && values.paused_fraction[index + 1] > 0) index++;
      pen.fillRect(x(times[begin]), top, Math.max(2, x(times[index] + this.known.step_s) - x(times[begin])), height);
    }
    pen.fillStyle = colour("--al-failed");
    times.forEach((time, index) => values.evictions[index] > 0 && pen.fillRect(x(time), top, 2, height));
    pen.restore();
  }

  fit() {
    for (const { plot, card } of this.drawn) plot.setSize({ width: Math.max(200, card.clientWidth - 8), height: HEIGHT });
  }
}

