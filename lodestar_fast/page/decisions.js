// The last decisions, and one of them in full: its candidates and what spoke for each.

import { $, host, make, ms, setText } from "/page/dom.js";
import { ask } from "/page/ask.js";
import { colourOf } from "/page/reasons.js";

const LIMIT = 12;
let busy = false;
let quietUntil = 0;
let open = ""; // request id of the decision in full

export function start() {
  const table = $("decisions");
  for (const event of ["pointerenter", "focusin"]) table.addEventListener(event, () => hold(true));
  for (const event of ["pointerleave", "focusout"]) table.addEventListener(event, () => hold(false));
  $("find").addEventListener("submit", async (event) => {
    event.preventDefault();
    const id = $("wanted").value.trim();
    if (id) await explain(id);
  });
}

function hold(yes) {
  busy = yes;
  setText($("paused"), yes ? "held while you are on it" : "");
}

/** Fetch and show them, unless somebody is on the table: rows must not run away from the pointer. */
export async function refresh() {
  if (busy || performance.now() < quietUntil) return;
  const body = $("decisions").tBodies[0];
  try {
    const { decisions } = await ask(`/admin/decisions?limit=${LIMIT}`);
    if (busy) return;
    body.replaceChildren(...decisions.map(row));
    if (!decisions.length) body.append(message("none yet"));
  } catch (error) {
    if (error.status === 401) throw error;
    if (error.status === 404) quietUntil = performance.now() + 30000; // none are kept (--decisions 0)
    body.replaceChildren(message(error.status ? error.message : "the router does not answer"));
  }
}

const message = (text) => make("tr", {}, make("td", { colspan: 6, class: "muted" }, text));

function real(decision) {
  const outcome = decision.outcome;
  if (!outcome) return "under way";
  const time = outcome.ttft_ms ?? null;
  return time === null ? outcome.event : ms(time);
}

function row(decision) {
  const id = make("button", { type: "button", class: "id", "aria-expanded": decision.request_id === open }, decision.request_id.slice(0, 13));
  id.title = decision.request_id;
  id.addEventListener("click", () => detail(decision));
  return make(
    "tr",
    {},
    make("td", {}, id),
    make("td", {}, host(decision.url)),
    make("td", { class: `tag ${colourOf[decision.reason] ?? "grey"}` }, decision.reason),
    make("td", { class: "num" }, ms(decision.predicted_ttft_ms)),
    make("td", { class: "num real" }, real(decision)),
    make("td", { class: "why" }, decision.why),
  );
}

async function explain(id) {
  try {
    detail(await ask(`/admin/decisions/${encodeURIComponent(id)}`));
  } catch (error) {
    open = "";
    $("detail").hidden = false;
    $("detail").replaceChildren(make("p", { class: "bad" }, error.message));
  }
}

/** One decision: its candidates as a table, the chosen one first. */
function detail(decision) {
  open = decision.request_id;
  const close = make("button", { type: "button" }, "close");
  close.addEventListener("click", () => {
    open = "";
    $("detail").hidden = true;
  });
  const facts = [
    decision.path, decision.model, `${decision.prompt_tokens} prompt tokens`, `mode ${decision.mode ?? "–"}`,
    decision.model_version ? `model version ${decision.model_version}` : "no model",
    decision.explored ? `explored (${decision.propensity})` : "",
    decision.interval_ms ? `expected between ${decision.interval_ms.map(ms).join(" and ")}` : "",
    decision.tries > 1 ? `${decision.tries} tries` : "",
  ];
  const reasons = drivers(decision.candidates);
  const head = ["engine", "cached", "predicted", "score", ...reasons.map((name) => name.replaceAll("_", " "))];
  const table = make(
    "table",
    {},
    make("thead", {}, make("tr", {}, ...head.map((name, n) => make("th", { scope: "col", class: n ? "num" : null }, name)))),
    make("tbody", {}, ...inOrder(decision.candidates).map((candidate) => line(candidate, reasons))),
  );
  const left = decision.candidates_total - decision.candidates.length;
  $("detail").replaceChildren(
    make("h3", {}, `Request ${decision.request_id} `, close),
    make("p", { class: "said" }, decision.why),
    make("p", { class: "muted said" }, facts.filter(Boolean).join(" · ")),
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Candidates" }, table),
    make("p", { class: "muted small" },
      `${left > 0 ? `${left} more candidates are not shown. ` : ""}The last columns say what made the difference, in milliseconds of the prediction.`),
  );
  $("detail").hidden = false;
}

/** The chosen one first, then as they were scored. */
const inOrder = (candidates) =>
  [...candidates].sort((a, b) => b.chosen - a.chosen || (a.score_ms ?? Infinity) - (b.score_ms ?? Infinity));

/** The features that matter most here: those that differ most between candidates. */
function drivers(candidates) {
  const spread = {};
  for (const candidate of candidates) {
    for (const [name, value] of Object.entries(candidate.contributions ?? {})) {
      const [low, high] = spread[name] ?? [value, value];
      spread[name] = [Math.min(low, value), Math.max(high, value)];
    }
  }
  return Object.entries(spread)
    .map(([name, [low, high]]) => [name, high - low])
    .filter(([, size]) => size > 0.05)
    .sort((a, b) => b[1] - a[1])
    .slice(0, 6)
    .map(([name]) => name);
}

function line(candidate, reasons) {
  const mark = candidate.chosen ? " (chosen)" : candidate.fallback_choice ? " (the heuristic's)" : "";
  return make(
    "tr",
    { class: candidate.chosen ? "chosen" : null },
    make("th", { scope: "row" }, host(candidate.url) + mark),
    make("td", { class: "num" }, `${candidate.hit_tokens} tok`),
    make("td", { class: "num" }, ms(candidate.predicted_ttft_ms)),
    make("td", { class: "num" }, ms(candidate.score_ms)),
    ...reasons.map((name) => {
      const value = candidate.contributions?.[name];
      return make("td", { class: "num" }, value === undefined ? "" : value.toFixed(1));
    }),
  );
}
