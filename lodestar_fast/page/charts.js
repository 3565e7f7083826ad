// Charts as SVG: lines and stacks over the last quarter of an hour, and a scatter.

import { make, setText } from "/page/dom.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 200;
const LEFT = 50;
const BOTTOM = 18;
const TOP = 8;
const RIGHT = 24; // half a label below the last tick of a scatter
export const SPAN = 900; // seconds kept
const LEAST_SPAN = 120; // seconds shown at least; more as there is more to show

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** 1, 2, 5, 10 ... so that about `wanted` of them reach `most`. */
function steps(most, wanted) {
  const raw = Math.max(most, 1e-9) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((n) => n * power >= raw) * power;
  const ticks = [];
  for (let n = 0; n <= Math.ceil(most / step - 1e-9); n += 1) ticks.push(n * step);
  return ticks;
}

/** The decades, with 2 and 5 between where there are few. */
function decades(low, high) {
  const ticks = [];
  const fine = high / low < 200;
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const n of fine ? [1, 2, 5] : [1]) {
      const tick = n * 10 ** power;
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
    }
  }
  return ticks;
}

function bounds(values) {
  const known = values.filter((v) => v > 0);
  if (!known.length) return [10, 1000];
  return [Math.min(...known) / 1.3, Math.max(...known) * 1.3];
}

class Chart {
  constructor(element, unit) {
    this.element = element;
    this.unit = unit;
    this.plot = svg("svg", { role: "img" });
    this.legend = make("ul", { class: "legend" });
    element.append(this.plot, this.legend);
    this.hover = null;
    this.plot.addEventListener("pointermove", (event) => {
      this.hover = event.clientX - this.plot.getBoundingClientRect().left;
      this.redraw();
    });
    this.plot.addEventListener("pointerleave", () => {
      this.hover = null;
      this.redraw();
    });
  }

  redraw() {}

  open() {
    this.width = Math.max(this.plot.clientWidth, 200);
    this.plot.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.plot.replaceChildren();
  }

