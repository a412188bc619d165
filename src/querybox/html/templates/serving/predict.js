// The image that was chosen is sent to /predict, and drawn with the boxes and masks of the answer.

const element = (id) => document.getElementById(id);
const state = { file: null, answer: null, running: null };

/** The colour of a class: hues that are far apart for labels that follow one another. */
function colour(label, alpha = 1) {
  return `hsl(${(label * 137.5) % 360} 85% 55% / ${alpha})`;
}

function say(text, kind = "quiet") {
  element("message").textContent = text;
  element("message").className = kind;
}

/** Ask for the detections in the chosen image; an earlier request is given up. */
async function ask() {
  if (!state.file) return;
  state.running?.abort();
  const running = state.running = new AbortController();
  const body = new FormData();
  body.append("image", state.file);
  const token = element("token")?.value.trim();
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  say("Detecting ...");
  try {
    const url = `predict?threshold=${element("threshold").value}`;
    const start = performance.now();
    const response = await fetch(url, { method: "POST", body, headers, signal: running.signal });
    const answer = await response.json();
    if (!response.ok) throw new Error(`${answer.title}: ${answer.detail}`);
    await show(state.file, answer.images[0]);
    const found = answer.images[0].detections.length;
    say(`${found} ${found === 1 ? "object" : "objects"} in ${Math.round(performance.now() - start)} ms`);
  } catch (error) {
    if (running.signal.aborted) return;
    element("result").hidden = element("region").hidden = true;
    say(error.message, "error");
  }
}

/** Draw the image, upright as the server sees it, its masks and its boxes. */
async function show(file, answer) {
  const canvas = element("picture"), pen = canvas.getContext("2d");
  canvas.width = answer.width;
  canvas.height = answer.height;
  try {
    pen.drawImage(await createImageBitmap(file), 0, 0, answer.width, answer.height);
    element("caption").textContent = file.name;
  } catch {
    element("caption").textContent = `${file.name}: this browser cannot show such files`;
  }
  const unit = Math.max(1, answer.width / 900);
  const lowestFirst = answer.detections.toReversed();
  for (const found of lowestFirst) {
    if (found.segmentation) {
      pen.fillStyle = colour(found.label, 0.45);
      stripes(found.segmentation, (x, y, height) => pen.fillRect(x, y, 1, height));
    }
    frame(pen, found, unit);
  }
  for (const found of lowestFirst) caption(pen, found, unit);
  element("rows").replaceChildren(...answer.detections.map(row));
  element("result").hidden = element("region").hidden = false;
}

function frame(pen, { label, box_xyxy: [x1, y1, x2, y2] }, unit) {
  for (const [style, width] of [["black", 4], [colour(label), 2]]) {
    pen.strokeStyle = style;
    pen.lineWidth = width * unit;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

function caption(pen, { name, score, box_xyxy: [x1, y1] }, unit) {
  const text = `${name} ${score.toFixed(2)}`;
  pen.font = `${14 * unit}px sans-serif`;
  const y = Math.max(y1, 18 * unit);
  pen.fillStyle = "rgb(0 0 0 / .75)";
  pen.fillRect(x1, y - 18 * unit, pen.measureText(text).width + 8 * unit, 18 * unit);
  pen.fillStyle = "white";
  pen.fillText(text, x1 + 4 * unit, y - 4 * unit);
}

function row({ label, name, score, box_xyxy: corners }) {
  const line = document.createElement("tr");
  const swatch = document.createElement("span");
  swatch.className = "swatch";
  swatch.style.background = colour(label);
  for (const text of [name, score.toFixed(3), corners.map((edge) => edge.toFixed(1)).join(", ")]) {
    const cell = line.insertCell();
    cell.textContent = text;
    if (line.cells.length > 1) cell.className = "number";
  }
  line.cells[0].prepend(swatch);
  return line;
}

function choose(file) {
  state.file = file;
  ask();
}

const drop = element("drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) choose(event.dataTransfer.files[0]);
});
element("file").addEventListener("change", (event) => { if (event.target.files.length) choose(event.target.files[0]); });
element("form").addEventListener("submit", (event) => event.preventDefault());
const threshold = element("threshold");
const showThreshold = () => { element("threshold-value").textContent = Number(threshold.value).toFixed(2); };
threshold.addEventListener("input", showThreshold);
threshold.addEventListener("change", ask);
element("token")?.addEventListener("change", ask);
showThreshold();
