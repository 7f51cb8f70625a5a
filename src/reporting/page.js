"use strict";
// Everything shown comes from the JSON in the page and is set as text: names in it may be anybody's.
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const byId = (id) => document.getElementById(id);

// What the reader chose outlives a reload, where the browser keeps anything.
const place = "report:" + location.pathname;
let state = {};
try { state = JSON.parse(sessionStorage.getItem(place)) || {}; } catch { /* a damaged or forbidden store */ }
function save() {
  try { sessionStorage.setItem(place, JSON.stringify(state)); } catch { /* then it does not */ }
}
const stateOf = (key, initial) => (state[key] = { ...initial, ...state[key] });

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// A number is [value, digits, spread, to, note].
function show(cell) {
  if (cell === null) return "";
  if (typeof cell === "string") return cell;
  const [value, digits, spread = null, to = null, note = ""] = cell;
  const text = (number) => (number === null ? "–" : number.toFixed(digits));
  return text(value) + (spread === null ? "" : ` ± ${text(spread)}`) + (to === null ? "" : ` to ${text(to)}`) + (note && ` ${note}`);
}
const valueOf = (cell) => (Array.isArray(cell) ? cell[0] : cell);

function matches(cell, wanted) {
  const bound = wanted.match(/^\s*([<>])(=?)\s*(-?[\d.]+)\s*$/);
  const value = valueOf(cell);
  if (!bound || typeof value === "string") return show(cell).toLowerCase().includes(wanted.trim().toLowerCase());
  if (value === null) return false;
  return (bound[2] && value === +bound[3]) || (bound[1] === "<" ? value < +bound[3] : value > +bound[3]);
}

function compare(a, b, sign) {
  const [x, y] = [valueOf(a), valueOf(b)];
  if (x === null || y === null) return (x === null) - (y === null); // nothing stays below
  return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true }));
}

// A table that sorts, and that filters by text and by column; `pick`, the column of which one value is shown at a time.
function table(place, key, name, content, { pick = null, first = "", open = null } = {}) {
  const now = stateOf(key, { sort: null, down: false, text: "", filters: {}, picked: first, more: false });
  const body = make("tbody"), head = make("thead"), status = make("span", { class: "status", role: "status" });
  const search = make("input", { type: "search", id: key + "-text", placeholder: "Filter", "aria-label": `Filter ${name}`, oninput: () => { now.text = search.value; fill(); } });
  const more = make("button", { type: "button", "aria-pressed": now.more, onclick: () => { now.more = !now.more; build(); } }, "Filter by column");
  const tools = make("div", { class: "tools" }, search, more, status);
  search.value = now.text;
  if (pick !== null) {
    const options = [...new Set(content.rows.map((row) => row[pick]))].map((value) => make("option", {}, value));
    const select = make("select", { id: key + "-pick", "aria-label": "Score", onchange: () => { now.picked = select.value; build(); } }, ...options);
    select.value = now.picked;
    if (select.value !== now.picked) now.picked = select.value = content.rows[0][pick];
    tools.prepend(select);
  }
  place.append(tools, make("div", { class: content.rows.length > 200 ? "scroll long" : "scroll", tabindex: 0, role: "region", "aria-label": name }, make("table", {}, head, body)));

  let rows = [], columns = [];
  function build() {
    more.setAttribute("aria-pressed", now.more);
    rows = content.rows.map((row, index) => ({ row, index }));
    if (pick !== null) rows = rows.filter(({ row }) => row[pick] === now.picked);
    columns = content.columns.map((_, i) => i).filter((i) => i !== pick && rows.some(({ row }) => row[i] !== null));
    const numeric = (i) => rows.some(({ row }) => Array.isArray(row[i]));
    const titles = columns.map((i) => {
      const sort = () => { [now.sort, now.down] = [i, now.sort === i ? !now.down : numeric(i)]; mark(); fill(); };
      return make("th", { scope: "col", class: numeric(i) ? "number" : null, "data-column": i }, make("button", { type: "button", onclick: sort }, content.columns[i]));
    });
    const filters = columns.map((i) => {
      const input = make("input", { id: `${key}-${i}`, "aria-label": `Filter ${content.columns[i]}`, placeholder: numeric(i) ? "> 50" : "text", oninput: () => { now.filters[i] = input.value; fill(); } });
      input.value = now.filters[i] || "";
      return make("th", {}, input);
    });
    head.replaceChildren(make("tr", {}, ...titles), ...(now.more ? [make("tr", {}, ...filters)] : []));
    mark();
    fill();
  }
  function mark() {
    for (const th of head.querySelectorAll("[data-column]")) {
      if (+th.dataset.column === now.sort) th.setAttribute("aria-sort", now.down ? "descending" : "ascending");
      else th.removeAttribute("aria-sort");
    }
  }
  function fill() {
    const wanted = now.more ? Object.entries(now.filters).filter(([i, text]) => text.trim() && columns.includes(+i)) : [];
    let kept = rows.filter(({ row }) => wanted.every(([i, text]) => matches(row[i], text)));
    if (now.text.trim()) kept = kept.filter(({ row }) => columns.some((i) => matches(row[i], now.text)));
    if (columns.includes(now.sort)) kept.sort((a, b) => compare(a.row[now.sort], b.row[now.sort], now.down ? -1 : 1));
    body.replaceChildren(...kept.map(({ row, index }) => make("tr", {}, ...columns.map((i) => {
      const text = show(row[i]);
      const inside = open && i === 0 ? make("button", { type: "button", class: "link", onclick: () => open(index) }, text) : text;
      return make("td", { class: Array.isArray(row[i]) ? "number" : null }, inside);
    }))));
    status.textContent = (kept.length === rows.length ? "" : `${kept.length} of `) + `${rows.length} ${rows.length === 1 ? "row" : "rows"}`;
    save();
  }
  build();
}

