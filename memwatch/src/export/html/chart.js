// Lines over time as SVG.

function niceStep(most, steps) {
  const rough = most / steps;
  const power = 1024 ** Math.floor(Math.log(Math.max(rough, 1)) / Math.log(1024));
  for (const factor of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]) {
    if (factor * power >= rough) return factor * power;
  }
  return rough;
}

function niceTime(span) {
  for (const step of [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 43200, 86400]) {
    if (span / step <= 8) return step;
  }
  return span / 4;
}

// lines: {name, class, area, points: [[seconds, value or null]]}
function timeChart(lines, options) {
  const width = options.width, height = options.height;
  const [left, right, top, bottom] = options.small ? [58, 8, 8, 20] : [78, 14, 12, 28];
  const all = lines.flatMap((line) => line.points);
  const span = Math.max(...all.map((point) => point[0]), 1e-9);
  const most = Math.max(...all.map((point) => point[1] ?? 0), 1);
  const step = options.format === bytes ? niceStep(most, options.small ? 2 : 4) : most / 2;
  const x = (at) => left + (width - left - right) * at / span;
  const y = (value) => height - bottom - (height - top - bottom) * value / (most * 1.05);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": options.title });
  for (let value = 0; value <= most * 1.05; value += step) {
    svg.append(el("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
      el("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, options.format(value)));
  }
  const every = options.small ? span / 2 : niceTime(span);
  for (let at = 0; at <= span * 1.001; at += every) {
    svg.append(el("text", { x: x(at), y: height - 6, "text-anchor": at === 0 ? "start" : at + every > span * 1.001 ? "end" : "middle" },
      seconds(at)));
  }
  for (const line of lines) svg.append(...drawLine(line, x, y));
  if (options.mark) svg.append(el("line", { class: "mark", x1: x(options.mark), x2: x(options.mark), y1: top, y2: height - bottom },
    el("title", {}, "differences are against this moment")));
  if (!options.small) svg.append(hover(lines, x, span, { left, right, top, bottom, width, height, format: options.format }));
  return svg;
}

// What is not known is a gap.
function drawLine(line, x, y) {
  let path = "", area = "", open = false, first = 0;
  line.points.forEach(([at, value], index) => {
    if (value === null || value === undefined) { open = false; return; }
    path += (open ? "L" : "M") + x(at).toFixed(1) + " " + y(value).toFixed(1);
    if (!index) first = x(at);
    open = true;
  });
  const drawn = [el("path", { class: line.class, d: path, "stroke-linejoin": "round" })];
  if (line.area && path && line.points.every((point) => point[1] !== null)) {
    area = path + `L${x(line.points.at(-1)[0]).toFixed(1)} ${y(0)}L${first} ${y(0)}Z`;
    drawn.unshift(el("path", { class: "area", d: area }));
  }
  return drawn;
}

function hover(lines, x, span, box) {
  const text = el("text", { x: box.left + 8, y: box.top + 12 });
  const mark = el("line", { class: "mark", y1: box.top, y2: box.height - box.bottom, visibility: "hidden" });
  const cover = el("rect", { x: box.left, y: box.top, width: box.width - box.left - box.right,
    height: box.height - box.top - box.bottom, fill: "transparent",
    onmousemove: (event) => {
      const area = cover.getBoundingClientRect();
      const at = span * (event.clientX - area.left) / area.width;
      const near = (points) => points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
      const here = near(lines[0].points)[0];
      mark.setAttribute("x1", x(here)); mark.setAttribute("x2", x(here)); mark.setAttribute("visibility", "visible");
      text.textContent = seconds(here) + ": " + lines.map((line) => line.name + " " + box.format(near(line.points)[1])).join(", ");
    },
    onmouseleave: () => { mark.setAttribute("visibility", "hidden"); text.textContent = ""; } });
  const group = document.createElementNS("http://www.w3.org/2000/svg", "g");
  group.append(mark, text, cover);
  return group;
}

function memoryChart(report) {
  const line = (name, key, style, area) =>
    ({ name, class: style, area, points: report.timeline.map((point) => [point.seconds, point[key]]) });
  const lines = [line("RSS", "rss_bytes", "rss", false), line("in use, explained", "inuse_bytes", "used", true)];
  const legend = el("div", { class: "legend" }, ...lines.map((one) =>
    el("span", {}, el("i", { style: `border-color: var(--${one.class})` }), one.name)));
  const last = report.timeline.at(-1);
  const untouched = last && last.rss_bytes !== null && last.inuse_bytes > last.rss_bytes
    ? el("p", { class: "note" }, "More is in use than is resident: part of it was never touched.") : null;
  return el("div", { class: "chart" }, legend, timeChart(lines,
    { width: 1160, height: 260, format: bytes, mark: report.baseline_seconds, title: "RSS and memory in use over time" }), untouched);
}

function findingChart(finding) {
  const series = finding.evidence.series;
  if (!series || series.seconds.length < 3) return null;
  const survivors = series.survivors && series.survivors.some((value) => value > 0) && String(finding.evidence.by).includes("older");
  const values = survivors ? series.survivors : series.inuse_bytes;
  const points = series.seconds.map((at, index) => [at, values[index]]);
  return el("div", {}, timeChart([{ name: "in use", class: "used", area: true, points }],
    { width: 260, height: 110, small: true, format: survivors ? count : bytes, title: "what this place had over time" }),
    el("div", { class: "note" }, survivors ? "old blocks over time" : "in use over time"));
}
