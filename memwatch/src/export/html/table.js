// A table that can be sorted by each column and searched.

// columns: {title, value: (item) => number or text, show: (item) => text or element}
function sortedTable(columns, items, options) {
  const state = { column: options.sort || 0, up: false, shown: options.most || 50, term: "" };
  const body = el("tbody");
  const heads = columns.map((column, index) => el("th", { scope: "col" }, el("button", {
    type: "button",
    onclick: () => {
      state.up = state.column === index ? !state.up : typeof column.value(items[0] || {}) === "string";
      state.column = index;
      draw();
    },
  }, column.title)));
  const more = el("button", { type: "button", onclick: () => { state.shown *= 4; draw(); } }, "Show more");
  const note = el("p", { class: "note" });

  function draw() {
    heads.forEach((head, index) => {
      head.setAttribute("aria-sort", index !== state.column ? "none" : state.up ? "ascending" : "descending");
      head.firstChild.textContent = columns[index].title + (index !== state.column ? "" : state.up ? " ▲" : " ▼");
    });
    const value = columns[state.column].value;
    const found = items.filter((item) => !state.term || item.name.toLowerCase().includes(state.term));
    found.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      const order = typeof x === "string" ? x.localeCompare(y) : (x ?? -Infinity) - (y ?? -Infinity);
      return state.up ? order : -order;
    });
    body.replaceChildren(...found.slice(0, state.shown).map((item) =>
      el("tr", {}, ...columns.map((column) => el("td", {}, column.show(item))))));
    more.hidden = found.length <= state.shown;
    note.textContent = Math.min(state.shown, found.length) + " of " + items.length;
  }
  draw();
  return {
    element: el("div", {}, el("div", { class: "scroll" }, el("table", {}, el("thead", {}, el("tr", {}, ...heads)), body)),
      el("div", { class: "bar" }, more, note)),
    find: (term) => { state.term = term; draw(); },
    replace: (others) => { items = others; draw(); },
  };
}

function change(format, now, was) {
  const delta = now - was;
  if (!delta) return "";
  return el("span", { class: delta > 0 ? "more" : "less" }, signed(format, delta));
}

function placesTable(report, owners) {
  const columns = [
    { title: "Place", value: (item) => item.name || "", show: (item) => el("span", { class: "mono" }, item.name) },
    { title: "In use", value: (item) => item.inuse_bytes, show: (item) => bytes(item.inuse_bytes) },
    { title: "Change", value: (item) => item.inuse_bytes - item.was_inuse_bytes,
      show: (item) => change(bytes, item.inuse_bytes, item.was_inuse_bytes) },
    { title: "Blocks", value: (item) => item.inuse_objects, show: (item) => count(item.inuse_objects) },
    { title: "Change", value: (item) => item.inuse_objects - item.was_inuse_objects,
      show: (item) => change(count, item.inuse_objects, item.was_inuse_objects) },
    { title: "Allocated", value: (item) => item.alloc_bytes, show: (item) => bytes(item.alloc_bytes) },
    { title: "Allocations", value: (item) => item.alloc_objects, show: (item) => count(item.alloc_objects) },
    { title: "Stacks", value: (item) => item.stacks, show: (item) => count(item.stacks) },
  ];
  const table = sortedTable(columns, group(report.rows, owners, "line"), { sort: 1, most: 25 });
  const bar = el("div", { class: "bar" },
    choice(Object.keys(GROUPINGS).map((key) => [key, key]), "line", (by) => table.replace(group(report.rows, owners, by))),
    search("Search places", table.find),
    el("span", { class: "note" }, "Change: since " + seconds(report.baseline_seconds) + " after the start"));
  return el("div", {}, bar, table.element);
}