// Okabe and Ito's colours, and lighter ones for the dark.
const COLOURS = { light: ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555"], dark: ["#4DA3E0", "#F07F42", "#33BF95", "#E5A3CB", "#8FD3F7", "#F3BC4C", "#B4B4B4"] };
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3]];
const MANY = 24, FEW = 12; // of more curves than MANY, those of the FEW best are there at first
const theme = () => root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
const charts = [];

function chart(place, key, { settings, lines, left_out: leftOut }) {
  const names = Object.keys(lines);
  const last = (i) => { const [, means] = lines[names[0]][i]; return means.length ? means[means.length - 1] : -Infinity; };
  const best = settings.map((_, i) => i).sort((a, b) => last(b) - last(a));
  const initially = settings.length > MANY ? best.slice(FEW).map((i) => settings[i]) : [];
  const now = stateOf(key, { name: names[0], hidden: null }); // null until somebody chooses: a sweep may grow
  if (!names.includes(now.name)) now.name = names[0];
  const hidden = new Set(now.hidden || initially);
  const looks = settings.map((_, i) => (initially.length ? best.indexOf(i) : i)); // those shown first are told apart
  const choose = (change) => { change(); now.hidden = [...hidden]; draw(); };
  const canvas = make("canvas", { tabindex: 0, role: "img" });
  const readout = make("p", { class: "readout quiet", role: "status" }, "Point at a curve, or use the arrow keys in the plot.");
  const select = make("select", { id: key + "-name", "aria-label": "Curve of", onchange: () => { now.name = select.value; draw(); } }, ...names.map((name) => make("option", {}, name)));
  select.value = now.name;
  const all = (on) => choose(() => settings.forEach((s) => (on ? hidden.delete(s) : hidden.add(s))));
  const tools = make("div", { class: "tools" }, select, make("button", { type: "button", onclick: () => all(true) }, "Show all"), make("button", { type: "button", onclick: () => all(false) }, "Hide all"));
  if (initially.length) tools.append(make("span", { class: "status" }, `The ${FEW} best of ${settings.length} at first`));
  if (leftOut) tools.append(make("span", { class: "status" }, `${leftOut} more in the runs' results.json: too much for a page`));
  const buttons = settings.map((setting, i) => make("button", { type: "button", onclick: () => choose(() => hidden.delete(setting) || hidden.add(setting)) }, swatch(i), setting));
  place.append(tools, make("div", { class: "plot" }, canvas), readout, make("ul", { class: "legend", "aria-label": "Curves, to show or hide" }, ...(initially.length ? best.map((i) => buttons[i]) : buttons).map((b) => make("li", {}, b))));

  function swatch(i) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    const attributes = { d: "M0 5H30", fill: "none", "stroke-width": 3, "stroke-dasharray": dash(i).join(" ") };
    for (const [name, value] of Object.entries(attributes)) line.setAttribute(name, value);
    svg.setAttribute("viewBox", "0 0 30 10");
    svg.setAttribute("aria-hidden", "true");
    svg.append(line);
    return svg;
  }
  function dash(i) { return DASHES[Math.floor(looks[i] / 7) % DASHES.length]; }
  function colourOf(i) { return COLOURS[theme()][looks[i] % 7]; }
  function datasets() {
    return settings.flatMap((setting, i) => {
      const [epochs, means, spreads] = lines[now.name][i];
      if (hidden.has(setting) || !epochs.length) return [];
      const colour = colourOf(i);
      const points = (sign) => epochs.map((x, k) => ({ x, y: means[k] === null ? null : means[k] + sign * (spreads[k] || 0), spread: spreads[k] }));
      const edge = { pointRadius: 0, pointHoverRadius: 0, borderWidth: 0, backgroundColor: colour + "22" };
      const band = spreads.some((s) => s) ? [{ ...edge, data: points(-1) }, { ...edge, data: points(1), fill: "-1" }] : [];
      return [...band, { label: setting, mean: true, data: points(0), borderColor: colour, backgroundColor: colour, borderWidth: 2, borderDash: dash(i), pointRadius: epochs.length > 30 ? 0 : 2.5, pointHoverRadius: 5 }];
    });
  }
  const said = (point, label) => `${label}: ${point.y === null ? "–" : +point.y.toFixed(3)}${point.spread ? ` ± ${+point.spread.toFixed(3)}` : ""}`;
  const plot = new Chart(canvas, {
    type: "line",
    data: { datasets: [] },
    options: {
      animation: false, parsing: false, normalized: true, maintainAspectRatio: false, spanGaps: true,
      interaction: { mode: "nearest", axis: "x", intersect: false },
      plugins: {
        legend: { display: false },
        tooltip: {
          filter: (item) => item.dataset.mean, itemSort: (a, b) => b.raw.y - a.raw.y,
          callbacks: { title: (items) => (items.length ? `epoch ${items[0].raw.x}` : ""), label: (item) => said(item.raw, item.dataset.label) },
        },
      },
      scales: { x: { type: "linear", title: { display: true, text: "epoch (0: untrained)" }, ticks: { precision: 0 } }, y: { title: { display: true } } },
    },
  });
  function draw() {
    const style = getComputedStyle(document.body);
    const [ink, line] = [style.getPropertyValue("color"), theme() === "dark" ? "#333941" : "#e3e6ea"];
    for (const axis of Object.values(plot.options.scales)) {
      axis.ticks.color = axis.title.color = ink;
      axis.grid = { color: line };
    }
    plot.options.scales.y.title.text = now.name;
    plot.data.datasets = datasets();
    plot.update("none");
    buttons.forEach((button, i) => {
      button.setAttribute("aria-pressed", !hidden.has(settings[i]));
      button.querySelector("path").setAttribute("stroke", colourOf(i));
    });
    canvas.setAttribute("aria-label", `${now.name} over epochs, ${settings.length - hidden.size} curves; arrow keys read the values`);
    save();
  }
  let at = -1;
  canvas.addEventListener("keydown", (event) => {
    const shown = plot.data.datasets.map((set, datasetIndex) => ({ set, datasetIndex })).filter(({ set }) => set.mean);
    const epochs = [...new Set(shown.flatMap(({ set }) => set.data.map((point) => point.x)))].sort((a, b) => a - b);
    const moves = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: epochs.length - 1 };
    if (!(event.key in moves) || !epochs.length) return;
    event.preventDefault();
    at = Math.max(0, Math.min(epochs.length - 1, moves[event.key]));
    const active = shown.map(({ set, datasetIndex }) => ({ datasetIndex, index: set.data.findIndex((p) => p.x === epochs[at]) })).filter(({ index }) => index >= 0);
    plot.setActiveElements(active);
    plot.tooltip.setActiveElements(active, { x: plot.scales.x.getPixelForValue(epochs[at]), y: 0 });
    plot.update("none");
    readout.textContent = `epoch ${epochs[at]}: ` + active.map(({ datasetIndex, index }) => { const set = plot.data.datasets[datasetIndex]; return said(set.data[index], set.label); }).join("; ");
  });
  charts.push(draw);
  draw();
}

