// Interaction: by mouse, touch, keys, buttons and the address.

// ---- actions ------------------------------------------------------------------------------
const same = (a, b) => a === b || Boolean(a && b && a.row === b.row && a.cell === b.cell && a.level === b.level);

function hover(thing) {
  if (same(state.hovered, thing)) return;
  state.hovered = thing;
  canvas.style.cursor = thing ? "pointer" : "";
  refreshPanel();
  draw(true);
}

function pin(thing) {
  state.pinned = thing;
  state.hovered = null;
  refreshPanel();
  find("panel").scrollTop = 0;
  find("spoken").textContent = !thing ? "" : thing.level
    ? `${plural(thing.level.sizeOf(thing.cell), "picture")} in this square`
    : `${atlas.nameOf(thing.row)}; ${atlas.keptCount(thing.row)} of ${k} neighbors are near on the map`;
  remember();
  draw(true);
}

function limits() {
  const least = 0.5 * fitScale();
  const most = state.view === "cells" ? 240 * atlas.levels[atlas.levels.length - 1].side
    : views[state.view].unit ? 320 / views[state.view].unit : 320 * Math.sqrt(count);
  return [least, Math.max(most, 2 * least)];
}

function clampScale(scale) {
  const [least, most] = limits();
  return Math.min(Math.max(scale, least), most);
}

function fly(to) {
  to.scale = clampScale(to.scale);
  if (reducedMotion.matches) { Object.assign(camera, to); flight = null; remember(); } else flight = { from: { ...camera }, to };
  draw();
}

const fit = () => fly(wholeCamera());

function flyTo(row) {
  const { x, y } = placeOfRow(row);
  let scale = camera.scale;
  if (state.view === "points" && spacing && atlas.thumbOf[row] >= 0) { // near enough for its picture
    scale = Math.max(scale, Math.min(60 / spacing[atlas.thumbOf[row]], 12 * fitScale()));
  } else if (state.view !== "cells" && views[state.view].unit) scale = Math.max(scale, 40 / views[state.view].unit);
  fly({ x, y, scale });
}

function zoom(factor, sx = width / 2, sy = height / 2) {
  const [x, y] = toWorld(sx, sy);
  camera.scale = clampScale(camera.scale * factor);
  const [nx, ny] = toWorld(sx, sy);
  camera.x += x - nx;
  camera.y += y - ny;
  flight = null;
  keepInSight();
  remember();
  draw();
}

function keepInSight() { // the middle of the canvas stays on the map
  const box = boxNow();
  camera.x = Math.min(box.x + box.width, Math.max(box.x, camera.x));
  camera.y = Math.min(box.y + box.height, Math.max(box.y, camera.y));
}

function press(group, key, value) {
  for (const button of find(group).children) button.setAttribute("aria-pressed", String(button.dataset[key] === value));
}

function show(name, { still = false } = {}) {
  if (name === state.view || !(views[name] || name === "cells")) return;
  const old = state.view;
  state.view = name;
  press("views", "view", name);
  const able = atlas.levels.some((level) => level.icons);
  find("icons").hidden = !(able && name === "cells");
  morph = !still && old !== "cells" && name !== "cells" && !reducedMotion.matches ? { from: old, t: 0, start: 0 } : null;
  fade = null;
  if (state.pinned && state.pinned.level) state.pinned = null;
  state.hovered = null;
  refreshPanel();
  remember();
  fit();
}

function choose(kind) {
  state.icons = kind;
  press("icons", "icons", kind);
  if (state.pinned && state.pinned.level) state.pinned = null;
  state.hovered = null;
  fade = null;
  refreshPanel();
  remember();
  draw();
}

function color(kind) {
  state.color = kind;
  find("color").value = kind;
  find("legend").hidden = kind !== "kept";
  colorRows();
  refreshPanel();
  panel.legend(find("classes"));
  remember();
}

// Rows whose class or path has these letters; "class:NAME" means that class and no other.
function seek(text, typed = false) {
  if (typed) find("search").value = text;
  state.find = text;
  const wanted = text.trim().toLowerCase();
  matches = null;
  matchCount = 0;
  if (wanted) {
    matches = new Uint8Array(count);
    const exact = wanted.startsWith("class:") ? wanted.slice(6).trim() : null;
    const fits = atlas.classes.map((name) => (exact === null ? name.toLowerCase().includes(wanted) : name.toLowerCase() === exact));
    const paths = exact === null ? atlas.loweredPaths() : null;
    for (let row = 0; row < count; row++) {
      if ((atlas.classOf && fits[atlas.classOf[row]]) || (paths && paths[row].includes(wanted))) { matches[row] = 1; matchCount++; }
    }
  }
  find("clear").hidden = !text;
  colorRows();
  remember();
}

