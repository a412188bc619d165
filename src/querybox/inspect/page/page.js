// What is chosen, and how it is shown.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const ready = new Map(); // images that are unpacked, by their place
const chosen = { image: 0, mode: "queries", layer: 0, head: -1, query: 0, object: 0, cell: 0, encoder: 0 };
let image = null;

const KEYS = {
  queries: "On the image: click or tap a box to choose its query. Arrow keys: up and down choose the query, left and right the layer.",
  cells: "Point at the image, or tap it. Arrow keys move the cell.",
  matching: "Frames are the objects. A line leads from each to the middle of the box that answers for it; that of the chosen object is dashed. Arrow keys: up and down choose the object, left and right the layer.",
};

const percent = (value) => `${(100 * value).toFixed(1)} %`;
const digits = (value) => String(Number(value.toPrecision(6)));
const layers = () => image.boxes.shape[0];
const boxOf = (layer, query) => at(image.boxes, layer, query);
const bestClass = (layer, query) => ({
  name: image.classes[at(image.labels, layer, query)[0]],
  score: at(image.scores, layer, query)[0],
});
const centre = ([cx, cy]) => `${Math.round(cx * image.width)}, ${Math.round(cy * image.height)}`;
const objectName = (object) => `${object + 1} ${image.classes[image.objects.labels[object]]}`;
const matchedQuery = (object, layer = chosen.layer) => image.objects.matched[layer][object];
const matchedObject = (query) => (image.objects ? image.objects.matched[chosen.layer].indexOf(query) : -1);

/** An object, and the query that answers for it in a layer, where there is one. */
const withMatch = (object, layer = chosen.layer) => ({ object, query: Math.max(0, matchedQuery(object, layer)) });

/** What changes with the layer: a pair that is matched stays that object's. */
function atLayer(layer) {
  const follows = chosen.mode === "matching" && matchedQuery(chosen.object) === chosen.query;
  return follows ? { layer, ...withMatch(chosen.object, layer) } : { layer };
}

/** Options of a select. */
function options(select, names) {
  select.replaceChildren(...names.map((name, place) => new Option(name, place)));
}

/** Change what is chosen, and show it. */
function choose(changes) {
  Object.assign(chosen, changes);
  show();
}

async function openImage(place) {
  if (!ready.has(place)) ready.set(place, await unpack(DATA.images[place]));
  image = ready.get(place);
  const [layer, queries] = image.boxes.shape;
  const last = layer - 1;
  $("picture").src = image.picture;
  $("picture").alt = image.name;
  $("stage").style.aspectRatio = `${image.width} / ${image.height}`;
  $("stage").style.width = `min(100%, ${(78 * image.width) / image.height}vh)`;
  $("layer").max = layer;
  const heads = image.cross ? image.cross.peaks.shape[1] : 0;
  options($("head"), ["all, on average", ...Array.from({ length: heads }, (_, head) => `head ${head + 1}`)]);
  options($("query"), image.queries.map((query, place) => {
    const { name, score } = bestClass(last, place);
    return `${query}: ${name} ${percent(score)}`;
  }));
  options($("encoder-layer"), image.encoder.map((look) => look.layer + 1));
  const objects = image.objects ? image.objects.labels.length : 0;
  options($("object"), Array.from({ length: objects }, (_, object) => objectName(object)));
  document.querySelector("[value=matching]").disabled = objects === 0;
  document.querySelector("[value=cells]").disabled = image.encoder.length === 0;
  Object.assign(chosen, { image: place, layer: last, head: -1, query: 0, object: 0, encoder: 0 });
  chosen.cell = image.encoder.length ? middleCell(image.encoder[0].places) : 0;
  if (document.querySelector(`[value=${chosen.mode}]`).disabled) chosen.mode = "queries";
  makeTiles(layer, heads, queries);
  show();
}

const middleCell = ([height, width]) => Math.floor(height / 2) * width + Math.floor(width / 2);