// Dialogs; the browser closes them at Esc and gives the focus back.
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
for (const button of document.querySelectorAll(".zoom")) {
  button.addEventListener("click", () => {
    const from = button.querySelector("img"), to = byId("picture").querySelector("img");
    [to.src, to.alt] = [from.src, from.alt];
    byId("picture").showModal();
  });
}
function openRun({ runs, details }, index) {
  const row = runs.rows[index];
  byId("run-title").textContent = `${row[0]}, seed ${show(row[1])}`;
  byId("run-folder").textContent = row[row.length - 1];
  byId("run-command").textContent = details.commands[index];
  const own = details.keys.map((key, i) => [key, details.runs[index][i], details.usual[i]]).filter(([, mine, usual]) => mine !== usual);
  const cells = (tag, texts) => make("tr", {}, ...texts.map((text) => make(tag, {}, text)));
  byId("run-differences").replaceChildren(own.length
    ? make("table", {}, make("thead", {}, cells("th", ["setting", "this run", "most runs"])), make("tbody", {}, ...own.map((texts) => cells("td", texts))))
    : "Nowhere: it is as most of them are.");
  byId("run").showModal();
}
byId("copy").addEventListener("click", () => {
  getSelection().selectAllChildren(byId("run-command"));
  navigator.clipboard?.writeText(byId("run-command").textContent).catch(() => {}); // selected it is, at any rate
});

