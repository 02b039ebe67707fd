// Requests to the server. A newer request of the same kind takes the place of one that is still under way.

const running = new Map();
const RETRIES = 4;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function request(kind, path, options = {}) {
  running.get(kind)?.abort();
  const controller = new AbortController();
  running.set(kind, controller);
  for (let attempt = 0; ; attempt++) {
    const answer = await fetch(path, { ...options, headers: { "x-mmcl": "1", ...options.headers }, signal: controller.signal });
    if (answer.ok) return answer;
    if (answer.status === 503 && attempt < RETRIES) {
      await new Promise((done) => setTimeout(done, 1000 * Number(answer.headers.get("retry-after") || 1)));
      continue;
    }
    const said = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, said.error || `the server answers ${answer.status}`);
  }
}

const post = (kind, path, body) =>
  request(kind, path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" } });

export const about = () => request("about", "/api/health").then((answer) => answer.json());
export const facets = () => request("facets", "/api/facets").then((answer) => answer.json());
export const item = (id) => request("item", `/api/item/${id}`).then((answer) => answer.json());
export const duplicates = (threshold, cursor) =>
  request("rows", `/api/duplicates?${new URLSearchParams({ threshold, cursor })}`).then((answer) => answer.json());
export const zeroShot = (body) => post("rows", "/api/zeroshot", body).then((answer) => answer.json());
export const exchange = (token) => post("session", "/api/session", { token });
export const exported = (ids, format) => post("export", "/api/export", { ids, format }).then((answer) => answer.blob());

export async function search(fields, pictures) {
  if (!pictures.length) return (await request("rows", `/api/search?${new URLSearchParams(fields)}`)).json();
  const form = new FormData();
  for (const [name, value] of fields) form.append(name, value);
  for (const picture of pictures) form.append("image", picture, "picture");
  return (await request("rows", "/api/search", { method: "POST", body: form })).json();
}