function show() {
  document.body.dataset.mode = chosen.mode;
  document.querySelector(`[value=${chosen.mode}]`).checked = true;
  $("layer").value = chosen.layer + 1;
  $("layer-said").textContent = `${chosen.layer + 1} of ${layers()}`;
  $("layer").setAttribute("aria-valuetext", `${chosen.layer + 1} of ${layers()}`);
  for (const [id, value] of [["head", chosen.head + 1], ["query", chosen.query], ["object", chosen.object], ["encoder-layer", chosen.encoder], ["image", chosen.image]]) $(id).value = value;
  $("keys").textContent = KEYS[chosen.mode];
  const unit = image.width / ($("stage").clientWidth || image.width);
  const marks = new Marks($("marks"), image.width, image.height, unit);
  $("stage").setAttribute("aria-label", `${image.name}: ${chosen.mode}`);
  const heat = $("heat");
  heat.width = heat.height = 1; // empty
  $("said").textContent = { queries: showQuery, cells: showCell, matching: showMatching }[chosen.mode](heat, marks);
}

/** Show a look: a map as light, points as dots. */
function showLook(look, heat, marks) {
  if (look.points) marks.points(look.points);
  else spotlight(heat, look);
}

function showQuery(heat, marks) {
  const { layer, head, query } = chosen;
  const look = crossLook(image, layer, head, query);
  if (look) showLook(look, heat, marks);
  for (let before = 0; before < layers(); before += 1) {
    if (before !== layer) marks.box(boxOf(before, query), "layer", { thick: 1, dash: [4, 4], label: `${before + 1}`, low: true });
  }
  const { name, score } = bestClass(layer, query);
  marks.box(boxOf(layer, query), "query", { thick: 3, label: `${image.queries[query]} ${name} ${percent(score)}` });
  showClasses();
  showMoves();
  showTiles();
  const object = matchedObject(query);
  const heads = head < 0 ? "all heads" : `head ${head + 1}`;
  return [
    `Query ${image.queries[query]} after layer ${layer + 1} of ${layers()}: ${name} ${percent(score)}.`,
    object >= 0 ? `It answers for object ${objectName(object)}.` : "",
    look ? `With ${heads} it looks most at ${centre([most(look).x, most(look).y])} (${percent(most(look).weight)}); ${percent(shareInside(look, boxOf(layer, query)))} of its attention is inside its box.`
      : image.cross ? "Where it looked is not in this file, which has room for the maps of some queries only." : "",
  ].join(" ");
}

function showClasses() {
  const { layer, query } = chosen;
  const labels = at(image.labels, layer, query);
  const rows = Array.from(at(image.scores, layer, query), (score, place) => [image.classes[labels[place]], score]);
  if (image.no_object) rows.push(["no object", at(image.no_object, layer, query)]);
  fill($("classes"), ["class", "score", "as a bar"], rows.map(([name, score]) => {
    const meter = document.createElement("meter");
    meter.value = score;
    meter.setAttribute("aria-label", `${name} ${percent(score)}`);
    return { cells: [name, percent(score), meter] };
  }));
}

function showMoves() {
  const rows = Array.from({ length: layers() }, (_, layer) => {
    const box = boxOf(layer, chosen.query);
    const { name, score } = bestClass(layer, chosen.query);
    const sides = [box[0] * image.width, box[1] * image.height, box[2] * image.width, box[3] * image.height];
    return { cells: [`${layer + 1}`, name, percent(score), ...sides.map((side) => side.toFixed(0))], chosen: layer === chosen.layer };
  });
  fill($("moves"), ["layer", "class", "score", "x", "y", "width", "height"], rows);
}

/** One tile a layer and head; the controls above say the same, so that tiles are for mouse and touch alone. */
function makeTiles(count, heads) {
  const tiles = $("tiles");
  tiles.replaceChildren();
  tiles.style.gridTemplateColumns = `auto repeat(${heads}, minmax(0, 1fr))`;
  if (!heads) return;
  const say = (text) => tiles.append(Object.assign(document.createElement("span"), { textContent: text }));
  ["", ...Array.from({ length: heads }, (_, head) => head + 1)].forEach(say);
  for (let layer = 0; layer < count; layer += 1) {
    say(layer + 1);
    for (let head = 0; head < heads; head += 1) {
      const button = document.createElement("button");
      button.tabIndex = -1;
      button.dataset.tile = `${layer} ${head}`;
      button.append(document.createElement("canvas"));
      button.addEventListener("click", () => choose({ layer, head }));
      tiles.append(button);
    }
  }
}

