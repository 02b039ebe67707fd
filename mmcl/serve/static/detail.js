// One image, large, with all that is known of it.

import * as api from "/static/api.js";
import { byId, counted, el } from "/static/dom.js";
import { focus, refreshSelection, selection, tiles } from "/static/grid.js";

const dialog = byId("detail"), picture = byId("detail-image");
const actions = { similar: () => {}, add: () => {}, changed: () => {} };
let current = null;

export const onDetail = (given) => Object.assign(actions, given);

export async function openDetail(id, row = null) {
  current = { id, row };
  const title = row ? row.caption || row.name : id;
  byId("detail-title").textContent = title;
  picture.alt = title;
  picture.src = `/api/image/${id}`;
  byId("detail-captions").replaceChildren();
  byId("detail-facts").replaceChildren();
  showPlace();
  showSelected();
  if (!dialog.open) {
    dialog.showModal();
    byId("detail-like").focus();
  }
  actions.changed(id);
  try {
    describe(await api.item(id));
  } catch (error) {
    if (error.name !== "AbortError") byId("detail-facts").replaceChildren(el("dt", { textContent: "note" }), el("dd", { textContent: error.message }));
  }
}

function describe(item) {
  if (current?.id !== item.id) return;
  const [first, ...others] = item.captions;
  byId("detail-title").textContent = picture.alt = first || item.name;
  byId("detail-captions").replaceChildren(...others.map((text) => el("li", { dir: "auto", textContent: text })));
  const score = current.row?.score, match = current.row?.match;
  const facts = [
    ["score", score === undefined ? null : score.toFixed(3)],
    ["match", match === undefined ? null : match.toFixed(2)],
    ["name", item.name],
    ["class", item.label],
    ["pixels", item.width ? `${item.width} × ${item.height}` : null],
    ["file", item.size ? `${Math.max(1, Math.round(item.size / 1000)).toLocaleString("en")} kB` : null],
    ["taken", item.taken ? item.taken.replace("T", " ") : null],
    ...Object.entries(item.meta).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : value]),
  ];
  const known = facts.filter(([, value]) => value !== null && value !== undefined && value !== "");
  byId("detail-facts").replaceChildren(
    ...known.flatMap(([name, value]) => [el("dt", { textContent: name }), el("dd", { dir: "auto", textContent: String(value) })]),
  );
}

const place = () => tiles().findIndex((one) => one.row.id === current?.id);

function showPlace() {
  const all = tiles(), at = place();
  byId("detail-place").textContent = at < 0 ? "" : `${at + 1} of ${counted(all.length, "image")}`;
  byId("detail-before").disabled = at <= 0;
  byId("detail-after").disabled = at < 0 || at >= all.length - 1;
}

function showSelected() {
  const isSelected = selection.has(current.id);
  byId("detail-select").setAttribute("aria-pressed", String(isSelected));
  byId("detail-select").textContent = isSelected ? "Selected ✓" : "Select";
}

function step(by) {
  const next = tiles()[place() + by];
  if (next && place() >= 0) openDetail(next.row.id, next.row);
}

picture.addEventListener("load", () => picture.classList.toggle("is-small", Math.max(picture.naturalWidth, picture.naturalHeight) < 200));
dialog.addEventListener("close", () => {
  const tile = tiles().find((one) => one.row.id === current?.id);
  current = null;
  picture.removeAttribute("src");
  actions.changed("");
  focus(tile);
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "ArrowRight") step(1);
});
byId("detail-before").onclick = () => step(-1);
byId("detail-after").onclick = () => step(1);
byId("detail-like").onclick = () => {
  const row = current.row ?? { id: current.id };
  dialog.close();
  actions.similar(row);
};
byId("detail-add").onclick = () => {
  const { id } = current;
  dialog.close();
  actions.add(id);
};
byId("detail-select").onclick = () => {
  if (selection.has(current.id)) selection.delete(current.id);
  else selection.add(current.id);
  refreshSelection();
  showSelected();
};
for (const one of document.querySelectorAll("dialog")) {
  one.querySelector(".close").onclick = () => one.close();
  one.addEventListener("click", (event) => { if (event.target === one) one.close(); });
}
