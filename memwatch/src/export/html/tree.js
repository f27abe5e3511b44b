// Callers and callees: a table whose rows open.

function callTree(report, owners) {
  const trees = {};
  const state = { upwards: true, metric: "inuse_bytes", term: "" };
  const body = el("tbody");
  const root = () => trees[state.upwards] ||= buildTree(report.rows, owners, state.upwards);
  const matches = (node) => !state.term || (node.text || node.name).toLowerCase().includes(state.term)
    || [...node.children.values()].some(matches);

  function line(node, level) {
    const children = [...node.children.values()].filter(matches).filter((child) => child[state.metric] > 0);
    children.sort((a, b) => b[state.metric] - a[state.metric] || a.name.localeCompare(b.name));
    let rows = null;
    const twist = el("span", { class: children.length ? "twist" : "twist leaf" }, "▸");
    const row = el("tr", {},
      el("td", { style: `padding-left:${12 + level * 16}px`, title: node.text }, twist, node.text || node.name),
      ...Object.entries(METRICS).map(([metric, { format }]) => el("td", {}, format(node[metric]))),
      el("td", {}, percent(node[state.metric], root()[state.metric])));
    const open = () => {
      if (rows) {
        rows.forEach((one) => { one.close(); one.row.remove(); });
        rows = null;
      } else if (children.length) {
        rows = children.slice(0, 200).map((child) => line(child, level + 1));
        row.after(...rows.map((one) => one.row));
      }
      twist.textContent = rows ? "▾" : "▸";
      // One way on is no choice: go it.
      if (rows && rows.length === 1 && level < 60) rows[0].open();
    };
    twist.addEventListener("click", open);
    return { row, open, close: () => { if (rows) open(); } };
  }

  function draw() {
    const tops = [...root().children.values()].filter(matches).filter((node) => node[state.metric] > 0);
    tops.sort((a, b) => b[state.metric] - a[state.metric] || a.name.localeCompare(b.name));
    body.replaceChildren(...tops.slice(0, 100).map((node) => line(node, 0).row));
  }

  const head = el("tr", {}, el("th", { scope: "col" }, "Function"),
    ...Object.values(METRICS).map(({ title }) => el("th", { scope: "col" }, title)), el("th", { scope: "col" }, "Part"));
  const bar = el("div", { class: "bar" },
    choice([["up", "Who called"], ["down", "From the start"]], "up", (way) => { state.upwards = way === "up"; draw(); }),
    choice(Object.entries(METRICS).map(([key, { title }]) => [key, title]), state.metric, (key) => { state.metric = key; draw(); }),
    search("Search functions", (term) => { state.term = term; draw(); }));
  draw();
  return el("div", {}, bar, el("div", { class: "scroll tree" }, el("table", {}, el("thead", {}, head), body)));
}