  /** Horizontal lines with their values. */
  axis(ticks, y) {
    for (const tick of ticks) {
      this.plot.append(svg("line", { class: "grid", x1: LEFT, x2: this.width, y1: y(tick), y2: y(tick) }));
      this.plot.append(svg("text", { x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end" }, this.unit(tick)));
    }
  }

  say(entries) {
    while (this.legend.children.length > entries.length) this.legend.lastChild.remove();
    while (this.legend.children.length < entries.length) {
      this.legend.append(make("li", {}, make("i", { "aria-hidden": "true" }), make("span")));
    }
    entries.forEach(([name, text], n) => {
      const [mark, words] = this.legend.children[n].children;
      mark.className = name;
      mark.hidden = !name;
      setText(words, text);
    });
    this.plot.setAttribute("aria-label", entries.map(([, text]) => text).join(", "));
  }
}

/** Over time. series: [{ name, colour, value(point) -> number or null }]; stacked or lines, log or not. */
export class TimeChart extends Chart {
  constructor(element, unit, series, { stacked = false, log = false } = {}) {
    super(element, unit);
    Object.assign(this, { series, stacked, log, points: [], now: 0 });
  }

  show(points, now) {
    this.points = points.filter((point) => now - point.at <= SPAN);
    this.now = now;
    this.redraw();
  }

  redraw() {
    this.open();
    const { points, width } = this;
    const age = points.length ? this.now - points[0].at : 0;
    const span = Math.min(SPAN, Math.max(LEAST_SPAN, 60 * Math.ceil(age / 60)));
    const x = (at) => LEFT + (1 - (this.now - at) / span) * (width - LEFT - 4);
    const columns = this.series.map((s) => points.map((p) => s.value(p)));
    const used = this.series.map((s, n) => columns[n].some((v) => v !== null && (!this.stacked || v > 0)));
    const y = this.scale(columns);
    for (const minutes of steps(span / 60, width > 460 ? 5 : 3).filter((m) => m <= span / 60)) {
      const at = x(this.now - 60 * minutes);
      const anchor = minutes ? "middle" : "end";
      this.plot.append(svg("text", { x: at, y: HEIGHT - 3, "text-anchor": anchor }, minutes ? `−${minutes} min` : "now"));
    }
    if (this.stacked) this.areas(columns, x, y);
    else columns.forEach((values, n) => used[n] && this.line(values, x, y, this.series[n].colour));
    this.readout(columns, used, x);
  }

  scale(columns) {
    const room = HEIGHT - TOP - BOTTOM;
    if (this.log) {
      const [low, high] = bounds(columns.flat());
      this.axis(decades(low, high), (v) => TOP + room * (1 - Math.log(v / low) / Math.log(high / low)));
      return (v) => TOP + room * (1 - Math.log(Math.max(v, low) / low) / Math.log(high / low));
    }
    const sums = this.stacked ? this.points.map((_, i) => columns.reduce((sum, c) => sum + c[i], 0)) : columns.flat();
    const ticks = steps(Math.max(...sums.map((v) => v ?? 0), 0) || 1, 4);
    const y = (v) => TOP + room * (1 - v / ticks.at(-1));
    this.axis(ticks, y);
    return y;
  }

  line(values, x, y, colour) {
    let path = "";
    let pen = "M";
    values.forEach((value, i) => {
      if (value === null) pen = "M";
      else {
        path += `${pen}${x(this.points[i].at).toFixed(1)} ${y(value).toFixed(1)}`;
        if (pen === "M") path += "h.1"; // a lone point is a dot
        pen = "L";
      }
    });
    this.plot.append(svg("path", { class: `line ${colour}`, d: path }));
  }

  areas(columns, x, y) {
    const { points } = this;
    if (points.length < 2) return;
    let floor = points.map(() => 0);
    columns.forEach((values, n) => {
      const roof = values.map((v, i) => floor[i] + v);
      const up = roof.map((v, i) => `${x(points[i].at).toFixed(1)} ${y(v).toFixed(1)}`);
      const down = floor.map((v, i) => `${x(points[i].at).toFixed(1)} ${y(v).toFixed(1)}`).reverse();
      if (values.some((v) => v > 0)) {
        this.plot.append(svg("path", { class: `area ${this.series[n].colour}`, d: `M${up.join("L")}L${down.join("L")}Z` }));
      }
      floor = roof;
    });
  }

  /** The legend with the values under the pointer, or the newest. */
  readout(columns, used, x) {
    const { points } = this;
    let i = points.length - 1;
    if (this.hover !== null && points.length) {
      const distance = points.map((p) => Math.abs(x(p.at) - this.hover));
      i = distance.indexOf(Math.min(...distance));
      const at = x(points[i].at);
      this.plot.append(svg("line", { class: "cursor", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    const entries = this.series
      .map((s, n) => {
        const value = i < 0 ? null : columns[n][i];
        return used[n] ? [s.colour, `${s.name} ${value === null ? "–" : this.unit(value)}`] : null;
      })
      .filter(Boolean);
    if (this.hover !== null && i >= 0) entries.push(["", `${Math.round(this.now - points[i].at)} s ago`]);
    this.say(entries.length ? entries : [["", "nothing yet"]]);
  }
}

/** Predicted against real, both logarithmic. groups: [{ name, colour, has(reason number) }]. */
export class Scatter extends Chart {
  constructor(element, unit, groups) {
    super(element, unit);
    Object.assign(this, { groups, pairs: [] });
  }

  show(pairs) {
    this.pairs = pairs.filter(([predicted, real]) => predicted > 0 && real > 0);
    this.redraw();
  }

  redraw() {
    this.open();
    const { pairs, width } = this;
    const [low, high] = bounds(pairs.flatMap(([predicted, real]) => [predicted, real]));
    const part = (v) => Math.log(v / low) / Math.log(high / low);
    const x = (v) => LEFT + part(v) * (width - LEFT - RIGHT);
    const y = (v) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - part(v));
    this.axis(decades(low, high), y);
    const across = decades(low, high);
    across.forEach((tick, n) => {
      if (width > 360 || n % 2 === 0) {
        this.plot.append(svg("text", { x: x(tick), y: HEIGHT - 3, "text-anchor": "middle" }, this.unit(tick)));
      }
    });
    this.plot.append(svg("path", { class: "ideal", d: `M${x(low)} ${y(low)}L${x(high)} ${y(high)}` }));
    for (const f of [2, 0.5]) {
      const [from, to] = f > 1 ? [low, high / f] : [low / f, high];
      this.plot.append(svg("path", { class: "twice", d: `M${x(from)} ${y(from * f)}L${x(to)} ${y(to * f)}` }));
    }
    const entries = [];
    for (const group of this.groups) {
      const mine = pairs.filter(([, , reason]) => group.has(reason));
      if (!mine.length) continue;
      const path = mine.map(([p, r]) => `M${x(p).toFixed(1)} ${y(r).toFixed(1)}h.1`).join("");
      this.plot.append(svg("path", { class: `dots ${group.colour}`, d: path }));
      entries.push([group.colour, `${group.name} ${mine.length}`]);
    }
    if (pairs.length) {
      const near = pairs.filter(([p, r]) => r < 2 * p && p < 2 * r).length;
      entries.push(["", `${Math.round((100 * near) / pairs.length)} % within a factor of two (dashed)`]);
      entries.push(["", "across: predicted, up: real"]);
    }
    this.say(entries.length ? entries : [["", "no prediction has met its first token yet"]]);
  }
}