function showTiles() {
  $("tiles").hidden = !crossLook(image, 0, 0, chosen.query);
  if ($("tiles").hidden) return;
  for (const button of $("tiles").querySelectorAll("button")) {
    const [layer, head] = button.dataset.tile.split(" ").map(Number);
    tile(button.firstChild, crossLook(image, layer, head, chosen.query), image.width / image.height);
    button.classList.toggle("chosen", layer === chosen.layer && (head === chosen.head || chosen.head < 0));
  }
}

function showCell(heat, marks) {
  const look = image.encoder[chosen.encoder];
  const [height, width] = look.places;
  const row = Math.floor(chosen.cell / width), column = chosen.cell % width;
  const seen = cellLook(look, chosen.cell);
  showLook(seen, heat, marks);
  const here = [(column + 0.5) / width, (row + 0.5) / height, 1 / width, 1 / height];
  marks.box(here, "cell", { thick: 2 });
  const cells = seen.points || Array.from(seen.weights, (weight, cell) => ({
    x: ((cell % seen.grid[1]) + 0.5) / seen.grid[1], y: (Math.floor(cell / seen.grid[1]) + 0.5) / seen.grid[0], weight,
  }));
  const best = [...cells].sort((a, b) => b.weight - a.weight).slice(0, 8);
  fill($("seen"), ["place (x, y)", "attention"], best.map((each) => ({ cells: [centre([each.x, each.y]), percent(each.weight / (seen.heads || 1))] })));
  const top = most(seen);
  return `Cell at ${centre(here)}: column ${column + 1} of ${width}, row ${row + 1} of ${height}. In encoder layer ${look.layer + 1}, on average over its heads, it looks most at ${centre([top.x, top.y])} (${percent(top.weight)}).`;
}

function showMatching(heat, marks) {
  const { object, query, layer } = chosen;
  const { boxes, labels } = image.objects;
  labels.forEach((_, each) => {
    const answer = matchedQuery(each);
    const thick = each === object ? 3 : 1.5;
    marks.box(boxes[each], "object", { thick, label: `${each + 1}` });
    if (answer < 0) return;
    if (each === object) marks.box(boxOf(layer, answer), "answer", { thick, dash: [6, 4] });
    marks.line(boxes[each], boxOf(layer, answer), { thick, kind: "match" });
  });
  const paired = matchedQuery(object) === query;
  if (!paired) marks.box(boxOf(layer, query), "pair", { thick: 3, dash: [2, 3], label: `${image.queries[query]}` });
  showPair();
  showObjects();
  showLosses();
  const cost = digits(at(image.objects.cost, layer, object, query));
  return `Layer ${layer + 1}: object ${objectName(object)} with query ${image.queries[query]} costs ${cost}; they are ${paired ? "" : "not "}matched.`;
}

const TERMS = { class: "class", box: "distance of the boxes (L1)", giou: "overlap (GIoU)" };

function showPair() {
  const { object, query, layer } = chosen;
  const rows = Object.entries(image.objects.terms).map(([name, values]) => ({ cells: [TERMS[name], digits(at(values, layer, object, query))] }));
  rows.push({ cells: ["cost, their sum", digits(at(image.objects.cost, layer, object, query))], chosen: true });
  fill($("pair"), ["term, weighted", "cost"], rows);
}

function showObjects() {
  const { terms, cost, labels } = image.objects;
  const rows = labels.map((_, object) => {
    const button = Object.assign(document.createElement("button"), { textContent: objectName(object), type: "button" });
    button.addEventListener("click", () => choose(withMatch(object)));
    const query = matchedQuery(object);
    const values = query < 0 ? [] : [...Object.values(terms), cost].map((each) => digits(at(each, chosen.layer, object, query)));
    return { cells: [button, query < 0 ? "none" : `${image.queries[query]}`, ...values], chosen: object === chosen.object };
  });
  fill($("objects"), ["object", "query", ...Object.keys(terms), "cost"], rows);
}

