// Questions to the router, with the admin key if there is one. It stays in this tab.

const KEY = "lodestar-admin-key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** The answer's JSON. Throws an Error with `status` and the router's own words. */
export async function ask(path, options = {}) {
  const headers = key.get() ? { authorization: `Bearer ${key.get()}` } : {};
  if (options.body) headers["content-type"] = "application/json";
  const answer = await fetch(path, { ...options, headers, cache: "no-store", signal: AbortSignal.timeout(10000) });
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.error?.message ?? answer.statusText), { status: answer.status });
  return content;
}
