"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = ["#2f7ed8", "#e8743b", "#1aa179", "#9b5fc0", "#c9971c", "#d64550", "#3fa6bf", "#808890"];
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const SVG = "http://www.w3.org/2000/svg";
const tip = document.getElementById("tip");
let logarithmic = true;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function draw(parent, tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
}

function short(value) {
  const size = Math.abs(value);
  if (size >= 1e4) return value.toLocaleString("en", { notation: "compact", maximumFractionDigits: 1 });
  if (size >= 100 || value === Math.round(value)) return value.toLocaleString("en", { maximumFractionDigits: 1 });
  return size < 0.001 && size > 0 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) found.push(value);
  return found;
}

// Means of neighbours of the same phase: a jump between phases is one.
function smooth(points, breaks) {
  const half = Math.floor(points.length / 60);
  if (half < 1) return points;
  const phase = (x) => breaks.filter((first) => first <= x).length;
  return points.map(([x], i) => {
    const near = points.slice(Math.max(0, i - half), i + half + 1).filter((point) => phase(point[0]) === phase(x));
    return [x, near.reduce((sum, point) => sum + point[1], 0) / near.length];
  });
}

function chart(spec) {
  const panel = make("div", { class: "panel" }, make("h3", {}, spec.title));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", spec.title);
  panel.append(svg);
  if (spec.lines.length > 1 || spec.always)
    panel.append(make("div", { class: "chips" }, ...spec.lines.map((line) => {
      return make("span", { class: "chip", style: `--c:${COLOURS[line.colour % 8]}` }, line.label);
    })));
  const redraw = () => plot(svg, spec);
  new ResizeObserver(redraw).observe(panel);
  document.addEventListener("redraw", redraw);
  return panel;
}

function plot(svg, spec) {
  const width = Math.max(svg.clientWidth, 120), height = 190, left = 44, right = 8, top = 14, bottom = 20;
  svg.replaceChildren();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  const points = spec.lines.flatMap((line) => line.points);
  const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
  const asLog = spec.log && logarithmic && ys.every((y) => y > 0);
  const scale = asLog ? Math.log10 : (y) => y;
  let low = Math.min(...ys.map(scale)), high = Math.max(...ys.map(scale));
  if (spec.zero && !asLog) low = Math.min(low, 0);
  if (high - low < 1e-9) { high += Math.abs(high) / 10 || 1; low -= Math.abs(low) / 10; }
  const x0 = Math.min(...xs), x1 = Math.max(...xs, x0 + 1);
  const px = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const py = (y) => height - bottom - ((scale(y) - low) / (high - low)) * (height - top - bottom);
  for (const tick of ticks(low, high, 4)) {
    const y = height - bottom - ((tick - low) / (high - low)) * (height - top - bottom);
    draw(svg, "line", { x1: left, x2: width - right, y1: y, y2: y, class: "axis" });
    draw(svg, "text", { x: left - 5, y: y + 3, "text-anchor": "end" }).textContent = short(asLog ? 10 ** tick : tick);
  }
  for (const tick of ticks(x0, x1, Math.max(2, Math.floor(width / 110))))
    draw(svg, "text", { x: px(tick), y: height - 6, "text-anchor": "middle" }).textContent = short(tick);
  let last = -99;
  for (const phase of DATA.phases) {
    if (phase.first < x0 || phase.first > x1 || DATA.phases.length < 2) continue;
    const x = px(phase.first);
    if (phase.first > x0) draw(svg, "line", { x1: x, x2: x, y1: top, y2: height - bottom, class: "phase" });
    if (x - last > 40) { draw(svg, "text", { x: x + 3, y: 9 }).textContent = phase.name; last = x; }
  }
  for (const line of spec.lines) {
    const colour = COLOURS[line.colour % 8];
    // A line ends where nothing was measured for a while.
    const gap = Math.max(30, (x1 - x0) / 25);
    const path = (list) => list.map(([x, y], i) => {
      return `${i && x - list[i - 1][0] < gap ? "L" : "M"}${px(x).toFixed(1)},${py(y).toFixed(1)}`;
    }).join("");
    const smoothed = smooth(line.points, line.breaks || []);
    if (smoothed !== line.points) draw(svg, "path", { d: path(line.points), stroke: colour, class: "raw" });
    if (line.points.length === 1) draw(svg, "circle", { cx: px(line.points[0][0]), cy: py(line.points[0][1]), r: 2.5, fill: colour });
    draw(svg, "path", { d: path(smoothed), stroke: colour });
  }
  const cursor = draw(svg, "line", { y1: top, y2: height - bottom, class: "axis", visibility: "hidden" });
  svg.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left - left) / (width - left - right)) * (x1 - x0);
    const rows = spec.lines.map((line) => {
      const near = line.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      return [near[0], `${line.label}  ${short(near[1])}`];
    });
    cursor.setAttribute("x1", px(rows[0][0]));
    cursor.setAttribute("x2", px(rows[0][0]));
    cursor.setAttribute("visibility", "visible");
    showTip(event, `step ${short(rows[0][0])}\n${rows.map((row) => row[1]).join("\n")}`);
  };
  svg.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); tip.style.opacity = 0; };
}

