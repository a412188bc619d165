// The state of the page, and how it is shown.

const DATA = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const unpacked = new Map(); // images by their index
const state = { mask: true, image: 0, mode: "queries", layer: 0, head: -1, query: 0, object: 0, cell: 0, encoder: 0 };
let image = null;

const HELP = {
  queries: "Click or tap a box to select its query. Arrow keys: up and down select the query, left and right the layer.",
  cells: "Point at the image or tap it to select a cell. Arrow keys move to the next cell.",
  matching: "Solid boxes are the objects. A line connects each to the centre of its matched prediction; the prediction of the selected object is dashed. Arrow keys: up and down select the object, left and right the layer.",
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
const matchedQuery = (object, layer = state.layer) => image.objects.matched[layer][object];
const matchedObject = (query) => (image.objects ? image.objects.matched[state.layer].indexOf(query) : -1);

/** An object and, if there is one, its matched query in a layer. */
const withMatch = (object, layer = state.layer) => ({ object, query: Math.max(0, matchedQuery(object, layer)) });

/** The changes for another layer: if the selected pair is matched, the object stays and its query follows. */
function atLayer(layer) {
  const follows = state.mode === "matching" && matchedQuery(state.object) === state.query;
  return follows ? { layer, ...withMatch(state.object, layer) } : { layer };
}

/** Set the options of a select. */
function setOptions(select, names) {
  select.replaceChildren(...names.map((name, index) => new Option(name, index)));
}

/** Change the state and show it. */
function update(changes) {
  Object.assign(state, changes);
  show();
}

async function openImage(index) {
  if (!unpacked.has(index)) unpacked.set(index, await unpack(DATA.images[index]));
  image = unpacked.get(index);
  const [layer, queries] = image.boxes.shape;
  const last = layer - 1;
  $("picture").src = image.picture;
  $("picture").alt = image.name;
  $("stage").style.aspectRatio = `${image.width} / ${image.height}`;
  $("stage").style.width = `min(100%, ${(78 * image.width) / image.height}vh)`;
  $("layer").max = layer;
  const heads = image.cross ? image.cross.peaks.shape[1] : 0;
  setOptions($("head"), ["average", ...Array.from({ length: heads }, (_, head) => `head ${head + 1}`)]);
  setOptions($("query"), image.queries.map((query, index) => {
    const { name, score } = bestClass(last, index);
    return `${query}: ${name} ${percent(score)}`;
  }));
  setOptions($("encoder-layer"), image.encoder.map((each) => each.layer + 1));
  const objects = image.objects ? image.objects.labels.length : 0;
  setOptions($("object"), Array.from({ length: objects }, (_, object) => objectName(object)));
  $("show-mask").hidden = !image.masks;
  document.querySelector("[value=matching]").disabled = objects === 0;
  document.querySelector("[value=cells]").disabled = image.encoder.length === 0;
  Object.assign(state, { image: index, layer: last, head: -1, query: 0, object: 0, encoder: 0 });
  state.cell = image.encoder.length ? middleCell(image.encoder[0].cells) : 0;
  if (document.querySelector(`[value=${state.mode}]`).disabled) state.mode = "queries";
  makeTiles(layer, heads, queries);
  show();
}

const middleCell = ([height, width]) => Math.floor(height / 2) * width + Math.floor(width / 2);

function show() {
  document.body.dataset.mode = state.mode;
  document.querySelector(`[value=${state.mode}]`).checked = true;
  $("layer").value = state.layer + 1;
  $("layer-value").textContent = `${state.layer + 1} of ${layers()}`;
  $("layer").setAttribute("aria-valuetext", `${state.layer + 1} of ${layers()}`);
  for (const [id, value] of [["head", state.head + 1], ["query", state.query], ["object", state.object], ["encoder-layer", state.encoder], ["image", state.image]]) $(id).value = value;
  $("help").textContent = HELP[state.mode];
  const unit = image.width / ($("stage").clientWidth || image.width);
  const marks = new Marks($("marks"), image.width, image.height, unit);
  $("stage").setAttribute("aria-label", `${image.name}: ${state.mode}`);
  const heatmap = $("heatmap");
  heatmap.width = heatmap.height = $("mask").width = $("mask").height = 1; // empty
  $("description").textContent = { queries: showQuery, cells: showCell, matching: showMatching }[state.mode](heatmap, marks);
}

/** Show attention: a map as brightness, points as dots. */
function showAttention(attention, heatmap, marks) {
  if (attention.points) marks.points(attention.points);
  else spotlight(heatmap, attention);
}

function showQuery(heatmap, marks) {
  const { layer, head, query } = state;
  const attention = crossAttention(image, layer, head, query);
  if (attention) showAttention(attention, heatmap, marks);
  for (let before = 0; before < layers(); before += 1) {
    if (before !== layer) marks.box(boxOf(before, query), "layer", { thick: 1, dash: [4, 4], label: `${before + 1}`, low: true });
  }
  const mask = maskOf(image, layer, query);
  if (mask && state.mask) cover($("mask"), mask);
  const { name, score } = bestClass(layer, query);
  marks.box(boxOf(layer, query), "query", { thick: 3, label: `${image.queries[query]} ${name} ${percent(score)}` });
  showClasses();
  showBoxes();
  showTiles();
  const object = matchedObject(query);
  return [
    `Query ${image.queries[query]} after decoder layer ${layer + 1} of ${layers()}: ${name} ${percent(score)}.`,
    object >= 0 ? `Matched to object ${objectName(object)}.` : "",
    mask ? `Its mask covers ${percent(mask.inside.reduce((sum, each) => sum + each, 0) / mask.inside.length)} of the image.`
      : image.masks ? "There is no mask in this layer." : "",
    attention ? `${head < 0 ? "Attention averaged over heads" : `Attention of head ${head + 1}`} ${describePeak(attention)}; ${percent(shareInside(attention, boxOf(layer, query)))} of it is inside the box.`
      : image.cross ? "Its attention is not in this file: the maps of some queries only fit into it." : "",
  ].join(" ");
}

function describePeak(attention) {
  const [peak] = strongest(attention, 1);
  return `peaks at (${centre([peak.x, peak.y])}) with ${percent(peak.weight)}`;
}

function showClasses() {
  const { layer, query } = state;
  const labels = at(image.labels, layer, query);
  const rows = Array.from(at(image.scores, layer, query), (score, index) => [image.classes[labels[index]], score]);
  if (image.no_object) rows.push(["no object", at(image.no_object, layer, query)]);
  fillTable($("classes"), ["class", "score", "bar"], rows.map(([name, score]) => {
    const meter = document.createElement("meter");
    meter.value = score;
    meter.setAttribute("aria-label", `${name} ${percent(score)}`);
    return { cells: [name, percent(score), meter] };
  }));
}

function showBoxes() {
  const rows = Array.from({ length: layers() }, (_, layer) => {
    const box = boxOf(layer, state.query);
    const { name, score } = bestClass(layer, state.query);
    const sides = [box[0] * image.width, box[1] * image.height, box[2] * image.width, box[3] * image.height];
    const deviations = image.edge_deviations ? at(image.edge_deviations, layer, state.query) : [];
    const spread = Array.from(deviations, (each, edge) => `± ${(each * (edge % 2 ? image.height : image.width)).toFixed(1)}`);
    return { cells: [`${layer + 1}`, name, percent(score), ...sides.map((side) => side.toFixed(0)), ...spread], selected: layer === state.layer };
  });
  const heads = ["layer", "class", "score", "x", "y", "width", "height"];
  if (image.edge_deviations) heads.push("left", "top", "right", "bottom");
  fillTable($("boxes"), heads, rows);
}

/** One tile per layer and head, for mouse and touch only: the controls above do the same. */
function makeTiles(count, heads) {
  const tiles = $("tiles");
  tiles.replaceChildren();
  tiles.style.gridTemplateColumns = `auto repeat(${heads}, minmax(0, 1fr))`;
  if (!heads) return;
  const label = (text) => tiles.append(Object.assign(document.createElement("span"), { textContent: text }));
  ["", ...Array.from({ length: heads }, (_, head) => head + 1)].forEach(label);
  for (let layer = 0; layer < count; layer += 1) {
    label(layer + 1);
    for (let head = 0; head < heads; head += 1) {
      const button = document.createElement("button");
      button.tabIndex = -1;
      button.dataset.tile = `${layer} ${head}`;
      button.append(document.createElement("canvas"));
      button.addEventListener("click", () => update({ layer, head }));
      tiles.append(button);
    }
  }
}

function showTiles() {
  $("tiles").hidden = !crossAttention(image, 0, 0, state.query);
  if ($("tiles").hidden) return;
  for (const button of $("tiles").querySelectorAll("button")) {
    const [layer, head] = button.dataset.tile.split(" ").map(Number);
    tile(button.firstChild, crossAttention(image, layer, head, state.query), image.width / image.height);
    button.classList.toggle("selected", layer === state.layer && (head === state.head || state.head < 0));
  }
}

function showCell(heatmap, marks) {
  const encoder = image.encoder[state.encoder];
  const [height, width] = encoder.cells;
  const row = Math.floor(state.cell / width), column = state.cell % width;
  const attention = cellAttention(encoder, state.cell);
  showAttention(attention, heatmap, marks);
  const here = [(column + 0.5) / width, (row + 0.5) / height, 1 / width, 1 / height];
  marks.box(here, "cell", { thick: 2 });
  const rows = strongest(attention, 8).map((each) => ({ cells: [centre([each.x, each.y]), percent(each.weight)] }));
  fillTable($("attended"), ["location (x, y)", "attention"], rows);
  return `Cell at (${centre(here)}): column ${column + 1} of ${width}, row ${row + 1} of ${height}. Its attention in encoder layer ${encoder.layer + 1}, averaged over heads, ${describePeak(attention)}.`;
}

function showMatching(heatmap, marks) {
  const { object, query, layer } = state;
  const { boxes, labels } = image.objects;
  labels.forEach((_, each) => {
    const matched = matchedQuery(each);
    const thick = each === object ? 3 : 1.5;
    marks.box(boxes[each], "object", { thick, label: `${each + 1}` });
    if (matched < 0) return;
    if (each === object) marks.box(boxOf(layer, matched), "prediction", { thick, dash: [6, 4] });
    marks.line(boxes[each], boxOf(layer, matched), { thick, kind: "match" });
  });
  const paired = matchedQuery(object) === query;
  if (!paired) marks.box(boxOf(layer, query), "pair", { thick: 3, dash: [2, 3], label: `${image.queries[query]}` });
  showPair();
  showObjects();
  showLosses();
  const cost = digits(at(image.objects.cost, layer, object, query));
  return `Decoder layer ${layer + 1}: object ${objectName(object)} and query ${image.queries[query]} are ${paired ? "" : "not "}matched; the pair costs ${cost}.`;
}

const TERMS = { class: "class", box: "distance of the boxes (L1)", giou: "overlap (GIoU)", mask: "mask (cross-entropy)", dice: "mask (dice)" };

function showPair() {
  const { object, query, layer } = state;
  const rows = Object.entries(image.objects.terms).map(([name, values]) => ({ cells: [TERMS[name], digits(at(values, layer, object, query))] }));
  rows.push({ cells: ["total cost", digits(at(image.objects.cost, layer, object, query))], selected: true });
  fillTable($("pair"), ["weighted term", "cost"], rows);
}

function showObjects() {
  const { terms, cost, labels } = image.objects;
  const rows = labels.map((_, object) => {
    const button = Object.assign(document.createElement("button"), { textContent: objectName(object), type: "button" });
    button.addEventListener("click", () => update(withMatch(object)));
    const query = matchedQuery(object);
    const values = query < 0 ? [] : [...Object.values(terms), cost].map((each) => digits(at(each, state.layer, object, query)));
    return { cells: [button, query < 0 ? "none" : `${image.queries[query]}`, ...values], selected: object === state.object };
  });
  fillTable($("objects"), ["object", "query", ...Object.keys(terms), "cost"], rows);
}

function showLosses() {
  const { losses } = image.objects;
  const kinds = Object.keys(losses).filter((name) => name.startsWith("loss_")); // those of the last layer
  const prefixes = [["enc_", "proposals"], ["pre_", "start boxes"], ...Array.from({ length: layers() }, (_, layer) => [layer === layers() - 1 ? "" : `d${layer}.`, `${layer + 1}`])];
  const rows = prefixes.filter(([prefix]) => prefix + kinds[0] in losses);
  fillTable($("losses"), ["layer", ...kinds], rows.map(([prefix, name]) => ({
    cells: [name, ...kinds.map((kind) => (prefix + kind in losses ? digits(losses[prefix + kind]) : ""))], selected: name === `${state.layer + 1}`,
  })));
}

/** The position of an event on the image, 0-1. */
function position(event) {
  const { left, top, width, height } = $("stage").getBoundingClientRect();
  return [Math.min(0.9999, Math.max(0, (event.clientX - left) / width)), Math.min(0.9999, Math.max(0, (event.clientY - top) / height))];
}

function pointAtCell(event) {
  const [height, width] = image.encoder[state.encoder].cells;
  const [x, y] = position(event);
  const cell = Math.floor(y * height) * width + Math.floor(x * width);
  if (cell !== state.cell) update({ cell });
}

/** The index of the smallest box around a position, -1 if there is none. */
function smallestAround([x, y], boxes) {
  let best = -1;
  boxes.forEach((box, index) => {
    const { left, top, right, bottom } = edges(box);
    const around = x >= left && x <= right && y >= top && y <= bottom;
    if (around && (best < 0 || box[2] * box[3] < boxes[best][2] * boxes[best][3])) best = index;
  });
  return best;
}

function select(event) {
  if (state.mode === "cells") return pointAtCell(event);
  if (state.mode === "matching") {
    const object = smallestAround(position(event), image.objects.boxes);
    return object >= 0 && update(withMatch(object));
  }
  // Confident queries first: most of a hundred boxes mean no object.
  const confident = image.queries.map((_, query) => query).filter((query) => bestClass(state.layer, query).score >= 0.3);
  for (const queries of [confident, image.queries.map((_, query) => query)]) {
    const found = smallestAround(position(event), queries.map((query) => boxOf(state.layer, query)));
    if (found >= 0) return update({ query: queries[found] });
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
  if (state.mode === "cells") {
    const [height, width] = image.encoder[state.encoder].cells;
    const column = moved(state.cell % width, across, width);
    update({ cell: moved(Math.floor(state.cell / width), down, height) * width + column });
  } else if (state.mode === "matching") {
    const layer = moved(state.layer, across, layers());
    const object = moved(state.object, down, image.objects.labels.length);
    update({ layer, ...withMatch(object, layer) });
  } else {
    update({ layer: moved(state.layer, across, layers()), query: moved(state.query, down, image.queries.length) });
  }
}

function setMode(mode) {
  if (mode !== "matching") return update({ mode });
  return update({ mode, ...withMatch(Math.max(0, matchedObject(state.query))) });
}

for (const radio of document.getElementsByName("mode")) radio.addEventListener("change", () => setMode(radio.value));
$("image").addEventListener("change", () => openImage(Number($("image").value)));
$("layer").addEventListener("input", () => update(atLayer(Number($("layer").value) - 1)));
$("mask-shown").addEventListener("change", () => update({ mask: $("mask-shown").checked }));
$("head").addEventListener("change", () => update({ head: Number($("head").value) - 1 }));
$("query").addEventListener("change", () => update({ query: Number($("query").value) }));
$("object").addEventListener("change", () => update(withMatch(Number($("object").value))));
$("encoder-layer").addEventListener("change", () => {
  const encoder = Number($("encoder-layer").value);
  update({ encoder, cell: middleCell(image.encoder[encoder].cells) });
});
$("stage").addEventListener("click", select);
$("stage").addEventListener("pointermove", (event) => state.mode === "cells" && pointAtCell(event));
$("stage").addEventListener("keydown", key);
setOptions($("image"), DATA.images.map(({ name }) => name));
$("select-image").hidden = DATA.images.length < 2;
openImage(0).then(() => new ResizeObserver(show).observe($("stage")));
