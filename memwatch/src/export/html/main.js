// Puts the page together.

const problems = [];
window.addEventListener("error", (event) => {
  problems.push(event.message);
  document.documentElement.dataset.errors = problems.join("; ");
});

function facts(entries) {
  const known = entries.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return el("dl", { class: "facts" }, ...known.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

function ending(exit) {
  if (!exit) return "has ended";
  if (exit.out_of_memory) return "was killed for want of memory";
  if (exit.signal !== null) return "was killed by signal " + exit.signal;
  return "has ended" + (exit.code ? " with exit code " + exit.code : "");
}

function processFacts(process) {
  const container = process.container;
  return facts([
    ["Process", process.pid + " " + process.comm + (process.exited ? " (" + ending(process.exit) + ")" : "")],
    ["Command", process.cmdline.length ? el("code", {}, process.cmdline.join(" ")) : null],
    ["Program", process.exe],
    ["Started", process.start_time],
    ["Runtime", process.runtimes.map((one) => one.name + " " + (one.version || "")).join(", ")],
    ["Container", container && [container.name || container.id, container.image].filter(Boolean).join(", ")],
    ["Pod", process.pod && process.pod.namespace + "/" + process.pod.name],
    ["Control group", process.cgroup],
    ["RSS", bytes(process.rss_bytes) + ", at most " + bytes(process.peak_rss_bytes)],
  ]);
}

function stackOf(row) {
  const lines = row.frames.map((frame, index) => el("span", index === row.owner ? { class: "owner" } : {}, frameText(frame)));
  if (!lines.length) lines.push(el("span", {}, "[no stack]"));
  else if (row.truncated) lines.push(el("span", {}, "[the outer frames are missing]"));
  return el("pre", { class: "stack" }, ...lines);
}

function oneFinding(report, sentences, finding, index) {
  const rows = (finding.evidence.rows || []).map((row) => report.rows[row]).filter(Boolean);
  const text = el("div", {}, el("ul", {}, ...sentences.map((sentence) => el("li", {}, sentence))));
  if (rows.length) text.append(el("details", index === 0 ? { open: "" } : {}, el("summary", {}, "Stack"), stackOf(rows[0])));
  if (rows.length > 1) {
    text.append(el("details", {}, el("summary", {}, `${rows.length - 1} more stacks`), ...rows.slice(1, 20).map(stackOf)));
  }
  return el("article", { class: "finding", style: `--level: var(--${finding.severity})` },
    el("div", { class: "head" }, el("span", { class: "level" }, finding.severity), el("h3", {}, finding.title)),
    el("div", { class: "body" }, text, findingChart(finding)));
}

function quality(report) {
  const health = report.health;
  const list = el("ul", {}, el("li", {}, health.complete
    ? "Totals are exact: every allocation and every free since the start of the watch was counted."
    : "Totals are not exact:"));
  for (const reason of health.reasons) list.append(el("li", {}, reason));
  list.append(el("li", {}, "Blocks from before the watch are not known."));
  return list;
}

function measured(report) {
  const { health, options } = report;
  const list = facts([
    ["memwatch", report.version + " on " + report.host.name + ", Linux " + report.host.kernel + ", " + report.host.arch],
    ["Watched", report.since + " to " + report.time + " (" + seconds(report.watched_seconds) + "), a tick every " + seconds(report.interval_seconds)],
    ["Counted", options.sample_bytes ? "one block in " + bytes(options.sample_bytes) + ", all numbers are estimates" : "every block"],
    ["Probes", health.probes.attached + " (" + health.probes.method + "), " + count(health.overhead.hits) + " hits"],
    ["Cost", health.overhead.target_percent === null ? null : "about " + health.overhead.target_percent.toFixed(1) + "% of a core in the target"],
    ["Rule of the findings", "docs/findings.md of memwatch"],
  ]);
  if (!report.suppressed.length) return list;
  return el("div", {}, list, el("h3", {}, "Suppressed"), el("ul", {}, ...report.suppressed.map((one) =>
    el("li", {}, `leak:${one.pattern}: ${count(one.stacks)} stacks, ${bytes(one.inuse_bytes)} in ${count(one.inuse_objects)} blocks in use`))));
}

function put(id, ...elements) {
  document.getElementById(id).append(...elements);
}

function main() {
  const { report, rows, frames, owners, sentences } = JSON.parse(document.getElementById("data").textContent);
  rows.forEach((row, index) => {
    row.frames = row.frames.map((id) => frames[id]);
    row.owner = owners[index];
  });
  report.rows = rows;
  document.getElementById("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  put("target", ...report.processes.map(processFacts));
  if (report.findings.length) put("findings", ...report.findings.map((finding, index) => oneFinding(report, sentences[index], finding, index)));
  else put("findings", el("p", {}, "None."));
  put("memory", memoryChart(report));
  put("flame", flameGraph(report, owners));
  put("places", placesTable(report, owners));
  put("tree", callTree(report, owners));
  put("quality", quality(report));
  put("measured", measured(report));
  document.documentElement.dataset.ready = "yes";
}

main();
