// The graph of a run as a picture: drawn anew when its shape changes, and coloured where steps have changed.

import { count as shownCount, duration, id, make, now, setText, shortName } from "./page.js";
import { CELL, FOLDED, layout } from "./layout.js";
import { FAILED, RUNNING, STATES, SUCCEEDED, stateOf, total } from "./steps.js";

const MARGIN = 12, ZOOM_STEP = 1.25, CELLS_MAX = 20000, NAME_CHARS = 21, READABLE = 0.65;

export class Graph {
  constructor(steps, choose) {
    this.steps = steps;
    this.choose = choose;
    this.frame = id("al-graph");
    this.opened = new Set();
    this.focus = "";
    this.zoom = null;
    this.chosen = null;
    this.asking = new Set(); // steps that wait for a signal
    id("al-zoom-in").addEventListener("click", () => this.scale(this.zoom * ZOOM_STEP));
    id("al-zoom-out").addEventListener("click", () => this.scale(this.zoom / ZOOM_STEP));
    id("al-zoom-fit").addEventListener("click", () => this.scale(null, 0));
    this.frame.addEventListener("keydown", (event) => {
      if (event.key === "+") this.scale(this.zoom * ZOOM_STEP);
      if (event.key === "-") this.scale(this.zoom / ZOOM_STEP);
      if (event.key === "0") this.scale(null, 0);
    });
    addEventListener("resize", () => this.fitted && this.scale(null));
  }

  /** Draw everything anew. */
  draw() {
    const drawn = layout(this.steps, this.focus, this.opened);
    this.width = drawn.width + 2 * MARGIN;
    this.height = drawn.height + 2 * MARGIN;
    this.updates = new Map(); // place -> what to do when a step there changes
    const lines = make("svg:path", { class: "al-lines", d: drawn.lines.map(curve).join("") });
    this.svg = make("svg:svg", { viewBox: `${-MARGIN} ${-MARGIN} ${this.width} ${this.height}`, role: "group", "aria-label": "Steps" },
      lines, ...drawn.boxes.map((box) => (box.kind === "step" ? this.step(box) : this.row(box))));
    this.frame.replaceChildren(this.svg);
    this.crumbs();
    this.scale(this.fitted === false ? this.zoom : null);
  }

  /** Colour what has changed. */
  update(places) {
    if (!this.updates) return;
    if (places.size > this.updates.size) for (const [place, update] of this.updates) places.has(place) && update();
    else for (const place of places) this.updates.get(place)?.();
  }

  /** The steps that wait for a signal now. */
  asks(stepIds) {
    const changed = [...stepIds, ...this.asking].map((stepId) => this.steps.byId.get(stepId)?.place);
    this.asking = new Set(stepIds);
    this.update(new Set(changed));
  }

  mark(stepId) {
    this.chosen = stepId;
    for (const marked of this.frame.querySelectorAll(".al-chosen")) marked.classList.remove("al-chosen");
    const step = stepId && this.steps.byId.get(stepId);
    if (step) this.frame.querySelector(`[data-place="${CSS.escape(step.place)}"]`)?.classList.add("al-chosen");
  }

  /** So large; or as wide as there is room, but not smaller than can be read unless asked for. */
  scale(zoom, least = READABLE) {
    this.fitted = zoom === null;
    this.zoom = Math.min(3, Math.max(0.1, zoom ?? Math.max(least, Math.min(1, this.frame.clientWidth / this.width))));
    this.svg?.setAttribute("width", Math.round(this.width * this.zoom));
    this.svg?.setAttribute("height", Math.round(this.height * this.zoom));
    if (this.fitted) this.frame.scrollLeft = (this.frame.scrollWidth - this.frame.clientWidth) / 2;
  }

  crumbs() {
    const places = this.focus ? this.focus.split(".") : [];
    const crumb = (label, place) => make("button", { type: "button", class: "al-link", "aria-current": place === this.focus ? "true" : null, onclick: () => this.look(place) }, label);
    const found = [crumb("whole run", "")];
    places.forEach((index, depth) => found.push(" / ", crumb(`part ${Number(index) + 1}`, places.slice(0, depth + 1).join("."))));
    id("al-crumbs").replaceChildren(...(places.length ? found : []));
  }

  /** Show the part at a place alone. */
  look(place) {
    this.focus = place;
    this.fitted = true;
    this.draw();
  }

  step({ place, x, y, width, height }) {
    const name = make("svg:text", { x: 14, y: 19, class: "al-box-name" });
    const about = make("svg:text", { x: 14, y: 36, class: "al-box-about" });
    const stripe = make("svg:rect", { width: 5, height, rx: 2.5, class: "al-fill" });
    const press = () => { const step = this.steps.byPlace.get(place); if (step) this.choose(step.id); };
    const box = make("svg:g", { class: "al-box", transform: `translate(${x} ${y})`, "data-place": place, ...pressed(press) },
      make("svg:rect", { width, height, rx: 6, class: "al-box-back" }), stripe, name, about);
    const update = () => {
      const step = this.steps.byPlace.get(place);
      const asks = step && this.asking.has(step.id);
      const state = (step ? STATES[step.state] : "WAITING").toLowerCase();
      box.dataset.state = asks ? "asks" : state;
      setText(name, cut(step ? shortName(step.name) : "…"));
      const took = step && step.started ? duration((step.ended || now()) - step.started) : "";
      const progress = step && step.progress != null && step.state === RUNNING ? `${Math.floor(100 * step.progress)} %` : "";
      const attempt = step && step.attempt > 1 ? `attempt ${step.attempt}` : "";
      setText(about, [asks ? "waits for a signal" : state, progress || (step && step.state >= SUCCEEDED ? took : ""), attempt].filter(Boolean).join(" · "));
      box.setAttribute("aria-label", `${name.textContent}, ${about.textContent}`);
    };
    this.updates.set(place, update);
    update();
    if (this.chosen && this.steps.byPlace.get(place)?.id === this.chosen) box.classList.add("al-chosen");
    return box;
  }

