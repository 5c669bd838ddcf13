// Where the parts of a graph go, from the top down: a chain is a column, a group a row, a chord its header above its body.
// A row of many is one box with counts; opened, a field of cells, one for each member.

import { widthOf } from "./steps.js";

export const BOX = { width: 178, height: 46 };
export const FOLDED = { width: 236, height: 64 };
export const CELL = 15;
const GAP_X = 18, GAP_Y = 34, ROW_MAX = 8, COLUMN_MAX = 60, MESH_MAX = 60;

/** Boxes with their corners, and lines between points, of the part at `place`; `opened` are places of unfolded rows. */
export function layout(steps, place, opened) {
  const found = steps.node(place);
  if (!found) return { width: 0, height: 0, boxes: [], lines: [] };
  const part = lay(steps, found.node, found.at, opened);
  return { width: part.width, height: part.height, boxes: part.boxes, lines: part.lines };
}

function lay(steps, node, at, opened) {
  if (node.kind === ".") {
    const inner = at ? steps.graphs[at] : null;
    if (inner) return lay(steps, inner, inner.kind === "." ? `${at}.0` : at, opened);
    return box({ kind: "step", place: at }, BOX);
  }
  const below = (index) => (at ? `${at}.${index}` : String(index));
  const many = widthOf(node);
  const members = (count) => {
    const found = [];
    let index = 0;
    for (const [times, child] of node.children) {
      for (let nth = 0; nth < times && index < count; nth++, index++) found.push(lay(steps, child, below(index), opened));
    }
    return found;
  };
  if (node.kind === "c") return many > COLUMN_MAX ? row(at, 0, many, opened) : column(members(many));
  if (node.kind === "g") return many > ROW_MAX ? row(at, 0, many, opened) : beside(members(many));
  const header = many - 1;
  const body = lay(steps, node.children[node.children.length - 1][1], below(header), opened);
  if (node.needs && node.needs.length && header <= MESH_MAX) return column([mesh(members(header), node.needs), body]);
  return column([header > ROW_MAX ? row(at, header, header, opened) : beside(members(header)), body]);
}

function box(what, { width, height }) {
  return {
    width, height, boxes: [{ ...what, x: 0, y: 0, width, height }], lines: [],
    tops: [[width / 2, 0]], bottoms: [[width / 2, height]],
  };
}

/** Many members as one box; the body of a chord, at `without`, is not one of them. */
function row(at, without, many, opened) {
  const what = { kind: "row", place: at, without: without || null, many };
  if (!opened.has(at)) return box(what, FOLDED);
  const columns = Math.min(60, Math.max(15, Math.ceil(Math.sqrt(many * 3))));
  const height = FOLDED.height + Math.ceil(many / columns) * CELL + 10;
  return box({ ...what, open: true, columns }, { width: Math.max(FOLDED.width, columns * CELL + 16), height });
}

function moved(part, x, y) {
  for (const one of part.boxes) { one.x += x; one.y += y; }
  const shift = ([left, top]) => [left + x, top + y];
  return { ...part, lines: part.lines.map(([from, to]) => [shift(from), shift(to)]),
    tops: part.tops.map(shift), bottoms: part.bottoms.map(shift) };
}

function column(parts) {
  const width = Math.max(...parts.map((part) => part.width));
  const boxes = [], lines = [];
  let y = 0, before = null, first = null;
  for (const part of parts) {
    const placed = moved(part, (width - part.width) / 2, y);
    if (before) lines.push(...between(before.bottoms, placed.tops, y - GAP_Y / 2, width / 2));
    boxes.push(...placed.boxes);
    lines.push(...placed.lines);
    first = first || placed;
    before = placed;
    y += part.height + GAP_Y;
  }
  return { width, height: y - GAP_Y, boxes, lines, tops: first.tops, bottoms: before.bottoms };
}

/** Each above to each below; where both are several, through one point. */
function between(above, below, y, x) {
  if (above.length === 1 || below.length === 1) return above.flatMap((from) => below.map((to) => [from, to]));
  return [...above.map((from) => [from, [x, y]]), ...below.map((to) => [[x, y], to])];
}

function beside(parts) {
  const made = { boxes: [], lines: [], tops: [], bottoms: [], height: Math.max(...parts.map((part) => part.height)) };
  let x = 0;
  for (const part of parts) {
    const placed = moved(part, x, 0);
    for (const name of ["boxes", "lines", "tops", "bottoms"]) made[name].push(...placed[name]);
    x += part.width + GAP_X;
  }
  return { ...made, width: x - GAP_X };
}

/** Members that need each other, in layers: each below all it needs, and near to them. */
function mesh(parts, needs) {
  const layerOf = [], middle = [], layers = [];
  const layer = (index) => {
    if (layerOf[index] === undefined) layerOf[index] = (needs[index] || []).reduce((most, other) => Math.max(most, layer(other) + 1), 0);
    return layerOf[index];
  };
  parts.forEach((_, index) => (layers[layer(index)] = layers[layer(index)] || []).push(index));
  const widths = layers.map((members) => members.reduce((sum, index) => sum + parts[index].width + GAP_X, -GAP_X));
  const width = Math.max(...widths);
  const made = { width, boxes: [], lines: [], tops: [], bottoms: [] };
  const placed = [];
  const needed = new Set(needs.flat());
  let y = 0;
  layers.forEach((members, depth) => {
    const pull = (index) => mean((needs[index] || []).map((other) => middle[other])) ?? index;
    if (depth) members.sort((one, other) => pull(one) - pull(other));
    let x = (width - widths[depth]) / 2;
    for (const index of members) {
      placed[index] = moved(parts[index], x, y);
      middle[index] = x + parts[index].width / 2;
      x += parts[index].width + GAP_X;
    }
    y += Math.max(...members.map((index) => parts[index].height)) + GAP_Y;
  });
  placed.forEach((part, index) => {
    made.boxes.push(...part.boxes);
    made.lines.push(...part.lines);
    for (const other of needs[index] || []) made.lines.push(...between(placed[other].bottoms, part.tops, part.tops[0][1], part.tops[0][0]));
    if (!(needs[index] || []).length) made.tops.push(...part.tops);
    if (!needed.has(index)) made.bottoms.push(...part.bottoms);
  });
  return { ...made, height: y - GAP_Y };
}

const mean = (numbers) => (numbers.length ? numbers.reduce((sum, one) => sum + one, 0) / numbers.length : null);
