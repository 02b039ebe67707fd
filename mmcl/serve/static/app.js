// The page: from its state to requests and images, and back from what is typed, dropped and clicked.

import * as api from "/static/api.js";
import { openDetail, onDetail } from "/static/detail.js";
import { byId, counted, el, icon, isTyping } from "/static/dom.js";
import { onTile, refreshSelection, selection, setVersion, show, thumb, tiles } from "/static/grid.js";
import { address, fields, filter, isEmpty, readState } from "/static/state.js";
import { showDuplicates, showLabels, splitLabels } from "/static/views.js";

const PAGE = 60, MAX_OFFSET = 10000, MAX_PICTURES = 8;
let state = readState(), about = null, following = null;

const say = (text) => { byId("status").textContent = text; };

function complain(error) {
  if (error.name === "AbortError") return;
  byId("notice").textContent = error.message;
  byId("notice").hidden = false;
  byId("grid").classList.remove("is-old");
  say("");
}

function go(change, { replace = false } = {}) {
  state = { ...state, item: "", ...change };
  const isSame = address(state) === location.pathname + location.search;
  history[replace || isSame ? "replaceState" : "pushState"]({}, "", address(state));
  return load();
}

async function load() {
  fill();
  byId("notice").hidden = true;
  byId("next").hidden = true;
  following = null;
  byId("groups").replaceChildren();
  if (state.view !== "search") byId("grid").replaceChildren();
  byId("grid").classList.add("is-old");
  try {
    if (state.view === "search") await loadSearch(0);
    else if (state.view === "labels") await loadLabels();
    else await loadDuplicates(0);
    byId("grid").classList.remove("is-old");
    if (state.item) openDetail(state.item, tiles().find((one) => one.row.id === state.item)?.row);
  } catch (error) {
    complain(error);
  }
}

async function loadSearch(offset) {
  if (!offset) say("Searching …"); // the first search loads the model, which takes seconds
  const found = await api.search(fields(state, offset, PAGE), state.pictures);
  const made = show(found.rows, { append: offset > 0 });
  const reached = offset + found.rows.length;
  const isMore = found.rows.length === PAGE && reached < Math.min(found.total, MAX_OFFSET);
  follow(isMore ? () => loadSearch(reached) : null);
  const among = found.total === about.rows ? counted(found.total, "image") : `${counted(found.total, "image")} of ${about.rows.toLocaleString("en")}`;
  const way = found.exact ? "every image was compared" : "approximate: some may be missing";
  if (!reached) say(`No image: the filter lets none of ${about.rows.toLocaleString("en")} through`);
  else say(isEmpty(state) ? among : `${among}, best first, ${Math.max(1, Math.round(found.ms))} ms; ${way}`);
  return made;
}

async function loadLabels() {
  const labels = splitLabels(state.labels);
  byId("sliders").replaceChildren();
  say(labels.length ? await showLabels(labels, state.template, filter(state)) : "Give two labels or more, with commas between them");
}

async function loadDuplicates(cursor) {
  say("Comparing every image with every other …");
  const found = await showDuplicates(state.threshold, cursor);
  say(found.text);
  follow(found.next ? () => loadDuplicates(found.next) : null);
}

function follow(load) {
  following = load;
  byId("next").hidden = load === null;
}

async function more() {
  if (!following) return;
  const load = following;
  following = null;
  byId("next").disabled = true;
  await load().catch(complain);
  byId("next").disabled = false;
}

// From the state to the form.

function fill() {
  for (const view of ["search", "labels", "duplicates"]) byId(`${view}-view`).hidden = state.view !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.dataset.view === state.view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const isFresh = isEmpty(state) && !filter(state) && !state.sort;
  byId("welcome").classList.toggle("quiet", !isFresh);
  byId("suggestions").hidden = !isFresh || !about?.suggestions.length;
  byId("q").value = state.q.join(", ");
  byId("negative").value = state.negative.join(", ");
  for (const name of ["where", "folder", "label", "year", "sort", "labels", "template", "threshold"]) byId(name).value = state[name];
  byId("threshold-value").textContent = Number(state.threshold).toFixed(3);
  byId("parts").replaceChildren(
    ...state.like.map((id) => part(el("img", { src: thumb(id), alt: "" }), `like image ${id}`, () => go({ like: state.like.filter((one) => one !== id) }))),
    ...state.pictures.map((file) => part(el("img", { src: preview(file), alt: "" }), `picture ${file.name}`, () => go({ pictures: state.pictures.filter((one) => one !== file) }))),
  );
  document.title = [state.q.join(", "), about?.name, "mmcl"].filter(Boolean).join(" · ");
}

const previews = new WeakMap();

function preview(file) {
  if (!previews.has(file)) previews.set(file, URL.createObjectURL(file));
  return previews.get(file);
}

const part = (image, name, remove) =>
  el("span", { className: "part" }, image, el("button", { type: "button", className: "plain", "aria-label": `Remove ${name}`, textContent: "×", onclick: remove }));

function options(select, first, values) {
  select.replaceChildren(el("option", { value: "", textContent: first }),
    ...values.map(({ value, count }) => el("option", { value: String(value), textContent: `${value} (${count.toLocaleString("en")})` })));
  byId(`${select.id}-field`).hidden = values.length < 2;
}