function nextMatch() { // the one after the selected picture
  if (!matchCount) return;
  let row = state.pinned && state.pinned.row !== undefined ? state.pinned.row : -1;
  do row = (row + 1) % count; while (!matches[row]);
  pin({ row });
  flyTo(row);
}

// The next picture or square in a direction: near, and rather straight ahead.
function walk(dx, dy) {
  const level = state.view === "cells" ? levelNow() : null;
  const at = level ? level.at : views[state.view].at;
  const number = level ? level.cells : count;
  const { pinned } = state;
  const own = !pinned ? -1 : !level ? pinned.row : pinned.level === level ? pinned.cell : pinned.row === undefined ? -1 : level.of[pinned.row];
  const x = own < 0 ? camera.x : at[2 * own], y = own < 0 ? camera.y : at[2 * own + 1];
  let best = -1, least = Infinity;
  for (let i = 0; i < number; i++) {
    if (i === own || (!level && matches && !matches[i])) continue;
    const ox = at[2 * i] - x, oy = at[2 * i + 1] - y;
    const ahead = ox * dx + oy * dy, aside = Math.abs(ox * dy) + Math.abs(oy * dx);
    const cost = own < 0 ? Math.hypot(ox, oy) : ahead > 1e-9 ? ahead + 2.5 * aside : Infinity;
    if (cost < least) { least = cost; best = i; }
  }
  if (best < 0) return;
  const thing = level ? { level, cell: best } : { row: best };
  pin(thing);
  const place = placeOf(thing);
  const [sx, sy] = toScreen(place.x, place.y), half = place.size / 2;
  if (sx < half || sy < half || sx + half > width || sy + half > height) fly({ x: place.x, y: place.y, scale: camera.scale });
}

function saveImage() {
  const sheet = document.createElement("canvas");
  sheet.width = canvas.width;
  sheet.height = canvas.height;
  const pen = sheet.getContext("2d");
  stale = true;
  paint(); // in the same task, since WebGL clears its canvas afterwards
  pen.drawImage(canvas, 0, 0);
  pen.drawImage(overlay, 0, 0, sheet.width, sheet.height);
  sheet.toBlob((blob) => {
    const link = element("a", { href: URL.createObjectURL(blob), download: "atlas.png" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

// ---- pointers -----------------------------------------------------------------------------
const fingers = new Map();
let travelled = 0, spread = 0, parted = false;
const at = (event) => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  if (!fingers.size) { travelled = 0; parted = false; }
  fingers.set(event.pointerId, at(event));
  if (fingers.size > 1) parted = true;
  spread = 0;
  flight = null;
  canvas.classList.add("moving");
});
canvas.addEventListener("pointermove", (event) => {
  const now = at(event);
  const before = fingers.get(event.pointerId);
  if (!before) { if (event.pointerType !== "touch") hover(thingAt(...now)); return; }
  fingers.set(event.pointerId, now);
  travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
  if (travelled < 4 && fingers.size === 1) return; // a click, not a drag
  const parts = fingers.size;
  camera.x -= (now[0] - before[0]) / camera.scale / parts;
  camera.y -= (now[1] - before[1]) / camera.scale / parts;
  if (parts === 2) {
    const [a, b] = [...fingers.values()];
    const apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (spread) zoom(apart / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
    spread = apart;
  }
  keepInSight();
  remember();
  draw();
});
const release = (event) => {
  const last = fingers.get(event.pointerId);
  fingers.delete(event.pointerId);
  spread = 0;
  if (fingers.size) return;
  canvas.classList.remove("moving");
  if (event.type === "pointerup" && last && travelled < 6 && !parted) pin(thingAt(...last));
};
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => hover(null));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 18 : event.ctrlKey ? 5 : 1; // a pinch on a touchpad has ctrl
  zoom(Math.exp(-Math.max(-400, Math.min(400, event.deltaY * lines)) * 0.0016), ...at(event));
}, { passive: false });
canvas.addEventListener("dblclick", (event) => zoom(2, ...at(event)));

// ---- keys and buttons ---------------------------------------------------------------------
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = {
  "+": () => zoom(1.4), "=": () => zoom(1.4), "-": () => zoom(1 / 1.4), 0: fit, Escape: () => pin(null),
  p: () => show("points"), m: () => show("map"), o: () => show("mosaic"), c: () => show("cells"),
  n: nextMatch, s: saveImage,
  l() { state.names = !state.names; remember(); draw(); },
  i() { if (!find("icons").hidden) choose(state.icons === "sample" ? "synthetic" : "sample"); },
  "/"() { find("search").focus(); find("search").select(); },
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === find("search")) {
    if (event.key === "Escape") { seek("", true); canvas.focus(); }
    if (event.key === "Enter") nextMatch();
    return;
  }
  if (event.target instanceof HTMLSelectElement) return;
  const arrow = ARROWS[event.key];
  if (arrow) {
    if (event.target !== canvas) return;
    event.preventDefault();
    if (event.shiftKey) {
      camera.x += (arrow[0] * 60) / camera.scale;
      camera.y += (arrow[1] * 60) / camera.scale;
      keepInSight();
      remember();
      draw();
    } else walk(...arrow);
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key]();
  }
});
find("closer").addEventListener("click", () => zoom(1.5));
find("farther").addEventListener("click", () => zoom(1 / 1.5));
find("whole").addEventListener("click", fit);
find("views").addEventListener("click", (event) => { if (event.target.dataset.view) show(event.target.dataset.view); });
find("icons").addEventListener("click", (event) => { if (event.target.dataset.icons) choose(event.target.dataset.icons); });
find("color").addEventListener("change", (event) => color(event.target.value));
find("search").addEventListener("input", (event) => seek(event.target.value));
find("clear").addEventListener("click", () => { seek("", true); find("search").focus(); });
find("save").addEventListener("click", saveImage);

