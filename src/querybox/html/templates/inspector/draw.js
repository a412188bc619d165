// What is drawn over the image: attention, boxes, lines and points. Colours carry no meaning.

const SVG = "http://www.w3.org/2000/svg";

/** Darken a canvas where there is little attention. */
function spotlight(canvas, attention) {
  const [height, width] = attention.grid;
  const peak = Math.max(...attention.weights) || 1;
  canvas.width = width;
  canvas.height = height;
  const pen = canvas.getContext("2d");
  const cells = pen.createImageData(width, height);
  attention.weights.forEach((weight, cell) => { cells.data[4 * cell + 3] = 190 * (1 - Math.sqrt(weight / peak)); });
  pen.putImageData(cells, 0, 0);
}

/** Cover the cells of a mask with a translucent colour, those at its outline with an opaque one. */
function cover(canvas, { grid: [height, width], extent, inside }) {
  canvas.width = width;
  canvas.height = height;
  canvas.style.height = `${100 * extent[0]}%`;
  canvas.style.width = `${100 * extent[1]}%`;
  const pen = canvas.getContext("2d");
  const cells = pen.createImageData(width, height);
  const isInside = (row, column) => row >= 0 && row < height && column >= 0 && column < width && inside[row * width + column];
  inside.forEach((each, cell) => {
    if (!each) return;
    const row = Math.floor(cell / width), column = cell % width;
    const inner = isInside(row - 1, column) && isInside(row + 1, column) && isInside(row, column - 1) && isInside(row, column + 1);
    cells.data.set([230, 159, 0, inner ? 100 : 255], 4 * cell);
  });
  pen.putImageData(cells, 0, 0);
}

/** Brighten a small canvas where there is much attention. */
function tile(canvas, attention, ratio) {
  const pen = canvas.getContext("2d");
  if (attention.points) {
    canvas.width = 96;
    canvas.height = Math.max(1, Math.round(96 / ratio));
    const peak = Math.max(...attention.points.map((each) => each.weight)) || 1;
    for (const each of attention.points) {
      pen.fillStyle = `rgb(255 255 255 / ${0.15 + 0.85 * (each.weight / peak)})`;
      pen.fillRect(each.x * canvas.width - 1.5, each.y * canvas.height - 1.5, 3, 3);
    }
    return;
  }
  [canvas.height, canvas.width] = attention.grid;
  const peak = Math.max(...attention.weights) || 1;
  const cells = pen.createImageData(canvas.width, canvas.height);
  attention.weights.forEach((weight, cell) => { cells.data.fill(255 * Math.sqrt(weight / peak), 4 * cell, 4 * cell + 3); cells.data[4 * cell + 3] = 255; });
  pen.putImageData(cells, 0, 0);
}

/** Marks over the image. `unit` is the width of a screen pixel in image pixels. */
class Marks {
  constructor(svg, width, height, unit) {
    Object.assign(this, { svg, width, height, unit });
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.replaceChildren();
  }

  add(name, attributes, text) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    this.svg.append(element);
    return element;
  }

  /** A white line on a black one, which is visible on any background. */
  stroke(name, attributes, thick, dash) {
    const dashes = dash ? { "stroke-dasharray": dash.map((part) => part * this.unit).join(" ") } : {};
    this.add(name, { ...attributes, class: "under", "stroke-width": (thick + 2) * this.unit });
    this.add(name, { ...attributes, ...dashes, class: "over", "stroke-width": thick * this.unit });
  }

  box(box, kind, { thick = 2, dash = null, label = "", low = false } = {}) {
    const { left, top, right, bottom } = edges(box);
    const x = left * this.width, y = top * this.height;
    const frame = { x, y, width: (right - left) * this.width, height: (bottom - top) * this.height, "data-box": kind };
    this.stroke("rect", frame, thick, dash);
    if (label) this.text(x + 4 * this.unit, low ? bottom * this.height - 5 * this.unit : y + 16 * this.unit, label);
  }

  text(x, y, text) {
    const size = 14 * this.unit;
    const right = this.width - size * 0.62 * text.length;
    const place = { x: Math.max(0, Math.min(x, right)), y: Math.max(size, Math.min(y, this.height - 3 * this.unit)) };
    this.add("text", { ...place, "font-size": size, "stroke-width": 3 * this.unit }, text);
  }

  line(from, to, { thick = 2, kind = "" } = {}) {
    const ends = { x1: from[0] * this.width, y1: from[1] * this.height, x2: to[0] * this.width, y2: to[1] * this.height };
    this.stroke("line", { ...ends, "data-line": kind }, thick);
    this.dot(to[0], to[1], thick + 2);
  }

  dot(x, y, radius, kind = "dot") {
    const place = { cx: x * this.width, cy: y * this.height, r: radius * this.unit };
    this.add("circle", { ...place, class: "filled", "stroke-width": this.unit, "data-mark": kind });
  }

  /** Points whose area is proportional to their weight. */
  points(all) {
    const peak = Math.max(...all.map((each) => each.weight)) || 1;
    for (const each of all) if (each.weight > 0.02 * peak) this.dot(each.x, each.y, 1 + 6 * Math.sqrt(each.weight / peak), "point");
  }
}

/** Fill a table; `rows` are {cells, selected}, and a cell is a text or an element. */
function fillTable(table, heads, rows) {
  const line = (cells, kind) => {
    const row = document.createElement("tr");
    cells.forEach((cell, place) => {
      const heading = kind === "th" ? "col" : place === 0 ? "row" : null;
      const element = document.createElement(heading ? "th" : "td");
      if (heading) element.scope = heading;
      element.append(cell);
      row.append(element);
    });
    return row;
  };
  const body = rows.map(({ cells, selected }) => {
    const row = line(cells, "td");
    row.classList.toggle("selected", Boolean(selected));
    return row;
  });
  table.replaceChildren(line(heads, "th"), ...body);
}