function showLosses() {
  const { losses } = image.objects;
  const kinds = ["loss_cls", "loss_bbox", "loss_iou"];
  const prefixes = [["enc_", "proposals"], ...Array.from({ length: layers() }, (_, layer) => [layer === layers() - 1 ? "" : `d${layer}.`, `${layer + 1}`])];
  const rows = prefixes.filter(([prefix]) => prefix + kinds[0] in losses);
  fill($("losses"), ["layer", ...kinds], rows.map(([prefix, name]) => ({
    cells: [name, ...kinds.map((kind) => digits(losses[prefix + kind]))], chosen: name === `${chosen.layer + 1}`,
  })));
}

/** Where on the image, in 0-1, an event happened. */
function place(event) {
  const { left, top, width, height } = $("stage").getBoundingClientRect();
  return [Math.min(0.9999, Math.max(0, (event.clientX - left) / width)), Math.min(0.9999, Math.max(0, (event.clientY - top) / height))];
}

function pointAtCell(event) {
  const [height, width] = image.encoder[chosen.encoder].places;
  const [x, y] = place(event);
  const cell = Math.floor(y * height) * width + Math.floor(x * width);
  if (cell !== chosen.cell) choose({ cell });
}

/** Of the boxes around a place the one whose area is least: others may be reached beside it. */
function smallestAround([x, y], boxes) {
  let best = -1;
  boxes.forEach((box, index) => {
    const { left, top, right, bottom } = edges(box);
    const around = x >= left && x <= right && y >= top && y <= bottom;
    if (around && (best < 0 || box[2] * box[3] < boxes[best][2] * boxes[best][3])) best = index;
  });
  return best;
}

function pick(event) {
  if (chosen.mode === "cells") return pointAtCell(event);
  if (chosen.mode === "matching") {
    const object = smallestAround(place(event), image.objects.boxes);
    return object >= 0 && choose(withMatch(object));
  }
  // Queries that found something first: of a hundred boxes most mean nothing.
  const sure = image.queries.map((_, query) => query).filter((query) => bestClass(chosen.layer, query).score >= 0.3);
  for (const queries of [sure, image.queries.map((_, query) => query)]) {
    const found = smallestAround(place(event), queries.map((query) => boxOf(chosen.layer, query)));
    if (found >= 0) return choose({ query: queries[found] });
  }
  return undefined;
}

/** `value` moved by `step` within 0 to `count` - 1. */
const moved = (value, step, count) => Math.min(count - 1, Math.max(0, value + step));

function key(event) {
  const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  const [across, down] = step;
  if (chosen.mode === "cells") {
    const [height, width] = image.encoder[chosen.encoder].places;
    const column = moved(chosen.cell % width, across, width);
    choose({ cell: moved(Math.floor(chosen.cell / width), down, height) * width + column });
  } else if (chosen.mode === "matching") {
    const layer = moved(chosen.layer, across, layers());
    const object = moved(chosen.object, down, image.objects.labels.length);
    choose({ layer, ...withMatch(object, layer) });
  } else {
    choose({ layer: moved(chosen.layer, across, layers()), query: moved(chosen.query, down, image.queries.length) });
  }
}

function setMode(mode) {
  if (mode !== "matching") return choose({ mode });
  return choose({ mode, ...withMatch(Math.max(0, matchedObject(chosen.query))) });
}

for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => setMode(radio.value));
$("image").addEventListener("change", () => openImage(Number($("image").value)));
$("layer").addEventListener("input", () => choose(atLayer(Number($("layer").value) - 1)));
$("head").addEventListener("change", () => choose({ head: Number($("head").value) - 1 }));
$("query").addEventListener("change", () => choose({ query: Number($("query").value) }));
$("object").addEventListener("change", () => choose(withMatch(Number($("object").value))));
$("encoder-layer").addEventListener("change", () => {
  const encoder = Number($("encoder-layer").value);
  choose({ encoder, cell: middleCell(image.encoder[encoder].places) });
});
$("stage").addEventListener("click", pick);
$("stage").addEventListener("pointermove", (event) => chosen.mode === "cells" && pointAtCell(event));
$("stage").addEventListener("keydown", key);
options($("image"), DATA.images.map(({ name }) => name));
$("pick-image").hidden = DATA.images.length < 2;
openImage(0).then(() => new ResizeObserver(show).observe($("stage")));