// From what is done to the state.

const list = (text) => (text.trim() ? [text.trim()] : []);

function submit(event) {
  event?.preventDefault();
  go({ q: list(byId("q").value), negative: list(byId("negative").value), where: byId("where").value.trim() });
}

function addPictures(given) {
  const pictures = [...given].filter((file) => file.type.startsWith("image/"));
  if (!pictures.length) complain(new Error("This is not an image."));
  else go({ view: "search", q: list(byId("q").value), pictures: [...state.pictures, ...pictures].slice(-MAX_PICTURES) });
}

async function save(format) {
  try {
    const link = el("a", { href: URL.createObjectURL(await api.exported([...selection], format)), download: `images.${format}` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    complain(error);
  }
}

function listen() {
  byId("search").addEventListener("submit", submit);
  for (const name of ["folder", "label", "year", "sort"]) byId(name).onchange = () => go({ [name]: byId(name).value });
  for (const name of ["negative", "where"]) byId(name).onchange = submit;
  byId("q").addEventListener("search", () => { if (!byId("q").value && state.q.length) submit(); });
  byId("attach").append(icon("picture"));
  byId("attach").onclick = () => byId("file").click();
  byId("file").onchange = () => { addPictures(byId("file").files); byId("file").value = ""; };
  byId("labels-form").addEventListener("submit", (event) => {
    event.preventDefault();
    go({ labels: byId("labels").value, template: byId("template").value });
  });
  byId("threshold").oninput = () => { byId("threshold-value").textContent = byId("threshold").valueAsNumber.toFixed(3); };
  byId("threshold").onchange = () => go({ threshold: byId("threshold").value }, { replace: true });
  byId("next").onclick = more;
  new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting)) more(); }, { rootMargin: "600px" }).observe(byId("next"));
  for (const link of [...document.querySelectorAll("nav a"), byId("home")]) {
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      if (link === byId("home")) go({ ...readState(), q: [], negative: [], like: [], pictures: [], where: "", folder: "", label: "", year: "", sort: "", view: "search" });
      else go({ view: link.dataset.view });
    });
  }
  byId("keys").onclick = () => byId("help").showModal();
  byId("csv").onclick = () => save("csv");
  byId("json").onclick = () => save("json");
  byId("clear").onclick = () => { selection.clear(); refreshSelection(); };
  byId("like").onclick = () => go({ view: "search", q: [], pictures: [], like: [...selection].slice(0, MAX_PICTURES) });
  addEventListener("popstate", () => {
    const { pictures } = state;
    state = { ...readState(), pictures };
    if (!state.item) byId("detail").close();
    load();
  });
}

function listenForPictures() {
  let depth = 0;
  const over = (by) => { depth = Math.max(0, depth + by); byId("drop").hidden = depth === 0; };
  const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
  addEventListener("dragenter", (event) => { if (hasFiles(event)) over(1); });
  addEventListener("dragleave", (event) => { if (hasFiles(event)) over(-1); });
  addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    over(0);
    if (event.dataTransfer.files.length) addPictures(event.dataTransfer.files);
  });
  addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    addPictures(event.clipboardData.files);
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    if (event.key === "Escape" && selection.size) {
      selection.clear();
      refreshSelection();
    }
    if (isTyping(event)) return;
    if (event.key === "?") byId("help").showModal();
    if (event.key !== "/") return;
    event.preventDefault();
    const field = byId({ search: "q", labels: "labels", duplicates: "threshold" }[state.view]);
    field.focus();
    field.select?.();
  });
}

async function begin() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState({}, "", location.pathname + location.search);
    await api.exchange(token);
  }
  about = await api.about();
  setVersion(about.version);
  byId("name").replaceChildren(about.name, el("small", { textContent: counted(about.rows, "image") }));
  byId("suggestions").append("try ", ...about.suggestions.map((text) => el("button", { type: "button", dir: "auto", textContent: text, onclick: () => go({ q: [text] }) })));
  byId("q").disabled = !about.has_text;
  if (!about.has_text) byId("q").placeholder = "This model knows images alone: drop one here";
  byId("negative-field").hidden = document.querySelector('nav a[data-view="labels"]').hidden = !about.has_text;
  onTile({ open: (one) => openDetail(one.row.id, one.row), similar: (row) => go({ view: "search", q: [], negative: [], pictures: [], like: [row.id] }) });
  onDetail({
    similar: (row) => go({ view: "search", q: [], negative: [], pictures: [], like: [row.id] }),
    add: (id) => go({ view: "search", like: [...new Set([...state.like, id])].slice(-MAX_PICTURES) }),
    changed: (id) => {
      state.item = id;
      history.replaceState({}, "", address(state));
    },
  });
  listen();
  listenForPictures();
  api.facets().then((found) => {
    options(byId("folder"), "all", found.folders.filter((one) => one.value));
    const areFolders = JSON.stringify(found.labels) === JSON.stringify(found.folders);
    options(byId("label"), "all", areFolders ? [] : found.labels);
    options(byId("year"), "all", found.years);
    byId("sort-field").hidden = !found.years.length;
    fill();
  }).catch(complain);
  await load();
}

begin().catch(complain);