// ---- light and dark -----------------------------------------------------------------------
const root = document.documentElement;
const night = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : night.matches);
function dress() {
  theme = { ground: toRgb(styleOf("--map")), accent: styleOf("--accent"), ink: styleOf("--ink") };
  find("theme").setAttribute("aria-pressed", String(isDark()));
  draw();
}
find("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  dress();
});
night.addEventListener("change", dress);

// ---- state in the address -----------------------------------------------------------------
// #view=points&at=0.31,0.62,4.5&icons=synthetic&color=kept&find=dog&names=off&row=12
// (or cell=SIDE.NUMBER); `at` is the middle and the zoom, 1 for the whole map.
let written = 0;
const home = () => (count > 2500 || !views.map ? "points" : "map");
for (const button of find("views").children) button.hidden = !(views[button.dataset.view] || button.dataset.view === "cells");
function address() {
  const parts = [];
  const add = (key, value) => parts.push(`${key}=${encodeURIComponent(value).replace(/%2C/g, ",").replace(/%3A/g, ":")}`);
  if (location.hash.includes("renderer=")) add("renderer", rendererWanted() || "");
  if (state.view !== home()) add("view", state.view);
  const whole = wholeCamera();
  const near = camera.scale / whole.scale;
  const moved = Math.hypot(camera.x - whole.x, camera.y - whole.y) * camera.scale;
  if (!flight && (Math.abs(near - 1) > 0.01 || moved > 1)) add("at", `${camera.x.toFixed(4)},${camera.y.toFixed(4)},${near.toFixed(2)}`);
  if (state.icons !== "sample") add("icons", state.icons);
  if (state.color !== "none") add("color", state.color);
  if (state.find) add("find", state.find);
  if (!state.names) add("names", "off");
  const { pinned } = state;
  if (pinned && pinned.level) add("cell", `${pinned.level.side}.${pinned.cell}`);
  else if (pinned) add("row", pinned.row);
  return parts.length ? `#${parts.join("&")}` : "";
}
function remember() { // browsers allow few changes of the address a second
  if (written) return;
  written = setTimeout(() => {
    written = 0;
    const wanted = address();
    if (wanted !== location.hash) history.replaceState(null, "", wanted || location.pathname + location.search);
  }, 200);
}
function recall() {
  const params = new URLSearchParams(location.hash.slice(1));
  const wanted = params.get("view");
  show(views[wanted] || wanted === "cells" ? wanted : home(), { still: true });
  const icons = params.get("icons") === "synthetic" && atlas.levels.some((level) => level.icons) ? "synthetic" : "sample";
  if (icons !== state.icons) choose(icons);
  const painted = params.get("color") || "none";
  if ([...find("color").options].some((option) => option.value === painted) && painted !== state.color) color(painted);
  if ((params.get("find") || "") !== state.find) seek(params.get("find") || "", true);
  state.names = params.get("names") !== "off";
  const spot = (params.get("at") || "").split(",").map(Number);
  flight = null;
  Object.assign(camera, wholeCamera());
  if (spot.length === 3 && spot.every(Number.isFinite)) {
    Object.assign(camera, { x: spot[0], y: spot[1], scale: clampScale(spot[2] * fitScale()) });
    keepInSight();
  }
  const row = Number(params.get("row"));
  const [side, cell] = (params.get("cell") || "").split(".").map(Number);
  const level = atlas.levels.find((one) => one.side === side);
  if (params.get("row") && Number.isInteger(row) && row >= 0 && row < count) pin({ row });
  else if (level && state.view === "cells" && cell >= 0 && cell < level.cells) pin({ level, cell });
  else if (state.pinned) pin(null);
  remember();
  draw();
}
addEventListener("hashchange", recall);