  row(row) {
    const { place, x, y, width, height, many, open } = row;
    const name = make("svg:text", { x: 14, y: 20, class: "al-box-name" });
    const about = make("svg:text", { x: 14, y: 37, class: "al-box-about" });
    const bars = STATES.map((state) => make("svg:rect", { y: 46, height: 7, class: "al-fill", "data-state": state.toLowerCase() }));
    const toggle = () => { open ? this.opened.delete(place) : this.opened.add(place); this.draw(); };
    const head = make("svg:g", { class: "al-row-head", ...pressed(toggle), "aria-expanded": String(Boolean(open)) },
      make("svg:rect", { width, height: FOLDED.height, rx: 6, class: "al-box-back" }), name, about, ...bars);
    const box = make("svg:g", { class: "al-box al-row", transform: `translate(${x} ${y})` },
      make("svg:rect", { x: 3, y: 3, width, height, rx: 6, class: "al-box-back al-behind" }),
      make("svg:rect", { width, height, rx: 6, class: "al-box-back" }), head);
    const update = () => {
      const states = this.countOf(row);
      const all = total(states) || 1;
      let left = 14;
      bars.forEach((bar, state) => {
        const wide = ((width - 28) * states[state]) / all;
        bar.setAttribute("x", left);
        bar.setAttribute("width", wide);
        left += wide;
      });
      setText(name, `${open ? "▾" : "▸"} ${cut(this.nameOf(place), 16)} × ${shownCount(many)}`);
      const words = [[SUCCEEDED, "done"], [RUNNING, "running"], [FAILED, "failed"]].filter(([state]) => states[state]);
      setText(about, words.map(([state, word]) => `${shownCount(states[state])} ${word}`).join(", ") || "waiting");
      head.setAttribute("aria-label", `${many} times ${this.nameOf(place)}: ${about.textContent}; ${open ? "fold" : "unfold"}`);
    };
    this.updates.set(place, update);
    update();
    if (open) box.append(this.cells(row));
    return box;
  }

  /** A cell for each member; one can be walked to with the arrow keys. */
  cells({ place, many, columns }) {
    const shown = Math.min(many, CELLS_MAX);
    const field = make("svg:g", { class: "al-cells", transform: `translate(8 ${FOLDED.height + 4})`, tabindex: 0, role: "listbox", "aria-label": "Members; arrow keys walk, Enter opens" });
    const places = [];
    let at = 0;
    for (let index = 0; index < shown; index++) {
      const member = place ? `${place}.${index}` : String(index);
      const cell = make("svg:rect", { x: (index % columns) * CELL, y: Math.floor(index / columns) * CELL, width: CELL - 2, height: CELL - 2, rx: 2, class: "al-fill", role: "option", "data-place": member });
      const update = () => (cell.dataset.state = STATES[stateOf(this.steps.count(member))].toLowerCase());
      this.updates.set(member, update);
      update();
      places.push(member);
      field.append(cell);
    }
    const enter = (member) => {
      const step = this.steps.byPlace.get(member);
      if (step && !this.steps.graphs[member]) this.choose(step.id);
      else this.look(member);
    };
    const walk = (to) => {
      field.children[at].classList.remove("al-at");
      at = Math.min(shown - 1, Math.max(0, to));
      field.children[at].classList.add("al-at");
      field.setAttribute("aria-label", `Member ${at + 1} of ${many}: ${field.children[at].dataset.state}`);
    };
    field.addEventListener("click", (event) => event.target.dataset.place !== undefined && enter(event.target.dataset.place));
    field.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
      if (by) { walk(at + by); event.preventDefault(); event.stopPropagation(); }
      if (event.key === "Enter") { enter(places[at]); event.stopPropagation(); }
    });
    return field;
  }

  countOf({ place, without }) {
    const all = this.steps.count(place);
    if (without === null) return all;
    const body = this.steps.count(place ? `${place}.${without}` : String(without));
    return all.map((number, state) => number - body[state]);
  }

  /** The name of the first step of a row's first member. */
  nameOf(place) {
    let at = place ? `${place}.0` : "0";
    while (!this.steps.byPlace.has(at) && this.steps.counts.has(`${at}.0`)) at += ".0";
    const step = this.steps.byPlace.get(at);
    return step ? shortName(step.name) : "step";
  }
}

const cut = (text, most = NAME_CHARS) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function pressed(press) {
  return { tabindex: 0, role: "button", onclick: press,
    onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { press(); event.preventDefault(); } } };
}

function curve([[x1, y1], [x2, y2]]) {
  const bend = Math.max(8, (y2 - y1) / 2);
  return `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`;
}