function showTip(event, text) {
  tip.textContent = text;
  tip.style.opacity = 1;
  tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 12, innerHeight - tip.offsetHeight - 8)}px`;
}

function rampColour(share) {
  const place = Math.max(0, Math.min(share, 1)) * (RAMP.length - 1), i = Math.min(Math.floor(place), RAMP.length - 2);
  return RAMP[i].map((channel, c) => Math.round(channel + (RAMP[i + 1][c] - channel) * (place - i)));
}

function heat(map) {
  const figures = map.tables[0].map((_, layer) => {
    const columns = map.tables.map((table) => table[layer]), experts = columns[0].length;
    const canvas = make("canvas", { width: columns.length, height: experts });
    const picture = canvas.getContext("2d"), image = picture.createImageData(columns.length, experts);
    columns.forEach((shares, x) => shares.forEach((share, y) => {
      image.data.set([...rampColour((share * experts) / 2), 255], 4 * (y * columns.length + x));
    }));
    picture.putImageData(image, 0, 0);
    canvas.onpointermove = (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.min(columns.length - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * columns.length)));
      const y = Math.min(experts - 1, Math.max(0, Math.floor(((event.clientY - box.top) / box.height) * experts)));
      showTip(event, `${map.layers[layer]}, step ${map.steps[x]}\nexpert ${y}: ${(100 * columns[x][y]).toFixed(1)} %`);
    };
    canvas.onpointerleave = () => { tip.style.opacity = 0; };
    return make("figure", {}, canvas, make("figcaption", {}, map.layers[layer]));
  });
  return make("div", { class: "panel" }, make("h3", {}, map.title), make("div", { class: "heat" }, ...figures));
}

function table(head, rows, numbers = false) {
  const cell = (tag, value, i) => {
    if (value instanceof Node) return make(tag, {}, value);
    return make(tag, { class: i === 0 ? "key" : numbers ? "number" : "text" }, value === null ? "–" : String(value));
  };
  return make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...head.map((value, i) => cell("th", value, i)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value, i) => cell("td", value, i)))))));
}

function answer(said, expected) {
  if (said === null) return make("span", { class: "wrong" }, "–");
  const right = said.trim() === expected.trim();
  return make("span", { class: right ? "right" : "wrong" }, (right ? "✓ " : "✗ ") + (said.trim() || "(nothing)"));
}

function section(title, note, ...content) {
  if (!content.length) return;
  document.getElementById("main").append(make("section", {}, make("h2", {}, title), ...(note ? [make("p", { class: "note" }, note)] : []), ...content));
}

function build() {
  document.getElementById("runs").append(make("div", { class: "chips" }, ...DATA.runs.map((run, i) => {
    return make("span", { class: "chip", style: `--c:${COLOURS[i % 8]}` }, `${run.name}: ${run.about}`);
  })));
  const names = DATA.runs.map((run) => run.name);
  section("Final numbers", "Mean of the last tenth of the last phase's logged steps.", table(["", ...names], DATA.final.map(([name, values]) => [name, ...values.map((v) => (v === null ? null : short(v)))]), true));
  for (const group of DATA.groups) {
    const extra = group.log ? [make("button", { type: "button" }, "logarithmic or linear")] : [];
    extra.forEach((button) => { button.onclick = () => { logarithmic = !logarithmic; document.dispatchEvent(new Event("redraw")); }; });
    section(group.title, group.note, ...extra, make("div", { class: "grid" }, ...group.charts.map(chart)));
  }
  if (DATA.heat.length) {
    const ramp = make("span", { class: "ramp", style: `background:linear-gradient(90deg,${RAMP.map((c) => `rgb(${c})`).join(",")})` });
    section("Expert usage", "Over the run from left to right, one row an expert: its share of its pool's tokens.",
      make("p", { class: "note" }, "none", ramp, "twice an even share or more"), ...DATA.heat.map(heat));
  }
  if (DATA.samples.length)
    section("Answers before and after", DATA.samples_note, table(["question", "expected", "start", ...names], DATA.samples.map((one) => [
      make("div", {}, ...one.pictures.map((src) => make("img", { src, alt: "a picture of the question" })), one.question),
      one.expected, answer(one.before, one.expected), ...one.after.map((said) => answer(said, one.expected))])));
  else if (DATA.samples_note) section("Answers before and after", DATA.samples_note, "");
  if (DATA.events.length) section("Events", "Steps that were skipped, and returns to an earlier state.", table(["run", "step", "what"], DATA.events));
  if (DATA.runs.length > 1) section("Settings that differ", "", table(["", ...names], DATA.differences));
  section("Settings", "As resolved at the start.", ...DATA.runs.map((run) => make("details", DATA.runs.length > 1 ? {} : { open: "" },
    make("summary", {}, run.name), table(["setting", "value"], run.config))));
}
build();
