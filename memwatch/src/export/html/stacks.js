// The rows of the report: their frames' names, their numbers, and trees of them.

const METRICS = {
  inuse_bytes: { title: "Bytes in use", format: bytes },
  inuse_objects: { title: "Blocks in use", format: count },
  alloc_bytes: { title: "Bytes allocated", format: bytes },
  alloc_objects: { title: "Blocks allocated", format: count },
};

function baseName(path) {
  return path.slice(path.lastIndexOf("/") + 1) || path;
}

function functionName(frame) {
  if (frame.function) return frame.function;
  const module = frame.module ? baseName(frame.module) : "";
  const address = frame.address === null ? "" : "0x" + frame.address.toString(16);
  return [module, address].filter(Boolean).join("+") || "[unknown]";
}

function lineName(frame) {
  if (frame.file && frame.line) return frame.file + ":" + frame.line;
  if (frame.file) return frame.file;
  return frame.function && frame.module ? frame.function + " [" + baseName(frame.module) + "]" : functionName(frame);
}

function frameText(frame) {
  const place = frame.file ? " (" + frame.file + (frame.line ? ":" + frame.line : "") + ")" : "";
  const module = frame.module && frame.kind !== "python" ? " [" + baseName(frame.module) + "]" : "";
  return functionName(frame) + place + module + (frame.inlined ? " [inlined]" : "");
}

// Names of a row under each way of grouping; the frame is the one that the block belongs to.
const GROUPINGS = {
  line: (row, frame) => frame ? lineName(frame) : row.key,
  function: (row, frame) => frame ? functionName(frame) : row.key,
  file: (row, frame) => frame ? frame.file || "[" + baseName(frame.module || "unknown") + "]" : row.key,
  module: (row, frame) => frame ? frame.module || frame.file || "[unknown]" : row.key,
  process: (row) => row.pid === null ? "[unknown]" : "process " + row.pid,
  domain: (row) => row.domain || "[several]",
};

function before(row, metric) {
  return Math.max(0, row[metric] - (row.delta ? row.delta[metric] : 0));
}

function addTo(node, row) {
  for (const metric in METRICS) {
    node[metric] = (node[metric] || 0) + row[metric];
    node["was_" + metric] = (node["was_" + metric] || 0) + before(row, metric);
  }
  node.stacks = (node.stacks || 0) + 1;
}

function group(rows, owners, by) {
  const groups = new Map();
  rows.forEach((row, index) => {
    const name = GROUPINGS[by](row, row.frames[owners[index]]);
    if (!groups.has(name)) groups.set(name, { name });
    addTo(groups.get(name), row);
  });
  return [...groups.values()];
}

// A tree of functions: from the outermost frame inwards, or from the owner of the blocks to its callers.
function buildTree(rows, owners, upwards) {
  const root = { name: "all", children: new Map() };
  const processes = new Set(rows.map((row) => row.pid)).size > 1;
  rows.forEach((row, index) => {
    const frames = upwards ? row.frames.slice(Math.max(0, owners[index])) : [...row.frames].reverse();
    const names = frames.map((frame) => [functionName(frame), frameText(frame)]);
    const missing = row.frames.length ? "[truncated]" : row.key;
    if (!row.frames.length || (row.truncated && !upwards)) names.unshift([missing, missing]);
    if (processes && !upwards) names.unshift(["process " + row.pid, "process " + row.pid]);
    let node = root;
    addTo(node, row);
    for (const [name, text] of names) {
      if (!node.children.has(name)) node.children.set(name, { name, text, children: new Map(), parent: node });
      node = node.children.get(name);
      addTo(node, row);
    }
  });
  return root;
}
