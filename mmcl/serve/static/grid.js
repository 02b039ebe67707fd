// The images: tiles, the keys that go from one to the next, and the selection.

import { byId, counted, el, isTyping } from "/static/dom.js";

export const selection = new Set();
const actions = { open: () => {}, similar: () => {} };
let version = "";

export const setVersion = (value) => { version = value; };
export const onTile = (given) => Object.assign(actions, given);
export const thumb = (id) => `/api/thumb/${id}?v=${version}`;
export const tiles = () => [...document.querySelectorAll(".tile")];
export const rowOf = (tile) => tile.row;

const title = (row) => row.caption || row.name;

export function tile(row, { tag = "", note = "", isStacked = false } = {}) {
  const image = el("img", { src: thumb(row.id), alt: title(row), loading: "lazy", decoding: "async", width: 256, height: 256 });
  const open = el("button", { className: "open", type: "button", tabIndex: -1, title: row.name, onclick: () => actions.open(made) }, image);
  const box = el("input", { type: "checkbox", checked: selection.has(row.id), tabIndex: -1, "aria-label": `Select ${title(row)}` });
  box.addEventListener("change", () => select(made, box.checked));
  const score = note || (row.score === undefined ? "" : row.match === undefined ? row.score.toFixed(3) : `match ${row.match.toFixed(2)}`);
  const number = el("span", { className: "score", textContent: score, id: `score-${row.id}` });
  if (score) open.setAttribute("aria-describedby", number.id);
  const words = el("span", { className: "words", dir: "auto", textContent: title(row), "aria-hidden": "true" });
  const made = el("li", { className: "tile" }, open, el("label", { className: "pick" }, box), el("p", {}, words, number));
  if (tag) made.append(el("span", { className: "tag", textContent: tag }));
  image.addEventListener("load", () => made.classList.toggle("is-photo", image.naturalWidth >= 240 || image.naturalHeight >= 240));
  made.classList.toggle("is-selected", selection.has(row.id));
  made.classList.toggle("is-stacked", isStacked);
  made.row = row;
  return made;
}

export function show(rows, { append = false, list = byId("grid"), options = () => ({}) } = {}) {
  const made = rows.map((row) => tile(row, options(row)));
  if (append) list.append(...made);
  else list.replaceChildren(...made);
  makeReachable();
  return made;
}

// One image at a time is in the tab order; arrow keys go to the others.
export function makeReachable(current = null) {
  const all = tiles(), chosen = current ?? all.find((one) => opener(one).tabIndex === 0) ?? all[0];
  for (const one of all) {
    opener(one).tabIndex = one === chosen ? 0 : -1;
    one.querySelector("input").tabIndex = one === chosen ? 0 : -1;
  }
}

const opener = (one) => one.querySelector(".open");

export function focus(one) {
  if (!one) return;
  makeReachable(one);
  opener(one).focus();
}

export function select(one, isSelected) {
  if (isSelected) selection.add(one.row.id);
  else selection.delete(one.row.id);
  refreshSelection();
}

export function refreshSelection() {
  for (const one of tiles()) {
    const isSelected = selection.has(one.row.id);
    one.classList.toggle("is-selected", isSelected);
    one.querySelector("input").checked = isSelected;
  }
  document.body.classList.toggle("picking", selection.size > 0);
  byId("tray").hidden = selection.size === 0;
  byId("selected").textContent = `${counted(selection.size, "image")} selected`;
  byId("like").disabled = selection.size > 8;
}

// Rows of tiles as they are on the screen, whatever their number of columns.
function above(all, from, step) {
  const box = all[from].getBoundingClientRect(), middle = box.left + box.width / 2;
  let best = -1, bestScore = Infinity;
  for (let i = 0; i < all.length; i++) {
    const other = all[i].getBoundingClientRect(), down = (other.top - box.top) * step;
    if (down < box.height / 2) continue;
    const score = down * 10 + Math.abs(other.left + other.width / 2 - middle);
    if (score < bestScore) [best, bestScore] = [i, score];
  }
  return best < 0 ? from : best;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || isTyping(event) || document.querySelector("dialog[open]")) return;
  const all = tiles(), from = all.indexOf(event.target.closest(".tile"));
  const goals = {
    ArrowLeft: () => Math.max(0, from - 1),
    ArrowRight: () => Math.min(all.length - 1, from + 1),
    ArrowUp: () => above(all, from, -1),
    ArrowDown: () => above(all, from, 1),
    Home: () => 0,
    End: () => all.length - 1,
  };
  if (from >= 0 && event.key in goals) {
    event.preventDefault();
    focus(all[goals[event.key]()]);
  } else if (from >= 0 && event.target.matches(".open")) {
    if (event.key === "Enter") actions.similar(all[from].row);
    else if (event.key === " ") select(all[from], !selection.has(all[from].row.id));
    else if (event.key === "i") actions.open(all[from]);
    else return;
    event.preventDefault();
  } else if (from < 0 && event.key === "ArrowDown" && all.length && event.target === document.body) {
    event.preventDefault();
    focus(all[0]);
  }
});
