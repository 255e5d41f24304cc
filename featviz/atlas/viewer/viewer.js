// The page: what is shown, and what one can do with it.
//
// The camera says which world point is in the middle of the canvas and how many CSS pixels a world
// unit has. From the camera and the state `compose` makes a frame, which a renderer draws:
//
//   ground    [r, g, b]
//   camera    {x, y, scale}
//   rows      null, or {from, to, t, rgba, dots}: two views and how far the rows have come from one
//             to the other, their colours (four numbers a row), and
//             dots: null or {size, alpha, square, bareOnly: only rows without a picture}
//   pictures  groups {strip, numbers, rows, from, to, t, rgba, size, alpha, frame, grow, shown}:
//             picture numbers[i] (or i) of the strip is that of row (or cell) rows[i], which lies at
//             `from` and `to` and is `grow` times as large as others; `frame` is the thickness of a
//             frame; shown[i] says how far a picture has come in, 0 to 1
//
// Sizes are CSS pixels. What marks the picture in hand is drawn on a second canvas above.

const find = (id) => document.getElementById(id);
const rendererAsked = () => ((location.search + location.hash).match(/[?&#]renderer=(canvas|webgl2)(?=&|#|$)/) || [])[1];
const TRUST = [[213, 94, 0], [230, 159, 0], [150, 150, 150], [86, 180, 233], [0, 114, 178]];
const GREY = [140, 140, 140];
const DIM = 0.14;
const ENTRY = 160; // milliseconds in which a picture comes in

const atlas = readAtlas();
const { count, k } = atlas;
const views = makeViews(atlas);
const pointGrid = makeGrid(atlas.xy);
for (const level of atlas.levels) {
  level.at = Float32Array.from({ length: 2 * level.cells }, (_, i) => (level.place[i] + 0.5) / level.side);
  // Squares with more pictures are drawn larger.
  level.grow = Float32Array.from({ length: level.cells }, (_, cell) => 0.6 + 0.36 * Math.sqrt(level.sizeOf(cell) / level.most));
}
const classesTell = atlas.classes.length > 0 && count >= 1.5 * atlas.classes.length;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

// ---- state --------------------------------------------------------------------------------
const state = {
  view: count > 2500 ? "points" : "map", icons: "sample", colour: "none", find: "",
  hovered: null, pinned: null, // {row} or {level, cell}
};
const camera = { x: 0.5, y: 0.5, scale: 1 };
let matches = null, matchCount = 0; // Uint8Array over rows, null when nothing is sought
let morph = null; // {from, t, start}: rows on their way from one view to another
let flight = null; // the camera on its way
let fade = null; // {level, start, t}: the squares that are being replaced
let lastLevel = null;
let width = 1, height = 1, ratio = 1;
let spacing = null; // of the pictured rows, see `spacings`
let spacingOf = null; // the matches that it is for
let arrived = null, entered = null; // of the pictured rows among points: how far in, since when
let rowColours = null;
const cellColours = new Map();

// ---- renderer -----------------------------------------------------------------------------
let canvas = find("canvas");
const overlay = find("overlay");
const over = overlay.getContext("2d");
let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame((now) => { waiting = false; step(now); paint(); });
}

function makeRenderer() {
  const asked = rendererAsked();
  const made = asked === "canvas" ? null : makeGlRenderer(canvas, atlas, views, asked === "webgl2", draw);
  if (made) return made;
  // A canvas that has given out a WebGL context gives out no other.
  const fresh = canvas.cloneNode(true);
  canvas.replaceWith(fresh);
  canvas = fresh;
  return makeFlatRenderer(canvas, atlas, views, draw);
}
const renderer = makeRenderer();

// ---- colours ------------------------------------------------------------------------------
const styleOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const toRgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const palette = atlas.colours.map(toRgb);
let theme = { ground: [255, 255, 255], accent: "#0072b2", ink: "#000000" };

const classRgb = (own) => (own < atlas.classes.length ? palette[atlas.colour[own]] : GREY);
const trustRgb = (share) => TRUST[Math.min(4, Math.floor(share * 5))];

function rowRgb(row) {
  if (state.colour === "trust") return trustRgb(atlas.keptCount(row) / k);
  if (atlas.classOf && (state.colour === "class" || classesTell)) return classRgb(atlas.classOf[row]);
  const number = atlas.thumbOf[row];
  return number < 0 ? GREY : vivid(atlas.tint.subarray(3 * number, 3 * number + 3));
}

// A mean colour is greyer than what it is the mean of.
function vivid(rgb) {
  const grey = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2];
  return Array.from(rgb, (value) => Math.min(235, Math.max(30, grey + 1.6 * (value - grey))));
}

function colourRows() {
  const rgba = new Uint8Array(4 * count);
  for (let row = 0; row < count; row++) {
    rgba.set(rowRgb(row), 4 * row);
    rgba[4 * row + 3] = !matches || matches[row] ? 255 : 255 * DIM;
  }
  rowColours = rgba;
  for (const level of atlas.levels) {
    const own = new Uint8Array(4 * level.cells);
    for (let cell = 0; cell < level.cells; cell++) {
      own.set(cellRgb(level, cell), 4 * cell);
      own[4 * cell + 3] = !matches || level.membersOf(cell).some((row) => matches[row]) ? 255 : 255 * DIM;
    }
    cellColours.set(level, own);
  }
  draw();
}

function cellRgb(level, cell) {
  if (state.colour === "trust") {
    let kept = 0;
    for (const row of level.membersOf(cell)) kept += atlas.keptCount(row);
    return trustRgb(kept / k / level.sizeOf(cell));
  }
  return atlas.classOf ? classRgb(atlas.classOf[level.sample[cell]]) : GREY;
}

// ---- what is shown at which zoom ----------------------------------------------------------
const boxNow = () => views[state.view === "cells" ? "points" : state.view].box;
function scaleToFit(box) {
  const rim = Math.min(46, 0.06 * Math.min(width, height));
  return Math.min((width - 2 * rim) / box.width, (height - 2 * rim) / box.height);
}
const fitScale = () => scaleToFit(boxNow());
const wholeCamera = () => {
  const { x, y, width: across, height: down } = boxNow();
  return { x: x + across / 2, y: y + down / 2, scale: fitScale() };
};

// The side of a picture among points: large enough to see what it shows, and slowly more.
function pointPicture() {
  const fit = scaleToFit(views.points.box);
  const base = Math.min(72, Math.max(34, (0.7 * fit * Math.sqrt(views.points.box.width * views.points.box.height)) / Math.sqrt(count)));
  return Math.min(Math.max(72, atlas.thumbs.size), base * Math.max(1, camera.scale / fit) ** 0.3);
}
const TOUCH = 0.94; // pictures among points may cover so little of one another

// The finest squares that are still large enough to be looked at.
function levelNow() {
  const able = atlas.levels.filter((level) => state.icons === "sample" || level.icons);
  let best = able[0];
  for (const level of able) if (camera.scale / level.side >= 44) best = level;
  return best;
}

// Dots and pictures of one view at this zoom.
function lookOf(view) {
  const thick = (size) => (state.colour === "none" ? 0 : Math.max(1.5, size / 14));
  if (!view.unit) {
    const size = pointPicture();
    const dot = Math.min(8, Math.max(2.4, (0.42 * camera.scale) / Math.sqrt(count)));
    return {
      dots: { size: dot, alpha: count > 50000 ? 0.75 : 0.9, square: false, bareOnly: false },
      pictures: { size, alpha: 1, frame: thick(size), spacing: (TOUCH * size) / camera.scale },
    };
  }
  const place = view.unit * camera.scale;
  const shown = Math.min(1, Math.max(0, (place - 5) / 2)); // pictures under 5 pixels say nothing
  const size = place - Math.min(1, place / 16);
  const whole = shown === 1 && renderer.settled();
  const bare = atlas.pictured.length < count;
  const square = view.name === "mosaic";
  return {
    dots: !whole || bare
      ? { size: whole ? Math.min(0.6 * place, 30) : Math.max(1.2, square ? size : 0.84 * place), alpha: whole || !renderer.settled() ? 1 : 1 - shown ** 2, square, bareOnly: whole }
      : null,
    pictures: shown ? { size, alpha: shown, frame: thick(size), spacing: 0 } : null,
  };
}

function blend(from, to, t) { // two looks while rows travel between their views
  const mix = (a, b) => a + (b - a) * t;
  const none = { size: 0, alpha: 0, frame: 0, spacing: 0, bareOnly: true };
  const both = (a, b) => {
    if (!a && !b) return null;
    const [p, q] = [a || { ...none, size: b.size }, b || { ...none, size: a.size }];
    return {
      size: mix(p.size, q.size), alpha: mix(p.alpha, q.alpha), frame: mix(p.frame, q.frame),
      spacing: mix(p.spacing, q.spacing), square: q.square, bareOnly: Boolean(p.bareOnly && q.bareOnly),
    };
  };
  return { dots: both(from.dots, to.dots), pictures: both(from.pictures, to.pictures) };
}

function compose() {
  const frame = { ground: theme.ground, camera, rows: null, pictures: [] };
  if (state.view === "cells") {
    const level = levelNow();
    if (lastLevel && lastLevel.level !== level && lastLevel.icons === state.icons && !calm.matches) {
      fade = { level: lastLevel.level, start: 0, t: 0 };
    }
    lastLevel = { level, icons: state.icons };
    if (fade && (state.icons === "sample" || fade.level.icons)) {
      frame.pictures = [cellGroup(fade.level, 1 - fade.t), cellGroup(level, fade.t)];
      draw();
    } else frame.pictures = [cellGroup(level, 1)];
    return frame;
  }
  lastLevel = null;
  const to = views[state.view];
  const from = morph ? views[morph.from] : to, t = morph ? morph.t : 0;
  const { dots, pictures } = morph ? blend(lookOf(from), lookOf(to), t) : lookOf(to);
  frame.rows = { from, to, t, dots, rgba: rowColours };
  if (pictures) {
    const { size, alpha, frame: thick, spacing: least } = pictures;
    if (least) enter(least);
    frame.pictures = [{
      strip: atlas.thumbs, numbers: null, rows: atlas.pictured, from: from.at, to: to.at, t,
      rgba: rowColours, size, alpha, frame: thick, grow: null, shown: least ? arrived : null,
    }];
  }
  return frame;
}

function cellGroup(level, alpha) {
  const kind = state.icons;
  if (!level.groups) level.groups = {};
  if (!level.groups[kind]) {
    const number = (cell) => (kind === "synthetic" ? cell : atlas.thumbOf[level.sample[cell]]);
    const rows = Array.from({ length: level.cells }, (_, cell) => cell)
      .filter((cell) => number(cell) >= 0).sort((a, b) => number(a) - number(b));
    level.groups[kind] = { strip: kind === "synthetic" ? level.icons : atlas.thumbs, rows, numbers: rows.map(number) };
  }
  const size = camera.scale / level.side;
  return {
    ...level.groups[kind], from: level.at, to: level.at, t: 0, rgba: cellColours.get(level), size, alpha,
    frame: state.colour === "none" ? 0 : Math.max(1.5, size / 18), grow: level.grow, shown: null,
  };
}

// Which points are pictures where pictures may be `least` apart. Who is sought is alone a picture.
function enter(least) {
  if (!spacing || spacingOf !== matches) {
    const order = byImportance(atlas, matches);
    const found = spacings(atlas.xy, order);
    spacing = new Float32Array(atlas.pictured.length);
    order.forEach((row, i) => { spacing[atlas.thumbOf[row]] = found[i]; });
    spacingOf = matches;
    arrived = new Float32Array(spacing.length);
    entered = null;
  }
  const now = performance.now(), all = !entered || morph || calm.matches;
  entered = entered || new Float64Array(spacing.length);
  let coming = false;
  for (let i = 0; i < spacing.length; i++) {
    if (spacing[i] < least) { arrived[i] = entered[i] = 0; continue; }
    if (!entered[i]) entered[i] = all ? now - ENTRY : now;
    arrived[i] = Math.min(1, (now - entered[i] + 16) / ENTRY);
    coming = coming || arrived[i] < 1;
  }
  if (coming) draw();
}

// How large a row's picture is among points now; 0 while it gives way to others.
function shownAmongPoints(row) {
  const number = atlas.thumbOf[row];
  if (number < 0 || !spacing) return 0;
  const size = pointPicture();
  return spacing[number] >= (TOUCH * size) / camera.scale ? size : 0;
}

// ---- where things are on the screen -------------------------------------------------------
const toScreen = (x, y) => [
  (x - camera.x) * camera.scale + width / 2, (y - camera.y) * camera.scale + height / 2,
];
const toWorld = (sx, sy) => [
  (sx - width / 2) / camera.scale + camera.x, (sy - height / 2) / camera.scale + camera.y,
];

// World centre of a row, and the side of its picture on the screen.
function placeOfRow(row) {
  if (state.view === "cells") {
    const level = levelNow();
    return placeOfCell(level, level.of[row]);
  }
  const { at } = views[state.view];
  let x = at[2 * row], y = at[2 * row + 1];
  if (morph) {
    const from = views[morph.from].at;
    x = from[2 * row] + (x - from[2 * row]) * morph.t;
    y = from[2 * row + 1] + (y - from[2 * row + 1]) * morph.t;
  }
  const look = lookOf(views[state.view]);
  const size = views[state.view].unit
    ? views[state.view].unit * camera.scale
    : shownAmongPoints(row) || look.dots.size;
  return { x, y, size };
}

function placeOfCell(level, cell) {
  return {
    x: level.at[2 * cell], y: level.at[2 * cell + 1],
    size: (camera.scale / level.side) * level.grow[cell],
  };
}

const placeOf = (thing) => (thing.level ? placeOfCell(thing.level, thing.cell) : placeOfRow(thing.row));

function thingAt(sx, sy) {
  const [x, y] = toWorld(sx, sy);
  if (state.view === "cells") {
    const level = levelNow();
    const column = Math.floor(x * level.side), line = Math.floor(y * level.side);
    if (column < 0 || line < 0 || column >= level.side || line >= level.side) return null;
    const cell = level.where.get(line * level.side + column);
    return cell === undefined ? null : { level, cell };
  }
  if (views[state.view].unit) {
    const row = views[state.view].find(x, y);
    return row < 0 ? null : { row };
  }
  // Among points: the picture on top, else the nearest dot within a few pixels.
  const reach = Math.max(pointPicture() / 2, 10) / camera.scale;
  let top = -1, dot = -1, least = (Math.max(7, lookOf(views.points).dots.size / 2 + 3) / camera.scale) ** 2;
  pointGrid.around(x, y, reach, (row) => {
    const dx = Math.abs(atlas.xy[2 * row] - x), dy = Math.abs(atlas.xy[2 * row + 1] - y);
    const far = dx * dx + dy * dy;
    if (far < least) { least = far; dot = row; }
    if (Math.max(dx, dy) < reach && Math.max(dx, dy) < shownAmongPoints(row) / 2 / camera.scale && row > top) top = row;
  });
  const row = top >= 0 ? top : dot;
  return row < 0 ? null : { row };
}

// ---- drawing ------------------------------------------------------------------------------
const eased = (t) => t * t * (3 - 2 * t);

function step(now) {
  const share = (moving, span) => {
    moving.start = moving.start || now;
    return Math.min(1, (now - moving.start) / span);
  };
  if (morph) {
    const t = share(morph, 650);
    morph.t = eased(t);
    if (t === 1) morph = null; else draw();
  }
  if (flight) {
    const t = share(flight, 380), s = eased(t), { from, to } = flight;
    camera.scale = from.scale * (to.scale / from.scale) ** s;
    // Along a straight line on the screen: what is aimed at does not swing while one zooms.
    const way = Math.abs(to.scale / from.scale - 1) < 1e-6 ? s : (1 - from.scale / camera.scale) / (1 - from.scale / to.scale);
    for (const key of ["x", "y"]) camera[key] = from[key] + (to[key] - from[key]) * way;
    if (t === 1) { Object.assign(camera, to); flight = null; remember(); } else draw();
  }
  if (fade) {
    const t = share(fade, 180);
    fade.t = eased(t);
    if (t === 1) fade = null; else draw();
  }
}

function paint() {
  renderer.render(compose(), ratio);
  over.setTransform(ratio, 0, 0, ratio, 0, 0);
  over.clearRect(0, 0, width, height);
  over.imageSmoothingQuality = "high";
  const focus = state.hovered || state.pinned;
  if (focus) drawFocus(focus);
  say();
}

function say() {
  let text;
  if (matches) text = matchCount ? `${counted(matchCount)} found` : "nothing found";
  else if (state.view === "cells") text = `${levelNow().side} × ${levelNow().side} squares`;
  else text = "";
  if (find("count").textContent !== text) find("count").textContent = text;
}

function outline(x, y, size, colour, thickness) {
  over.strokeStyle = colour;
  over.lineWidth = thickness;
  over.strokeRect(x - size / 2 - thickness / 2, y - size / 2 - thickness / 2, size + thickness, size + thickness);
}

function drawRow(row, x, y, size) {
  if (atlas.thumbOf[row] >= 0) paintPicture(over, atlas.thumbs, atlas.thumbOf[row], x - size / 2, y - size / 2, size);
  else {
    over.fillStyle = `rgb(${rowRgb(row).join(",")})`;
    over.fillRect(x - size / 2, y - size / 2, size, size);
  }
}

// The picture in hand, larger, with lines to its true neighbours: whole where they are as near on
// the map, dashed where the map has torn them apart.
function drawFocus(thing) {
  const { accent } = theme;
  if (thing.level || state.view === "cells") {
    const level = levelNow();
    if (thing.level && thing.level !== level) return;
    const { x, y, size } = placeOfCell(level, thing.level ? thing.cell : level.of[thing.row]);
    outline(...toScreen(x, y), size, accent, 3);
    return;
  }
  const own = placeOfRow(thing.row);
  const [sx, sy] = toScreen(own.x, own.y);
  const near = Array.from(atlas.nearOf(thing.row), (row) => ({ row, ...placeOfRow(row) }));
  over.strokeStyle = accent;
  over.lineWidth = 1.5;
  over.globalAlpha = 0.85;
  near.forEach(({ x, y }, i) => {
    over.setLineDash(atlas.isKept(thing.row, i) ? [] : [5, 4]);
    over.beginPath();
    over.moveTo(sx, sy);
    over.lineTo(...toScreen(x, y));
    over.stroke();
  });
  over.setLineDash([]);
  over.globalAlpha = 1;
  for (const { row, x, y, size } of near.reverse()) {
    const [nx, ny] = toScreen(x, y);
    const shown = Math.max(size - 1, 22);
    drawRow(row, nx, ny, shown);
    outline(nx, ny, shown, accent, 2);
  }
  const large = Math.max(own.size * 1.25, Math.min(48, atlas.thumbs.size));
  drawRow(thing.row, sx, sy, large);
  outline(sx, sy, large, accent, 3);
}

// ---- the panel ----------------------------------------------------------------------------
const panel = makePanel(find("found"), atlas, {
  pick(row) { pin({ row }); flyTo(row); },
  find(text) { seek(text, true); },
  colourOf: (own) => (atlas.classOf && (classesTell || state.colour === "class") && own >= 0 && own < atlas.classes.length
    ? `rgb(${classRgb(own).join(",")})` : null),
});

function refreshPanel() {
  const thing = state.hovered || state.pinned;
  panel.show(thing);
}

// ---- what one can do ----------------------------------------------------------------------
const same = (a, b) => a === b || Boolean(a && b && a.row === b.row && a.cell === b.cell && a.level === b.level);

function hover(thing) {
  if (same(state.hovered, thing)) return;
  state.hovered = thing;
  canvas.style.cursor = thing ? "pointer" : "";
  refreshPanel();
  draw();
}

function pin(thing) {
  state.pinned = thing;
  state.hovered = null;
  refreshPanel();
  find("panel").scrollTop = 0;
  find("spoken").textContent = !thing ? "" : thing.level
    ? `${plural(thing.level.sizeOf(thing.cell), "picture")} in this square`
    : `${atlas.nameOf(thing.row)}; ${atlas.keptCount(thing.row)} of ${k} neighbours are as near on the map`;
  remember();
  draw();
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
  if (calm.matches) { Object.assign(camera, to); flight = null; remember(); } else flight = { from: { ...camera }, to };
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
  if (name === state.view) return;
  const old = state.view;
  state.view = name;
  press("views", "view", name);
  const able = atlas.levels.some((level) => level.icons);
  find("icons").hidden = !(able && name === "cells");
  morph = !still && old !== "cells" && name !== "cells" && !calm.matches ? { from: old, t: 0, start: 0 } : null;
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

function colour(kind) {
  state.colour = kind;
  find("colour").value = kind;
  find("legend").hidden = kind !== "trust";
  colourRows();
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
  colourRows();
  remember();
}

function nextMatch() { // the one after the picture in hand
  if (!matchCount) return;
  let row = state.pinned && state.pinned.row !== undefined ? state.pinned.row : -1;
  do row = (row + 1) % count; while (!matches[row]);
  pin({ row });
  flyTo(row);
}

// The picture or square that lies next in a direction: near, and rather straight ahead.
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
  paint(); // in this very task, while the drawing is still there
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
  if (travelled < 4 && fingers.size === 1) return; // a trembling click
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
find("colour").addEventListener("change", (event) => colour(event.target.value));
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

// ---- the address remembers ----------------------------------------------------------------
// #view=points&at=0.31,0.62,4.5&icons=synthetic&colour=trust&find=dog&row=12 (or cell=SIDE.NUMBER);
// `at` is the middle and how many times nearer than everything.
let written = 0;
const home = () => (count > 2500 ? "points" : "map");
function address() {
  const parts = [];
  const add = (key, value) => parts.push(`${key}=${encodeURIComponent(value).replace(/%2C/g, ",").replace(/%3A/g, ":")}`);
  if (location.hash.includes("renderer=")) add("renderer", rendererAsked() || "");
  if (state.view !== home()) add("view", state.view);
  const whole = wholeCamera();
  const near = camera.scale / whole.scale;
  const moved = Math.hypot(camera.x - whole.x, camera.y - whole.y) * camera.scale;
  if (!flight && (Math.abs(near - 1) > 0.01 || moved > 1)) add("at", `${camera.x.toFixed(4)},${camera.y.toFixed(4)},${near.toFixed(2)}`);
  if (state.icons !== "sample") add("icons", state.icons);
  if (state.colour !== "none") add("colour", state.colour);
  if (state.find) add("find", state.find);
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
  const asked = new URLSearchParams(location.hash.slice(1));
  const wanted = asked.get("view");
  show(views[wanted] || wanted === "cells" ? wanted : home(), { still: true });
  const icons = asked.get("icons") === "synthetic" && atlas.levels.some((level) => level.icons) ? "synthetic" : "sample";
  if (icons !== state.icons) choose(icons);
  const painted = asked.get("colour") || "none";
  if ([...find("colour").options].some((option) => option.value === painted) && painted !== state.colour) colour(painted);
  if ((asked.get("find") || "") !== state.find) seek(asked.get("find") || "", true);
  const spot = (asked.get("at") || "").split(",").map(Number);
  flight = null;
  Object.assign(camera, wholeCamera());
  if (spot.length === 3 && spot.every(Number.isFinite)) {
    Object.assign(camera, { x: spot[0], y: spot[1], scale: clampScale(spot[2] * fitScale()) });
    keepInSight();
  }
  const row = Number(asked.get("row"));
  const [side, cell] = (asked.get("cell") || "").split(".").map(Number);
  const level = atlas.levels.find((one) => one.side === side);
  if (asked.get("row") && Number.isInteger(row) && row >= 0 && row < count) pin({ row });
  else if (level && state.view === "cells" && cell >= 0 && cell < level.cells) pin({ level, cell });
  else if (state.pinned) pin(null);
  remember();
  draw();
}
addEventListener("hashchange", recall);

// ---- begin --------------------------------------------------------------------------------
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
  find("colour").querySelector("[value=class]").remove();
}
press("views", "view", state.view);
find("known").replaceChildren(...atlas.classes.slice(0, 1000).map((name) => element("option", { value: name })));
new ResizeObserver(measure).observe(canvas);
measure();
dress();
colourRows();
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

// For scripts and tests: where a picture is on the page, what lies at a place, what is shown.
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
  look(x, y, near) { // the middle, and how many times nearer than everything
    flight = null;
    Object.assign(camera, { x, y, scale: clampScale(near * fitScale()) });
    remember();
    draw();
  },
  drawNow() { paint(); renderer.finish(); },
  loseContext: () => renderer.loseContext(),
  state: () => ({
    view: state.view, icons: state.icons, colour: state.colour, find: state.find, found: matchCount,
    x: camera.x, y: camera.y, scale: camera.scale, near: camera.scale / fitScale(),
    hovered: state.hovered && state.hovered.row, pinned: state.pinned && state.pinned.row,
    cell: state.pinned && state.pinned.level ? state.pinned.cell : null,
    side: state.view === "cells" ? levelNow().side : null,
    moving: Boolean(morph || flight || fade || waiting), ready: sheetsLeft === 0 && renderer.settled(),
  }),
};
