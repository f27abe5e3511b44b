// Uses the report page as people do, and says in its root whether it did what it should.
(async () => {
  const root = document.documentElement;
  const wrong = [];
  const check = (what, is) => { if (!is) wrong.push(what); };
  const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
  const all = (selector) => [...document.querySelectorAll(selector)];
  const type = async (selector, text) => {
    const input = document.querySelector(selector);
    input.value = text;
    input.dispatchEvent(new Event("input"));
    await wait(300);
  };

  const places = () => all("#places tbody tr").map((row) => row.firstChild.textContent);
  const sorted = places();
  document.querySelector("#places th button").click();
  check("sorting by name changes the order", places().join() !== sorted.join());
  check("sorted by name", places().join() === [...places()].sort((a, b) => a.localeCompare(b)).join());
  await type("#places input", "cache");
  check("search in places", places().length === 1 && places()[0].includes("cache"));
  all("#places .group button").find((button) => button.dataset.key === "module").click();
  await type("#places input", "");
  check("grouping by module", places().some((name) => name.includes("/usr/bin/server")));

  const frames = () => all("#flame .frame");
  const before = frames().length;
  frames().find((frame) => frame.textContent.includes("Cache::insert")).click();
  check("zoom shows less", frames().length < before);
  check("a zoomed frame is as wide as the graph",
    frames().some((frame) => frame.textContent.includes("Cache::insert") && frame.style.width === "100%"));
  all("#flame .bar > button").at(-1).click();
  check("back to the whole", frames().length === before);
  await type("#flame input", "parse_body");
  check("search in the flame graph", frames().some((frame) => frame.classList.contains("found")));
  await type("#flame input", "");
  const colours = () => frames().map((frame) => frame.style.background).join();
  const inUse = colours();
  all("#flame .group button").find((button) => button.dataset.key === "diff").click();
  check("differences have colours of their own", colours() !== inUse && colours().includes("color-mix"));
  all("#flame .group button").find((button) => button.dataset.key === "alloc").click();
  check("allocated is drawn", frames().length > 3);

  const lines = () => all("#tree tbody tr").length;
  const closed = lines();
  document.querySelector("#tree .twist:not(.leaf)").click();
  check("the tree opens", lines() > closed);
  document.querySelector("#tree .twist:not(.leaf)").click();
  check("the tree closes", lines() === closed);

  document.getElementById("theme").click();
  check("the theme changes", ["dark", "light"].includes(root.dataset.theme));
  root.dataset.used = wrong.length || root.dataset.errors ? "badly: " + wrong.concat(root.dataset.errors || []).join("; ") : "well";
})();
