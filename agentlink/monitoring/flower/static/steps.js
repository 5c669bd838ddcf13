// A run's steps and its graph, as the page knows them: by place, with counts of each part, and since when each could run.

export const STATES = ["WAITING", "RUNNING", "RETRYING", "SUCCEEDED", "FAILED", "CANCELLED"];
export const WAITING = 0, RUNNING = 1, RETRYING = 2, SUCCEEDED = 3, FAILED = 4, CANCELLED = 5;

export class Steps {
  constructor() {
    this.byId = new Map();
    this.byPlace = new Map();
    this.counts = new Map(); // place of a part ("" is all) -> how many steps are in each state
    this.graphs = {};
  }

  /** Take over what has changed; the places of all parts that look different now. */
  take({ names, steps }) {
    const changed = new Set();
    for (const [id, name, place, state, attempt, started, ended, peak, cpu, progress] of steps) {
      const before = this.byId.get(id);
      const step = { id, name: names[name], place, state, attempt, started, ended, peak, cpu, progress };
      this.byId.set(id, step);
      if (place) this.byPlace.set(place, step);
      for (const part of parts(place)) {
        changed.add(part);
        let count = this.counts.get(part);
        if (!count) this.counts.set(part, (count = [0, 0, 0, 0, 0, 0]));
        if (before && before.place === place) count[before.state] -= 1;
        count[state] += 1;
      }
    }
    return changed;
  }

  count(place) {
    return this.counts.get(place) || [0, 0, 0, 0, 0, 0];
  }

  /** The node of the graph at a place, with the place at which its children are. */
  node(place) {
    let node = this.graphs[""], at = "";
    if (!node) return null;
    if (node.kind === ".") return { node, at: place || "0" };
    for (const index of place ? place.split(".").map(Number) : []) {
      if (node.kind === ".") node = this.graphs[at];
      if (!node || node.kind === ".") return null;
      node = childAt(node, index);
      at = at ? `${at}.${index}` : String(index);
    }
    return node && { node, at };
  }

  /** Since when each step could run, by its id: when what it needs had ended. */
  ready(startedAt) {
    const since = new Map();
    const visit = (node, at, ready) => {
      if (node.kind === ".") {
        const step = this.byPlace.get(at);
        if (step) since.set(step.id, ready);
        const inner = this.graphs[at];
        if (inner && at) return visit(inner, inner.kind === "." ? `${at}.0` : at, step && step.started ? step.started : ready);
        return step && step.state === SUCCEEDED ? step.ended : null;
      }
      const ends = [];
      const whole = widthOf(node);
      let index = 0, before = ready;
      for (const [count, child] of node.children) {
        for (let nth = 0; nth < count; nth++, index++) {
          let from = ready;
          if (node.kind === "c") from = before;
          else if (node.kind === "k" && index === whole - 1) from = latest(ends);
          else if (node.needs && node.needs[index] && node.needs[index].length) from = latest(node.needs[index].map((other) => ends[other] ?? null));
          before = ends[index] = visit(child, at ? `${at}.${index}` : String(index), from);
        }
      }
      return node.kind === "g" ? latest(ends) : ends[ends.length - 1];
    };
    const root = this.graphs[""];
    if (root) visit(root, root.kind === "." ? "0" : "", startedAt);
    return since;
  }
}

function* parts(place) {
  yield "";
  for (let end = place.indexOf("."); end > 0; end = place.indexOf(".", end + 1)) yield place.slice(0, end);
  if (place) yield place;
}

const latest = (times) => times.reduce((most, time) => (most === null || time === null ? null : Math.max(most, time)), -Infinity);

export const widthOf = (node) => node.children.reduce((sum, [count]) => sum + count, 0);

export function childAt(node, index) {
  for (const [count, child] of node.children || []) {
    if (index < count) return child;
    index -= count;
  }
  return null;
}

/** The state in which a part is, as one: what is worst, or still going on. */
export function stateOf(count) {
  if (count[FAILED]) return FAILED;
  if (count[RUNNING]) return RUNNING;
  if (count[RETRYING]) return RETRYING;
  if (count[CANCELLED]) return CANCELLED;
  if (count[WAITING]) return count[SUCCEEDED] ? RUNNING : WAITING;
  return count[SUCCEEDED] ? SUCCEEDED : WAITING;
}

export const total = (count) => count.reduce((sum, one) => sum + one, 0);
