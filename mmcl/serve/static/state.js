// What is looked for. All but dropped pictures is in the address, so that it can be kept, shared and gone back to.

const LISTS = ["q", "negative", "like"], VALUES = ["view", "where", "folder", "label", "year", "sort", "item", "labels", "template", "threshold"];
const DEFAULTS = { view: "search", template: "{}", threshold: "0.97" };

export function readState() {
  const given = new URLSearchParams(location.search), state = { pictures: [] };
  for (const name of LISTS) state[name] = given.getAll(name).filter((value) => value.trim());
  for (const name of VALUES) state[name] = given.get(name) ?? DEFAULTS[name] ?? "";
  if (!["search", "labels", "duplicates"].includes(state.view)) state.view = "search";
  return state;
}

export function address(state) {
  const parts = new URLSearchParams();
  for (const name of LISTS) for (const value of state[name]) parts.append(name, value);
  for (const name of VALUES) if (state[name] && state[name] !== (DEFAULTS[name] ?? "")) parts.append(name, state[name]);
  const text = parts.toString();
  return text ? `/?${text}` : "/";
}

export const isEmpty = (state) => !state.q.length && !state.like.length && !state.pictures.length;

const quoted = (text) => `"${text.replaceAll('"', '""')}"`;

export function filter(state) {
  const year = Number(state.year);
  const parts = [
    state.folder && `folder under ${quoted(state.folder)}`,
    state.label && `label = ${quoted(state.label)}`,
    state.year && `taken >= ${year}-01-01 and taken < ${year + 1}-01-01`,
    state.where && `(${state.where})`,
  ];
  return parts.filter(Boolean).join(" and ");
}

export function fields(state, offset, k) {
  const found = [];
  for (const name of LISTS) for (const value of state[name]) found.push([name, value]);
  const where = filter(state);
  if (where) found.push(["where", where]);
  if (state.sort) found.push(["sort", state.sort]);
  return [...found, ["k", k], ["offset", offset]];
}
