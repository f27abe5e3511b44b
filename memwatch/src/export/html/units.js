"use strict";
// Numbers as people read them, and elements without any HTML from data.

function bytes(value) {
  if (value === null || value === undefined) return "not known";
  const sign = value < 0 ? "-" : "";
  let size = Math.abs(value);
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (size < 1024 || unit === "TiB") {
      const digits = unit === "B" || size >= 100 ? 0 : size >= 10 ? 1 : 2;
      return sign + size.toFixed(digits) + " " + unit;
    }
    size /= 1024;
  }
}

function count(value) {
  return value === null || value === undefined ? "not known" : Math.round(value).toLocaleString("en-US");
}

function signed(format, value) {
  return value === null || value === undefined ? "" : (value > 0 ? "+" : "") + format(value);
}

function seconds(value) {
  if (value < 120) return Math.round(value * 10) / 10 + " s";
  if (value < 7200) return (value / 60).toFixed(1) + " min";
  return (value / 3600).toFixed(1) + " h";
}

function percent(part, whole) {
  return whole > 0 ? (100 * part / whole).toFixed(1) + "%" : "";
}

// el("td", {class: "x", onclick: f}, "text", otherElement)
function el(name, attributes, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "rect", "title"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// A row of buttons of which one is pressed.
function choice(names, chosen, change) {
  const group = el("span", { class: "group", role: "group" });
  for (const [key, title] of names) {
    group.append(el("button", {
      type: "button", "aria-pressed": key === chosen, "data-key": key,
      onclick: () => {
        for (const button of group.children) button.setAttribute("aria-pressed", button.dataset.key === key);
        change(key);
      },
    }, title));
  }
  return group;
}

function search(placeholder, change) {
  let timer;
  return el("input", { type: "search", placeholder, "aria-label": placeholder, oninput: (event) => {
    clearTimeout(timer);
    timer = setTimeout(() => change(event.target.value.trim().toLowerCase()), 120);
  } });
}
