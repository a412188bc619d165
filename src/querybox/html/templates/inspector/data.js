"use strict";
// The data of the page: deflated arrays in base64, and how they are read.

const KINDS = { u1: Uint8Array, u2: Uint16Array, f4: Float32Array };

/** Decode base64 and inflate. */
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

/** The part of an array at leading indices; a number if all indices are given. */
function at(array, ...indices) {
  let size = array.values.length;
  let start = 0;
  indices.forEach((index, axis) => {
    size /= array.shape[axis];
    start += index * size;
  });
  return size === 1 && indices.length === array.shape.length
    ? array.values[start]
    : array.values.subarray(start, start + size);
}

/** The attention weights of one map, or of one set of points: they are stored as steps of 1 / 255 of their peak. */
function weights(attention, ...indices) {
  const peak = at(attention.peaks, ...indices);
  return Float32Array.from(at(attention.steps, ...indices), (step) => (step * peak) / 255);
}

/** The sampled points: x and y in 0-1 of the image, and the attention weight of each. */
function points(attention, ...indices) {
  const xy = at(attention.points, ...indices);
  return Array.from(weights(attention, ...indices), (weight, index) => ({
    x: (xy[2 * index] / 65535) * 2 - 0.5,
    y: (xy[2 * index + 1] / 65535) * 2 - 0.5,
    weight,
  }));
}

/**
 * Cross-attention of a query in a decoder layer, of one head or, with head -1, of all: a map {grid, weights}, sampled
 * points {points, heads}, or null if it is not in the file.
 */
function crossAttention(image, layer, head, query) {
  const attention = image.cross;
  if (!attention) return null;
  const heads = head < 0 ? Array.from({ length: attention.peaks.shape[1] }, (_, each) => each) : [head];
  if (attention.points) return { points: heads.flatMap((each) => points(attention, layer, each, query)), heads: heads.length };
  const row = attention.queries.indexOf(query);
  if (row < 0) return null; // large maps leave room for some queries only
  const mean = new Float32Array(attention.steps.shape[3]);
  for (const each of heads) weights(attention, layer, each, row).forEach((weight, cell) => { mean[cell] += weight / heads.length; });
  return { grid: attention.grid, weights: mean };
}

/** Self-attention of a cell in an encoder layer, averaged over its heads. */
function cellAttention(attention, cell) {
  if (!attention.points) return { grid: attention.grid, weights: weights(attention, cell) };
  const heads = attention.peaks.shape[1];
  return { points: Array.from({ length: heads }, (_, head) => points(attention, 0, head, cell)).flat(), heads };
}

/** The mask of a query in a decoder layer: {grid, extent, inside}, with 1 for cells inside; null if there is none. */
function maskOf(image, layer, query) {
  const row = image.masks ? image.masks.layers.indexOf(layer) : -1;
  if (row < 0) return null;
  const { grid, extent, bits } = image.masks;
  const bytes = at(bits, row, query);
  const inside = Uint8Array.from({ length: grid[0] * grid[1] }, (_, cell) => (bytes[cell >> 3] >> (7 - (cell & 7))) & 1);
  return { grid, extent, inside };
}

/** A cxcywh box as its edges. */
function edges([cx, cy, w, h]) {
  return { left: cx - w / 2, top: cy - h / 2, right: cx + w / 2, bottom: cy + h / 2 };
}

/** The locations that are attended to: x and y in 0-1 of the image, and the attention weight of each. */
function locations(attention) {
  if (attention.points) return attention.points.map((point) => ({ ...point, weight: point.weight / attention.heads }));
  const [height, width] = attention.grid;
  return Array.from(attention.weights, (weight, cell) => ({
    x: ((cell % width) + 0.5) / width, y: (Math.floor(cell / width) + 0.5) / height, weight,
  }));
}

/** The share (0-1) of the attention that falls within a box. */
function shareInside(attention, box) {
  const { left, top, right, bottom } = edges(box);
  const all = locations(attention);
  const sum = (some) => some.reduce((total, each) => total + each.weight, 0);
  return sum(all.filter(({ x, y }) => x >= left && x <= right && y >= top && y <= bottom)) / sum(all);
}

/** The locations with the most attention, highest first. */
function strongest(attention, count) {
  return locations(attention).sort((a, b) => b.weight - a.weight).slice(0, count);
}
