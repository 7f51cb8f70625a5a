"use strict";
// Everything that is found is set as text: names may be anybody's.
const byId = (id) => document.getElementById(id);
const { count, bytes } = byId("script").dataset;

// Images that were given, by their place in the address, so that Back finds them again; rows of the index have a number.
const given = new Map();
let asking = new AbortController();

function make(tag, attributes, ...children) {
  const element = Object.assign(document.createElement(tag), attributes);
  element.append(...children);
  return element;
}

function picture(source) {
  const image = make("img", { src: source, alt: "" });
  image.addEventListener("error", () => image.replaceWith(make("span", { className: "missing" }, "not there")));
  return image;
}

function neighbor({ row, name, similarity }) {
  const said = make("p", {}, make("strong", {}, similarity.toFixed(3)), " ", name);
  return make("li", {}, make("a", { href: `#${row}` }, picture(`image/${row}`), said));
}

async function ask(place, signal) {
  const k = byId("k").value;
  const file = given.get(place);
  let response;
  try {
    const post = { method: "POST", body: file, signal };
    response = await (file ? fetch(`search?k=${k}`, post) : fetch(`neighbors/${encodeURIComponent(place)}?k=${k}`, { signal }));
  } catch (error) {
    if (signal.aborted) throw error;
    throw new Error("The server does not answer, or the file can't be read. Is src.serve still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.detail || `The server answers ${response.status}.`);
  return answer;
}

// What the address names, searched with; the focus goes there unless only the number of neighbours has changed.
async function show(focus) {
  asking.abort();
  const { signal } = (asking = new AbortController());
  const place = decodeURIComponent(location.hash.slice(1));
  byId("problem").textContent = byId("status").textContent = "";
  if (!place) { byId("found").hidden = true; return; }
  if (place.startsWith("image-") && !given.has(place)) { fail("That image is gone with the page that had it: give it again."); return; }
  byId("status").textContent = "Searching…";
  try {
    const { name, neighbors } = await ask(place, signal);
    const file = given.get(place);
    byId("query").replaceChildren(picture(file ? file.url : `image/${place}`));
    byId("title").textContent = `Most similar to ${name ?? (file.name || "the image")}`;
    byId("neighbors").replaceChildren(...neighbors.map(neighbor));
    byId("found").hidden = false;
    byId("status").textContent = `${neighbors.length} of ${Number(count).toLocaleString("en")} images`;
    if (focus) byId("title").focus();
  } catch (error) {
    if (!signal.aborted) fail(error.message);
  }
}

function fail(words) {
  byId("found").hidden = true;
  byId("status").textContent = "";
  byId("problem").textContent = words;
}

function give(file) {
  if (!file) return fail("There was no image file in that.");
  if (file.size > bytes) return fail(`The image is larger than ${bytes / 2 ** 20} MiB.`);
  const place = `image-${given.size + 1}`;
  given.set(place, Object.assign(file, { url: URL.createObjectURL(file) }));
  location.hash = place;
}

addEventListener("hashchange", () => show(true));
addEventListener("paste", (event) => give(event.clipboardData.files[0]));
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dragging"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragging");
  give(event.dataTransfer.files[0]);
});
byId("file").addEventListener("change", ({ target }) => { if (target.files[0]) give(target.files[0]); target.value = ""; });
byId("k").addEventListener("change", () => show(false));
show(true);
