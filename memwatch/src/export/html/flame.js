// A flame graph, outermost frame on top; a click zooms. In a difference, red grew and blue shrank.

const ROW_HEIGHT = 19;

function hue(name) {
  let hash = 0;
  for (let index = 0; index < name.length; index++) hash = (hash * 31 + name.charCodeAt(index)) | 0;
  return 18 + Math.abs(hash) % 42;
}

function flameGraph(report, owners) {
  const root = buildTree(report.rows, owners, false);
  const state = { view: "inuse", unit: "bytes", term: "", zoom: root };
  const graph = el("div", { class: "flame" });
  const told = el("p", { class: "note" });
  const metric = () => (state.view === "alloc" ? "alloc_" : "inuse_") + state.unit;
  // In a difference a frame is as wide as the larger of before and now, so that what is gone can be seen.
  const weight = (node) => state.view !== "diff" ? node[metric()] : Math.max(sumOfLargest(node, metric()), 0);

  function colour(node, whole) {
    if (state.view !== "diff") return `hsl(${hue(node.name)} var(--sat) var(--light))`;
    const delta = node[metric()] - node["was_" + metric()];
    if (!delta) return "var(--shade)";
    const strength = Math.min(1, Math.sqrt(Math.abs(delta) / Math.max(whole, 1)));
    return `color-mix(in oklab, ${delta > 0 ? "#e05648" : "#4a86d8"} ${Math.round(15 + 75 * strength)}%, var(--shade))`;
  }

  function tell(node) {
    const [now, was, format] = [node[metric()], node["was_" + metric()], METRICS[metric()].format];
    const of = percent(now, root[metric()]);
    const delta = now - was ? `, ${signed(format, now - was)} since ${seconds(report.baseline_seconds)}` : "";
    return `${node.text || node.name}: ${format(now)}${of ? " (" + of + ")" : ""}${delta}`;
  }

  function draw() {
    graph.replaceChildren();
    let depth = 0, found = 0;
    const whole = weight(state.zoom), changed = Math.abs(root[metric()] - root["was_" + metric()]) || root[metric()];
    const place = (node, left, width, level, outer) => {
      depth = Math.max(depth, level + 1);
      const hit = state.term && node !== root && (node.text || node.name).toLowerCase().includes(state.term);
      if (hit && !foundAbove(node)) found += node[metric()];
      graph.append(el("button", {
        type: "button", class: "frame" + (hit ? " found" : "") + (outer ? " outer" : ""), title: tell(node),
        style: `left:${left}%;width:${width}%;top:${level * ROW_HEIGHT}px;background:${colour(node, changed)}`,
        onclick: () => { state.zoom = node; draw(); },
        onmouseenter: () => { told.textContent = tell(node); },
      }, width > 1.5 ? node.name : ""));
    };
    const foundAbove = (node) => {
      for (let up = node.parent; up; up = up.parent) {
        if (up !== root && (up.text || up.name).toLowerCase().includes(state.term)) return true;
      }
      return false;
    };
    const outers = [];
    for (let up = state.zoom.parent; up; up = up.parent) outers.unshift(up);
    outers.forEach((node, level) => place(node, 0, 100, level, true));
    const below = (node, left, width, level) => {
      place(node, left, width, level, false);
      const children = [...node.children.values()].sort((a, b) => a.name.localeCompare(b.name));
      let at = left;
      for (const child of children) {
        const part = whole > 0 ? 100 * weight(child) / whole : 0;
        if (part >= 0.08) below(child, at, part, level + 1);
        at += part;
      }
    };
    if (whole > 0) below(state.zoom, 0, 100, outers.length);
    graph.style.height = Math.max(1, depth) * ROW_HEIGHT + "px";
    told.textContent = state.term ? `found: ${METRICS[metric()].format(found)} (${percent(found, root[metric()])})`
      : whole > 0 ? tell(state.zoom) : "nothing to draw";
  }

  const bar = el("div", { class: "bar" },
    choice([["inuse", "In use"], ["alloc", "Allocated"], ["diff", "Difference"]], "inuse", (view) => { state.view = view; draw(); }),
    choice([["bytes", "Bytes"], ["objects", "Blocks"]], "bytes", (unit) => { state.unit = unit; draw(); }),
    search("Search functions and files", (term) => { state.term = term; draw(); }),
    el("button", { type: "button", onclick: () => { state.zoom = root; draw(); } }, "Show all"));
  draw();
  return el("div", {}, bar, graph, told);
}

// Before or now, whichever is more, stack by stack; kept with the node.
function sumOfLargest(node, metric) {
  const key = "largest_" + metric;
  if (node[key] === undefined) {
    let inner = 0, now = 0, was = 0;
    for (const child of node.children.values()) {
      inner += sumOfLargest(child, metric);
      now += child[metric];
      was += child["was_" + metric];
    }
    node[key] = inner + Math.max(node[metric] - now, node["was_" + metric] - was, 0);
  }
  return node[key];
}