// ---- start --------------------------------------------------------------------------------
function measure() {
  const first = width === 1;
  const whole = Math.abs(camera.scale / fitScale() - 1) < 0.01;
  const near = camera.scale / fitScale();
  width = Math.max(1, canvas.clientWidth);
  height = Math.max(1, canvas.clientHeight);
  ratio = Math.min(2, window.devicePixelRatio || 1);
  for (const own of [canvas, overlay]) {
    own.width = Math.round(width * ratio);
    own.height = Math.round(height * ratio);
  }
  if (first || whole) Object.assign(camera, wholeCamera());
  else camera.scale = clampScale(near * fitScale());
  draw();
}

if (!atlas.classes.length) {
  find("classList").hidden = true;
  find("color").querySelector("[value=class]").remove();
}
press("views", "view", state.view);
find("known").replaceChildren(...atlas.classes.slice(0, 1000).map((name) => element("option", { value: name })));
new ResizeObserver(measure).observe(canvas);
measure();
dress();
colorRows();
panel.legend(find("classes"));
refreshPanel();
recall();
let sheetsLeft = 0;
const strips = [atlas.thumbs, ...atlas.levels.map((level) => level.icons)].filter(Boolean);
for (const strip of strips) {
  sheetsLeft += strip.sheets;
  strip.load((own, sheet) => {
    sheetsLeft--;
    if (own.bitmaps[sheet]) renderer.sheetReady(own, sheet);
    refreshPanel();
    draw();
  });
}

// For scripts and tests: where a picture is on the page, what is at a position, what is shown.
window.atlas = {
  renderer: renderer.name,
  about: renderer.about,
  screenOf(row) {
    const { x, y, size } = placeOfRow(row);
    const box = canvas.getBoundingClientRect();
    const [sx, sy] = toScreen(x, y);
    return { x: sx + box.left, y: sy + box.top, size };
  },
  isPicture: (row) => (state.view === "points" ? shownAmongPoints(row) > 0 : atlas.thumbOf[row] >= 0),
  thingAt(x, y) {
    const box = canvas.getBoundingClientRect();
    const thing = thingAt(x - box.left, y - box.top);
    return !thing ? null : thing.level ? { side: thing.level.side, cell: thing.cell } : { row: thing.row };
  },
  look(x, y, near) { // the middle, and the zoom, 1 for the whole map
    flight = null;
    Object.assign(camera, { x, y, scale: clampScale(near * fitScale()) });
    remember();
    draw();
  },
  named: () => named,
  drawNow() { stale = true; paint(); renderer.finish(); },
  loseContext: () => renderer.loseContext(),
  state: () => ({
    view: state.view, icons: state.icons, color: state.color, find: state.find, found: matchCount, names: state.names,
    x: camera.x, y: camera.y, scale: camera.scale, near: camera.scale / fitScale(),
    hovered: state.hovered && state.hovered.row, pinned: state.pinned && state.pinned.row,
    cell: state.pinned && state.pinned.level ? state.pinned.cell : null,
    side: state.view === "cells" ? levelNow().side : null,
    moving: Boolean(morph || flight || fade || waiting), ready: sheetsLeft === 0 && renderer.settled(),
  }),
};
