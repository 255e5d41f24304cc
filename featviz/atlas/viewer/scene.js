// The state of the page, and from it and the camera the frame that is drawn.
//
// The camera is the world point in the middle of the canvas and the CSS pixels of a world unit. `compose` makes a frame, which a renderer (gl.js or flat.js) draws:
//
//   ground    [r, g, b]
//   camera    {x, y, scale}
//   rows      null, or {from, to, t, rgba, dots}: two views and the progress of the rows from one to
//             the other, their colors (four numbers a row), and
//             dots: null or {size, alpha, square, bareOnly: only rows without a picture,
//             ranges: null, or which of `atlas.tiles.rows` are drawn}
//   pictures  groups {strip, numbers, rows, from, to, t, rgba, size, alpha, frame, grow, shown}:
//             picture numbers[i] (or i) of the strip is that of row (or cell) rows[i], which is at
//             `from` and `to` and `grow` times as large as others; `frame` is the thickness of a
//             frame; shown[i] is the progress of a picture's appearance, 0 to 1
//
// Sizes are CSS pixels. The selection is drawn on a second canvas above.

const find = (id) => document.getElementById(id);
const rendererWanted = () => ((location.search + location.hash).match(/[?&#]renderer=(canvas|webgl2)(?=&|#|$)/) || [])[1];
const KEPT = [[213, 94, 0], [230, 159, 0], [150, 150, 150], [86, 180, 233], [0, 114, 178]];
const GRAY = [140, 140, 140];
const DIM = 0.14;
const ENTRY = 160; // milliseconds in which a picture appears
const TILED = 50000; // rows above which only visible tiles of the points are drawn
const MOVING = 60000; // dots that are drawn while the map moves
const REST = 150; // milliseconds without a move after which all are drawn

const atlas = readAtlas();
const { count, k } = atlas;
const views = makeViews(atlas);
const pointGrid = makeGrid(atlas.xy);
atlas.tiles = count > TILED ? makeTiles(atlas.xy) : null;
for (const level of atlas.levels) {
  level.at = Float32Array.from({ length: 2 * level.cells }, (_, i) => (level.place[i] + 0.5) / level.side);
  // Squares with more pictures are drawn larger.
  level.grow = Float32Array.from({ length: level.cells }, (_, cell) => 0.6 + 0.36 * Math.sqrt(level.sizeOf(cell) / level.most));
}
const classesTell = atlas.classes.length > 0 && count >= 1.5 * atlas.classes.length;
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

// ---- state --------------------------------------------------------------------------------
const state = {
  view: count > 2500 || !views.map ? "points" : "map", icons: "sample", color: "none", find: "", names: true,
  hovered: null, pinned: null, // {row} or {level, cell}
};
const camera = { x: 0.5, y: 0.5, scale: 1 };
let matches = null, matchCount = 0; // Uint8Array over rows, null without a search
let morph = null; // {from, t, start}: rows moving from one view to another
let flight = null; // the camera moving
let fade = null; // {level, start, t}: the squares that are being replaced
let lastLevel = null;
let width = 1, height = 1, ratio = 1;
let spacing = null; // of the pictured rows, see `spacings`
let spacingOf = null; // the matches that it is for
let labels = null; // names of classes among points, see `makeLabels`
let arrived = null, entered = null; // of pictures among points: progress of appearing, since when
let rowColors = null;
const cellColors = new Map();

// ---- renderer -----------------------------------------------------------------------------
let canvas = find("canvas");
const overlay = find("overlay");
const over = overlay.getContext("2d");
let waiting = false, stale = true; // stale: more than the marks above the map has changed
function draw(marksAlone = false) {
  stale = stale || !marksAlone;
  if (waiting) return;
  waiting = true;
  requestAnimationFrame((now) => { waiting = false; step(now); paint(); });
}

function makeRenderer() {
  const wanted = rendererWanted();
  const made = wanted === "canvas" ? null : makeGlRenderer(canvas, atlas, views, wanted === "webgl2", draw);
  if (made) return made;
  // A canvas with a WebGL context cannot have a 2-D one.
  const fresh = canvas.cloneNode(true);
  canvas.replaceWith(fresh);
  canvas = fresh;
  return makeFlatRenderer(canvas, atlas, views, draw);
}
const renderer = makeRenderer();

// ---- colors ------------------------------------------------------------------------------
const styleOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const toRgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const palette = atlas.colors.map(toRgb);
let theme = { ground: [255, 255, 255], accent: "#0072b2", ink: "#000000" };

const classRgb = (own) => (own < atlas.classes.length ? palette[atlas.color[own]] : GRAY);
const keptRgb = (share) => KEPT[Math.min(4, Math.floor(share * 5))];

function rowRgb(row) {
  if (state.color === "kept") return keptRgb(atlas.keptCount(row) / k);
  if (atlas.classOf && (state.color === "class" || classesTell)) return classRgb(atlas.classOf[row]);
  const number = atlas.thumbOf[row];
  return number < 0 ? GRAY : vivid(atlas.tint.subarray(3 * number, 3 * number + 3));
}

// A mean color is grayer than what it is the mean of.
function vivid(rgb) {
  const gray = 0.3 * rgb[0] + 0.59 * rgb[1] + 0.11 * rgb[2];
  return Array.from(rgb, (value) => Math.min(235, Math.max(30, gray + 1.6 * (value - gray))));
}

function colorRows() {
  const rgba = new Uint8Array(4 * count);
  for (let row = 0; row < count; row++) {
    rgba.set(rowRgb(row), 4 * row);
    rgba[4 * row + 3] = !matches || matches[row] ? 255 : 255 * DIM;
  }
  rowColors = rgba;
  for (const level of atlas.levels) {
    const own = new Uint8Array(4 * level.cells);
    for (let cell = 0; cell < level.cells; cell++) {
      own.set(cellRgb(level, cell), 4 * cell);
      own[4 * cell + 3] = !matches || level.membersOf(cell).some((row) => matches[row]) ? 255 : 255 * DIM;
    }
    cellColors.set(level, own);
  }
  draw();
}

function cellRgb(level, cell) {
  if (state.color === "kept") {
    let kept = 0;
    for (const row of level.membersOf(cell)) kept += atlas.keptCount(row);
    return keptRgb(kept / k / level.sizeOf(cell));
  }
  return atlas.classOf ? classRgb(atlas.classOf[level.sample[cell]]) : GRAY;
}

// ---- what is shown at each zoom ----------------------------------------------------------
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

// The side of a picture among points: large enough to recognize, and slowly growing with zoom.
function pointPicture() {
  const fit = scaleToFit(views.points.box);
  const base = Math.min(72, Math.max(34, (0.7 * fit * Math.sqrt(views.points.box.width * views.points.box.height)) / Math.sqrt(count)));
  return Math.min(Math.max(72, atlas.thumbs.size), base * Math.max(1, camera.scale / fit) ** 0.3);
}
const TOUCH = 0.94; // least distance of pictures among points, in units of their side

// The finest squares that are still large enough.
function levelNow() {
  const able = atlas.levels.filter((level) => state.icons === "sample" || level.icons);
  let best = able[0];
  for (const level of able) if (camera.scale / level.side >= 44) best = level;
  return best;
}

// Dots and pictures of one view at this zoom.
function lookOf(view) {
  const thick = (size) => (state.color === "none" ? 0 : Math.max(1.5, size / 14));
  if (!view.unit) {
    const size = pointPicture();
    const dot = Math.min(8, Math.max(2.4, (0.42 * camera.scale) / Math.sqrt(count)));
    return {
      dots: { size: dot, alpha: count > 50000 ? 0.75 : 0.9, square: false, bareOnly: false },
      pictures: { size, alpha: 1, frame: thick(size), spacing: (TOUCH * size) / camera.scale },
    };
  }
  const place = view.unit * camera.scale;
  const shown = Math.min(1, Math.max(0, (place - 5) / 2)); // pictures under 5 pixels are not recognizable
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

function blend(from, to, t) { // two looks while rows move between views
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
    if (lastLevel && lastLevel.level !== level && lastLevel.icons === state.icons && !reducedMotion.matches) {
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
  if (dots) dots.ranges = atlas.tiles && !morph && state.view === "points" ? visibleRanges(dots.size) : null;
  frame.rows = { from, to, t, dots, rgba: rowColors };
  if (pictures) {
    const { size, alpha, frame: thick, spacing: least } = pictures;
    if (least) enter(least);
    frame.pictures = [{
      strip: atlas.thumbs, numbers: null, rows: atlas.pictured, from: from.at, to: to.at, t,
      rgba: rowColors, size, alpha, frame: thick, grow: null, shown: least ? arrived : null,
    }];
  }
  return frame;
}

// Of the tiles in sight all rows, while the camera moves an even sample.
let seenFrom = "", resting = 0;
function visibleRanges(size) {
  const place = `${camera.x} ${camera.y} ${camera.scale}`, moved = place !== seenFrom;
  seenFrom = place;
  if (moved) {
    clearTimeout(resting);
    resting = setTimeout(() => draw(), REST);
  }
  const [x0, y0] = toWorld(-size, -size), [x1, y1] = toWorld(width + size, height + size);
  return atlas.tiles.ranges(x0, y0, x1, y1, moved ? MOVING : Infinity);
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
    ...level.groups[kind], from: level.at, to: level.at, t: 0, rgba: cellColors.get(level), size, alpha,
    frame: state.color === "none" ? 0 : Math.max(1.5, size / 18), grow: level.grow, shown: null,
  };
}

// Which points are pictures where pictures may be `least` apart; during a search only its matches.
function enter(least) {
  if (!spacing || spacingOf !== matches) {
    const order = byImportance(atlas, matches);
    const found = spacings(atlas.xy, order);
    spacing = new Float32Array(atlas.pictured.length);
    order.forEach((row, i) => { spacing[atlas.thumbOf[row]] = found[i]; });
    spacingOf = matches;
    if (!labels && !matches) labels = classesTell ? makeLabels(atlas, spacing) : [];
    arrived = new Float32Array(spacing.length);
    entered = null;
  }
  const now = performance.now(), all = !entered || morph || reducedMotion.matches;
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

// The side of a row's picture among points now; 0 while it is a dot.
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

// World center of a row, and the side of its picture on the screen.
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