function dress() {
  if (state.theme) root.dataset.theme = state.theme;
  charts.forEach((draw) => draw());
}
byId("theme").addEventListener("click", () => { state.theme = theme() === "dark" ? "light" : "dark"; save(); dress(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", dress);
if (state.theme) root.dataset.theme = state.theme;

document.querySelectorAll("section.protocol").forEach((section, number) => {
  const content = data.sections[number], find = (name) => section.querySelector(`[data-table=${name}]`);
  table(find("scores"), `${section.id}-scores`, "Scores", content.scores, { pick: 1, first: content.headline });
  chart(section.querySelector("[data-chart]"), `${section.id}-curves`, content.curves);
  if (find("agreement")) table(find("agreement"), `${section.id}-agreement`, "Agreement", content.agreement);
  table(find("runs"), `${section.id}-runs`, "Runs", content.runs, { open: (index) => openRun(content, index) });
});
const others = document.querySelector("[data-table=others]");
if (others) table(others, "others", "Not in the tables", data.others);

// While a sweep runs, the page is written anew; a reader who looks at something closely is not disturbed.
const scrolled = () => [...document.querySelectorAll(".scroll")];
const folded = () => [...document.querySelectorAll("details")];
if (state.focus) byId(state.focus)?.focus({ preventScroll: true });
scrolled().forEach((place, i) => place.scrollTo(...(state.scrolled?.[i] || [0, 0])));
folded().forEach((place, i) => { place.open = state.open?.[i] ?? place.open; });
for (const name of ["focus", "scrolled", "open"]) delete state[name];
if (data.refresh) {
  setInterval(() => {
    if (document.querySelector("dialog[open]")) return;
    state.focus = document.activeElement.id;
    state.scrolled = scrolled().map((place) => [place.scrollLeft, place.scrollTop]);
    state.open = folded().map((place) => place.open);
    save();
    location.reload();
  }, 1000 * data.refresh);
}
