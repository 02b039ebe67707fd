// The views beside the search: how well labels fit, and images that are nearly the same.

import * as api from "/static/api.js";
import { byId, counted, el } from "/static/dom.js";
import { makeReachable, refreshSelection, selection, show, tile } from "/static/grid.js";

const SHOWN = 120;

export const splitLabels = (text) => [...new Set(text.split(",").map((one) => one.trim()).filter(Boolean))];

// Labels: every slider says how much its label counts; the images are ordered here, without asking again.

export async function showLabels(labels, template, where) {
  const found = await api.zeroShot({ labels, templates: [template || "{}"], ...(where ? { where } : {}) });
  const total = found.counts.reduce((sum, count) => sum + count, 0);
  const order = () => showOrdered(found, [...document.querySelectorAll("#sliders input")].map((one) => one.valueAsNumber));
  const heads = ["label", "share of the images that it fits best", "", "counts in the order"];
  byId("sliders").replaceChildren(
    el("li", { className: "head", "aria-hidden": "true" }, ...heads.map((text) => el("span", { textContent: text }))),
    ...found.labels.map((label, place) => {
      const bar = el("i"), share = total ? found.counts[place] / total : 0;
      bar.style.width = `${100 * share}%`;
      const slider = el("input", { type: "range", min: "-1", max: "1", step: "0.1", value: place ? "0" : "1", "aria-label": `How much ${label} counts` });
      slider.addEventListener("input", order);
      const count = `${found.counts[place].toLocaleString("en")} (${Math.round(100 * share)} %)`;
      return el("li", {}, el("span", { className: "words", dir: "auto", textContent: label }), el("span", { className: "track" }, bar),
        el("span", { className: "count", textContent: count }), slider);
    }),
  );
  order();
  return `${counted(total, "image")} compared with ${counted(labels.length, "label")}`;
}

function showOrdered(found, weights) {
  const value = (row) => weights.reduce((sum, weight, place) => sum + weight * row.scores[place], 0);
  const rows = found.rows.map((row) => ({ ...row, order: value(row) })).sort((a, b) => b.order - a.order || (a.id < b.id ? -1 : 1));
  show(rows.slice(0, SHOWN), { options: (row) => ({ note: bestLabel(found, row.scores), isStacked: true }) });
}

// The label that fits best, with its share where the model has a temperature (softmax).
function bestLabel(found, scores) {
  const best = scores.indexOf(Math.max(...scores));
  if (!found.scale || scores.length < 2) return `${found.labels[best]} ${scores[best].toFixed(2)}`;
  const odds = scores.map((score) => Math.exp(found.scale * (score - scores[best])));
  return `${found.labels[best]} ${Math.round(100 / odds.reduce((sum, one) => sum + one, 0))} %`;
}

// Duplicates: groups, one after the other.

export async function showDuplicates(threshold, cursor) {
  const found = await api.duplicates(threshold, cursor), place = byId("groups");
  if (!cursor) place.replaceChildren();
  for (const group of found.groups) {
    const list = el("ul", { className: "grid" });
    list.append(...group.rows.map((row) => tile(row, { tag: row.id === group.keep ? "keep" : "", note: row.id === group.keep ? "" : row.score.toFixed(3) })));
    const others = group.rows.filter((row) => row.id !== group.keep);
    const pick = el("button", { type: "button", textContent: `Select the other ${others.length === 1 ? "one" : others.length}` });
    pick.onclick = () => {
      for (const row of others) selection.add(row.id);
      refreshSelection();
    };
    const title = `${counted(group.rows.length, "image")}, at least ${group.lowest.toFixed(3)} similar`;
    place.append(el("section", { className: "group", "aria-label": `Group ${place.childElementCount + 1}: ${title}` }, el("header", {}, el("h2", { textContent: title }), pick), list));
  }
  makeReachable();
  const more = found.total ? "" : "; try a lower threshold";
  return { next: found.next, text: `${counted(found.total, "group")} with ${counted(found.images, "image")}${more}` };
}
