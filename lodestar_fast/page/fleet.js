// The table of engines: rows that live, sorted and filtered; readable with 3 and with 300.

import { $, count, host, make, ms, percent, setText } from "/page/dom.js";

const ORDER = { down: 6, ejected: 5, "half-open": 4, draining: 1, up: 0 };
const trouble = (row) => ORDER[row.health] + (row.slow ? 3 : 0);

// name, value to sort by, what is shown, class of the cell, length of a bar (0..1)
const COLUMNS = [
  { name: "engine", value: (r) => r.url, text: (r) => host(r.url) },
  { name: "state", value: trouble, text: (r) => r.health, first: -1 },
  { name: "in flight", value: (r) => r.inflight, text: (r) => count(r.inflight), kind: "num" },
  { name: "queue", value: (r) => r.queue_tokens, text: (r) => `${count(r.queue_tokens)} tok`, kind: "num wide",
    help: "uncached prompt tokens dispatched and not yet computed" },
  { name: "waiting", value: (r) => r.waiting ?? -1, text: (r) => count(r.waiting), kind: "num wide", help: "as the engine reports" },
  { name: "KV use", value: (r) => r.kv_usage ?? -1, text: (r) => percent(r.kv_usage), kind: "num wide", bar: (r) => r.kv_usage },
  { name: "TTFT", value: (r) => r.ttft_ms ?? -1, text: (r) => ms(r.ttft_ms), kind: "num" },
  { name: "p99", value: (r) => r.ttft_p99_ms ?? -1, text: (r) => ms(r.ttft_p99_ms), kind: "num wide" },
  { name: "share", value: (r) => r.share, text: (r) => percent(r.share), kind: "num wide", bar: (r, most) => r.share / most },
  { name: "speed", value: (r) => r.times_median ?? -1, kind: "num speed",
    text: (r) => (r.times_median === null ? "?" : r.slow ? `slow ${r.times_median.toFixed(1)}×` : `${r.times_median.toFixed(1)}×`),
    bar: (r) => (r.times_median ?? 0) / 4, help: "seconds for a prompt token, beside the fleet's median: above 1 is slower" },
  { name: "per token", value: (r) => r.us_per_token, text: (r) => `${Math.round(r.us_per_token)} µs`, kind: "num wide" },
  { name: "failed", value: (r) => r.failed, text: (r) => count(r.failed), kind: "num wide" },
];

const rows = new Map(); // id -> { tr, cells }
let sort = { column: 1, direction: -1 };
let latest = [];

export function start() {
  const head = $("fleet").tHead.rows[0];
  COLUMNS.forEach((column, index) => {
    const button = make("button", { type: "button", title: column.help }, column.name);
    button.addEventListener("click", () => {
      const turn = sort.column === index ? -sort.direction : (column.first ?? (index ? -1 : 1));
      sort = { column: index, direction: turn };
      arrange();
    });
    head.append(make("th", { scope: "col", class: column.kind }, button));
  });
  for (const id of ["search", "which"]) $(id).addEventListener("input", arrange);
}

export function show(instances) {
  latest = instances;
  const most = Math.max(...instances.map((row) => row.share), 1e-9);
  for (const row of instances) {
    if (!rows.has(row.id)) rows.set(row.id, newRow(row));
    const { tr, cells } = rows.get(row.id);
    const out = row.routable ? "" : " out";
    const name = (row.slow ? "slow" : "") + out;
    if (tr.className !== name) tr.className = name;
    COLUMNS.forEach((column, index) => {
      const cell = cells[index];
      setText(cell.text, column.text(row));
      if (cell.bar) cell.bar.style.width = `${Math.min(100, 100 * (column.bar(row, most) || 0)).toFixed(0)}%`;
    });
    cells[1].text.className = `health ${row.health}`;
  }
  arrange();
}

function newRow(row) {
  const tr = make("tr", { "data-id": row.id });
  const cells = COLUMNS.map((column, index) => {
    const text = make("span");
    const cell = make(index ? "td" : "th", { class: column.kind, scope: index ? null : "row" }, text);
    let bar = null;
    if (column.bar) {
      bar = make("i");
      cell.append(make("span", { class: "bar", "aria-hidden": "true" }, bar));
    }
    tr.append(cell);
    return { text, bar };
  });
  tr.cells[0].title = `${row.url}  id ${row.id}${row.models.length ? `  ${row.models.join(", ")}` : ""}`;
  return { tr, cells };
}

function wanted(row) {
  const text = $("search").value.trim().toLowerCase();
  const which = $("which").value;
  if (which === "slow" && !row.slow) return false;
  if (which === "trouble" && !(trouble(row) > 0)) return false;
  if (which === "busy" && !row.inflight) return false;
  return !text || [row.url, row.id, ...row.models].some((word) => word.toLowerCase().includes(text));
}

/** Put the rows that are wanted into the table, in order. */
function arrange() {
  const { value } = COLUMNS[sort.column];
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  const chosen = latest
    .filter(wanted)
    .sort((a, b) => sort.direction * compare(value(a), value(b)) || compare(a.url, b.url));
  const body = $("fleet").tBodies[0];
  chosen.forEach((row, place) => {
    const { tr } = rows.get(row.id);
    if (body.rows[place] !== tr) body.insertBefore(tr, body.rows[place] ?? null);
  });
  while (body.rows.length > chosen.length) body.lastElementChild.remove();
  const there = new Set(latest.map((row) => row.id));
  for (const id of rows.keys()) if (!there.has(id)) rows.delete(id);
  [...$("fleet").tHead.rows[0].cells].forEach((th, index) => {
    if (index !== sort.column) th.removeAttribute("aria-sort");
    else th.setAttribute("aria-sort", sort.direction > 0 ? "ascending" : "descending");
  });
  const all = latest.length;
  setText($("count"), chosen.length === all ? `${all}` : `${chosen.length} of ${all}`);
}
