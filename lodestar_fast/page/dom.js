// Small helpers. Everything from outside becomes text by textContent, never markup.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; strings become text. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function ms(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1000) return `${Number((value / 1000).toFixed(value >= 10000 ? 1 : 2))} s`;
  return `${value >= 10 ? Math.round(value) : value.toFixed(1)} ms`;
}

export function count(value) {
  if (value === null || value === undefined) return "–";
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    if (value >= size) return `${(value / (unit === "k" ? 1e3 : size)).toFixed(1)}${unit}`;
  }
  return Math.round(value).toLocaleString("en");
}

export const bytes = (value) =>
  value >= 1 << 20 ? `${(value / (1 << 20)).toFixed(1)} MB` : `${Math.round(value / 1024)} kB`;

export const percent = (share) =>
  share === null || share === undefined ? "–" : `${(100 * share).toFixed(share && share < 0.095 ? 1 : 0)} %`;

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${Math.round(seconds / 86400)} d`;
}

/** An address without what all have in common. */
export const host = (url) => url.replace(/^http:\/\//, "");
