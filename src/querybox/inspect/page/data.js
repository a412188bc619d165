"use strict";
// What the page carries: arrays, deflated, in base64; and what can be read off them.

const KINDS = { u1: Uint8Array, u2: Uint16Array, f4: Float32Array };

/** The bytes that a deflated text in base64 stands for. */
async function inflate(text) {
  const stream = new DecompressionStream("deflate");
  const writer = stream.writable.getWriter();
  writer.write(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
  writer.close();
  const reader = stream.readable.getReader();
  const parts = [];
  for (let part = await reader.read(); !part.done; part = await reader.read()) parts.push(part.value);
  const bytes = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  parts.reduce((start, part) => (bytes.set(part, start), start + part.length), 0);
  return bytes;
}

/** Replace every packed array within `value` by {shape, values}. */
async function unpack(value) {
  if (value === null || typeof value !== "object") return value;
  if (value.kind in KINDS && typeof value.data === "string") {
    return { shape: value.shape, values: new KINDS[value.kind]((await inflate(value.data)).buffer) };
  }
  if (Array.isArray(value)) return Promise.all(value.map(unpack));
  const parts = Object.entries(value).map(async ([name, part]) => [name, await unpack(part)]);
  return Object.fromEntries(await Promise.all(parts));
}

/** The part of an array at some leading places; a number where all are given. */
function at(array, ...places) {
  let size = array.values.length;
  let start = 0;
  places.forEach((place, axis) => {
    size /= array.shape[axis];
    start += place * size;
  });
  return size === 1 && places.length === array.shape.length
    ? array.values[start]
    : array.values.subarray(start, start + size);
}

/** The weights of one map, or of one set of points, out of its steps. */
function weights(look, ...places) {
  const peak = at(look.peaks, ...places);
  return Float32Array.from(at(look.steps, ...places), (step) => (step * peak) / 255);
}

/** The points of one look: x and y in 0-1 of the image, and the weight of each. */
function points(look, ...places) {
  const xy = at(look.points, ...places);
  return Array.from(weights(look, ...places), (weight, index) => ({
    x: (xy[2 * index] / 65535) * 2 - 0.5,
    y: (xy[2 * index + 1] / 65535) * 2 - 0.5,
    weight,
  }));
}

/** Where a query looks in a decoder layer, with one head or, head -1, with all: a map {grid, weights}, points, or null. */
function crossLook(image, layer, head, query) {
  const look = image.cross;
  if (!look) return null;
  const heads = head < 0 ? Array.from({ length: look.peaks.shape[1] }, (_, each) => each) : [head];
  if (look.points) return { points: heads.flatMap((each) => points(look, layer, each, query)), heads: heads.length };
  const row = look.queries.indexOf(query);
  if (row < 0) return null; // large maps leave room for some queries only
  const mean = new Float32Array(look.steps.shape[3]);
  for (const each of heads) weights(look, layer, each, row).forEach((weight, cell) => { mean[cell] += weight / heads.length; });
  return { grid: look.grid, weights: mean };
}

/** Where a cell looks in one of the encoder layers that the page tells of. */
function cellLook(look, place) {
  if (!look.points) return { grid: look.grid, weights: weights(look, place) };
  const heads = look.peaks.shape[1];
  return { points: Array.from({ length: heads }, (_, head) => points(look, 0, head, place)).flat(), heads };
}

/** A box of cxcywh as its edges. */
function edges([cx, cy, w, h]) {
  return { left: cx - w / 2, top: cy - h / 2, right: cx + w / 2, bottom: cy + h / 2 };
}

/** How much of a look falls within a box, 0-1: of what the file tells of it, which is rounded. */
function shareInside(look, box) {
  const { left, top, right, bottom } = edges(box);
  const [height, width] = look.points ? [] : look.grid;
  const all = look.points || Array.from(look.weights, (weight, cell) => ({
    x: ((cell % width) + 0.5) / width, y: (Math.floor(cell / width) + 0.5) / height, weight,
  }));
  const sum = (some) => some.reduce((total, each) => total + each.weight, 0);
  return sum(all.filter(({ x, y }) => x >= left && x <= right && y >= top && y <= bottom)) / sum(all);
}

/** The place that is looked at most: x and y in 0-1, and its weight. */
function most(look) {
  if (look.points) {
    const best = look.points.reduce((a, b) => (b.weight > a.weight ? b : a));
    return { ...best, weight: best.weight / look.heads };
  }
  const [height, width] = look.grid;
  const cell = look.weights.indexOf(Math.max(...look.weights));
  return { x: ((cell % width) + 0.5) / width, y: (Math.floor(cell / width) + 0.5) / height, weight: look.weights[cell] };
}
