// The page: asks the router for its state once a second while somebody looks, and shows it.

import { $, bytes, count, duration, make, ms, percent, setText } from "/page/dom.js";
import { ask, key } from "/page/ask.js";
import { Scatter, SPAN, TimeChart } from "/page/charts.js";
import { REASONS, byModel } from "/page/reasons.js";
import * as control from "/page/control.js";
import * as decisions from "/page/decisions.js";
import * as fleet from "/page/fleet.js";

const PERIOD = 1000;
const RECENT = 12; // points that "last minute" means
let points = [];
let last = 0;
let timer = 0;
let asking = false;

const per = (key, unit) => (p) => (p[key] === null ? null : p[key] / unit);
const charts = {
  ttft: new TimeChart($("c-ttft"), ms, [
    { name: "99 % within", colour: "pale", value: per("ttft_p99_ms", 1) },
    { name: "heuristic, as the model estimates", colour: "orange", value: per("fallback_ms", 1) },
    { name: "the model's choice, predicted", colour: "sky", value: per("learned_ms", 1) },
    { name: "measured, mean", colour: "blue", value: per("ttft_ms", 1) },
  ], { log: true }),
  who: new TimeChart($("c-who"), (v) => `${v < 10 && v % 1 ? v.toFixed(1) : Math.round(v)}/s`,
    REASONS.map(([name, colour]) => ({ name, colour, value: (p) => (p.reasons[name] ?? 0) / p.seconds })), { stacked: true }),
  pairs: new Scatter($("c-pairs"), ms, []),
  error: new TimeChart($("c-error"), percent, [
    { name: "mean distance, of the measured time", colour: "violet",
      value: (p) => (p.error_ms === null || !p.ttft_ms ? null : p.error_ms / p.ttft_ms) },
  ]),
  hits: new TimeChart($("c-hits"), (v) => `${count(v)}/s`, [
    { name: "believed cached, tokens", colour: "orange", value: (p) => p.believed_tokens / p.seconds },
    { name: "delivered, as engines report", colour: "blue", value: (p) => p.delivered_tokens / p.seconds },
  ]),
};

function take(series) {
  // Numbers that go down: the router is another process now.
  if (series.last < last) points = [];
  points = [...points, ...series.points].slice(-Math.ceil(SPAN / series.step));
  last = series.last;
}

const total = (counts) => Object.values(counts).reduce((sum, n) => sum + n, 0);

function tiles(state) {
  const recent = points.slice(-RECENT);
  const seconds = recent.reduce((sum, p) => sum + p.seconds, 0);
  const decided = recent.reduce((sum, p) => sum + total(p.reasons), 0);
  const mine = recent.reduce((sum, p) => sum + Object.entries(p.reasons).reduce((s, [r, n]) => s + (byModel(r) ? n : 0), 0), 0);
  const failed = recent.reduce((sum, p) => sum + total(p.outcomes) - (p.outcomes.completed ?? 0), 0);
  const up = state.instances.filter((row) => row.health === "up").length;
  const slow = state.instances.filter((row) => row.slow).length;
  const newest = recent.at(-1);
  const error = state.model.watchdog?.median_error;
  const index = state.index;
  const hit = index.believed_tokens ? index.delivered_tokens / index.believed_tokens : null;
  tile("requests", decided ? `${(decided / seconds).toFixed(1)}/s` : "0/s", `${state.inflight} in flight, ${state.queued} queued`);
  tile("TTFT", newest ? ms(newest.ttft_ms) : "–", newest ? `p99 ${ms(newest.ttft_p99_ms)}, last 5 s` : "");
  tile("engines up", `${up} of ${state.instances.length}`, "", up < state.instances.length);
  tile("slow engines", String(slow), "", slow > 0, slow ? "slow" : "");
  tile("model has its say", decided ? percent(mine / decided) : "–", "last minute");
  tile("typical error", typeof error === "number" ? `${Math.exp(error).toFixed(2)}×` : "–", "median factor");
  tile("not completed", count(failed), "last minute", failed > 0);
  tile("prefix index", bytes(index.bytes), `of ${bytes(index.budget_bytes)}, ${count(index.evictions)} evicted`);
  tile("cache belief", percent(hit), `${count(index.delivered_tokens)} of ${count(index.believed_tokens)} tokens came true`);
}

function tile(name, value, note, alarm = false, filter = "") {
  const id = `t-${name.replaceAll(" ", "-")}`;
  if (!$(id)) {
    $("tiles").append(make("div", { id }, make("dt", {}, name), make("dd", {}, make("span"), make("small"))));
  }
  const [big, small] = $(id).querySelector("dd").children;
  $(id).className = alarm ? "alarm" : "";
  setText(big, value);
  if (!filter) setText(small, note);
  else if (!small.querySelector("button")) {
    const button = make("button", { type: "button" }, "show them");
    button.addEventListener("click", () => {
      $("which").value = filter;
      $("which").dispatchEvent(new Event("input"));
      $("fleet").scrollIntoView({ block: "nearest" });
    });
    small.replaceChildren(button);
  }
}

function show(state) {
  setText($("about"), `${state.version} · policy ${state.policy} · up ${duration(state.uptime)}`);
  tiles(state);
  control.show(state.model);
  fleet.show(state.instances);
  const names = Object.keys(state.reasons); // in the order of their numbers
  charts.pairs.groups = [
    { name: "decided by the model", colour: "blue", has: (n) => byModel(names[n]) },
    { name: "by the heuristic", colour: "orange", has: (n) => !byModel(names[n]) },
  ];
  charts.pairs.show(state.pairs);
  for (const name of ["ttft", "who", "error", "hits"]) charts[name].show(points, state.now);
}

function link(good, text) {
  $("link").className = good ? "good" : "bad";
  setText($("link"), text);
}

async function poll() {
  clearTimeout(timer);
  if (document.hidden || asking) return;
  asking = true;
  try {
    const state = await ask(`/admin/state?since=${last}`);
    take(state.series);
    $("login").hidden = true;
    $("main").hidden = false;
    $("forget").hidden = !key.get();
    show(state);
    link(!state.draining, state.draining ? "draining" : "live");
    await decisions.refresh();
  } catch (error) {
    if (error.status === 401) {
      link(false, key.get() ? "the key is not accepted" : "a key is needed");
      $("login").hidden = false;
      $("main").hidden = true;
    } else {
      link(false, error.status ? error.message : "the router does not answer");
      if (!error.status && !(error instanceof TypeError) && error.name !== "TimeoutError") console.error(error);
    }
  } finally {
    asking = false;
    clearTimeout(timer);
    timer = setTimeout(poll, PERIOD);
  }
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set($("key").value.trim());
  $("key").value = "";
  poll();
});
$("forget").addEventListener("click", () => {
  key.forget();
  poll();
});
document.addEventListener("visibilitychange", poll);
addEventListener("resize", () => Object.values(charts).forEach((chart) => chart.redraw()));
fleet.start();
control.start(poll);
decisions.start();
poll();
