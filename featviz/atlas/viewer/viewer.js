// The atlas's page. Everything it shows is in the JSON element #data; nothing is fetched.
//
// World coordinates: each view is a rectangle of width 1 with y downwards. The camera says which
// world point is in the middle of the canvas and how many CSS pixels a world unit has.
(function () {
  "use strict";

  const data = JSON.parse(document.getElementById("data").textContent);
  const count = data.paths.length;
  const find = (id) => document.getElementById(id);
  const canvas = find("canvas");
  const pen = canvas.getContext("2d");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  // ---- state ------------------------------------------------------------------------------
  let view = "map";
  let icons = "sample";
  let trust = false;
  let hovered = null; // {row} or {level, cell}
  let pinned = null;
  let matches = null; // Set of rows, or null when nothing is sought
  const camera = { x: 0.5, y: 0.5, scale: 1 };
  let morph = null; // {from, start}: rows on their way from one view to another
  let flight = null; // the camera on its way
  let width = 1, height = 1;

  // ---- where things are -------------------------------------------------------------------
  const places = {};
  for (const name of ["map", "mosaic"]) {
    const { columns, rows, at } = data.views[name];
    places[name] = {
      size: 1 / columns, height: rows / columns,
      x: (row) => at[2 * row] / columns, y: (row) => at[2 * row + 1] / columns,
    };
  }
  const lookup = {};
  for (const name of ["map", "mosaic"]) {
    const { columns, at } = data.views[name];
    lookup[name] = new Map();
    for (let row = 0; row < count; row++) {
      lookup[name].set(at[2 * row + 1] * columns + at[2 * row], row);
    }
  }
  for (const level of data.levels) {
    level.where = new Map(level.cells.map((cell, i) => [cell.row * level.side + cell.column, i]));
    level.most = Math.max(...level.cells.map((cell) => cell.members.length));
  }

  const worldHeight = () => (view === "cells" ? 1 : places[view].height);
  const fitScale = () => 0.96 * Math.min(width, height / worldHeight());

  // The finest squares that are still large enough to be looked at.
  function currentLevel() {
    const able = data.levels.filter((level) => icons === "sample" || level.icons);
    let best = able[0];
    for (const level of able) if (camera.scale / level.side >= 44) best = level;
    return best;
  }

  function boxOfRow(row) { // world x, y, size; follows a morph
    if (view === "cells") {
      const level = currentLevel();
      const cell = level.cells[level.of[row]];
      return [cell.column / level.side, cell.row / level.side, 1 / level.side];
    }
    const here = places[view];
    const box = [here.x(row), here.y(row), here.size];
    if (!morph) return box;
    const from = places[morph.from];
    const t = morph.t;
    return [
      from.x(row) + (box[0] - from.x(row)) * t,
      from.y(row) + (box[1] - from.y(row)) * t,
      from.size + (box[2] - from.size) * t,
    ];
  }

  function boxOfCell(level, cell) { // squares with more pictures are drawn larger
    const share = Math.sqrt(cell.members.length / level.most);
    const size = (0.58 + 0.38 * share) / level.side;
    return [
      (cell.column + 0.5) / level.side - size / 2, (cell.row + 0.5) / level.side - size / 2, size,
    ];
  }

  const toScreen = (x, y) => [
    (x - camera.x) * camera.scale + width / 2, (y - camera.y) * camera.scale + height / 2,
  ];
  const toWorld = (sx, sy) => [
    (sx - width / 2) / camera.scale + camera.x, (sy - height / 2) / camera.scale + camera.y,
  ];

  function thingAt(sx, sy) {
    const [x, y] = toWorld(sx, sy);
    if (view === "cells") {
      const level = currentLevel();
      const column = Math.floor(x * level.side), line = Math.floor(y * level.side);
      if (column < 0 || line < 0 || column >= level.side || line >= level.side) return null;
      const cell = level.where.get(line * level.side + column);
      return cell === undefined ? null : { level, cell };
    }
    const { columns, rows } = data.views[view];
    const column = Math.floor(x * columns), line = Math.floor(y * columns);
    if (column < 0 || line < 0 || column >= columns || line >= rows) return null;
    const row = lookup[view].get(line * columns + column);
    return row === undefined ? null : { row };
  }

  // ---- pictures ---------------------------------------------------------------------------
  function loadSheets(strip) {
    strip.images = strip.sheets.map((source) => {
      const image = new Image();
      image.onload = () => { image.ready = true; draw(); refreshPanel(); };
      image.src = source;
      return image;
    });
  }
  loadSheets(data.thumbs);
  for (const level of data.levels) if (level.icons) loadSheets(level.icons);

  function paint(target, strip, number, x, y, size) {
    const sheet = strip.images[Math.floor(number / strip.per_sheet)];
    const place = number % strip.per_sheet;
    if (!sheet.ready) {
      target.fillStyle = "rgba(128,128,128,.35)";
      target.fillRect(x, y, size, size);
      return;
    }
    target.drawImage(
      sheet, (place % strip.columns) * strip.size, Math.floor(place / strip.columns) * strip.size,
      strip.size, strip.size, x, y, size, size,
    );
  }

  // ---- drawing ----------------------------------------------------------------------------
  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame((now) => { waiting = false; step(now); render(); });
  }

  function step(now) {
    if (morph) {
      morph.start = morph.start || now;
      const t = Math.min(1, (now - morph.start) / 600);
      morph.t = t * t * (3 - 2 * t);
      if (t === 1) morph = null; else draw();
    }
    if (flight) {
      flight.start = flight.start || now;
      const t = Math.min(1, (now - flight.start) / 350), s = t * t * (3 - 2 * t);
      for (const key of ["x", "y"]) camera[key] = flight.from[key] + (flight.to[key] - flight.from[key]) * s;
      camera.scale = flight.from.scale * Math.pow(flight.to.scale / flight.from.scale, s);
      if (t === 1) flight = null; else draw();
    }
  }

  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const TRUST = ["#d55e00", "#e69f00", "#b9b9b9", "#56b4e9", "#0072b2"];
  const trustColour = (share) => TRUST[Math.min(4, Math.floor(share * 5))];

  function render() {
    const ratio = window.devicePixelRatio || 1;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.fillStyle = style("--ground");
    pen.fillRect(0, 0, width, height);
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "high";
    let shown = 0;
    if (view === "cells") shown = renderCells();
    else shown = renderRows();
    const focus = hovered || pinned;
    if (focus) renderFocus(focus);
    const what = view === "cells"
      ? `${shown} squares, ${currentLevel().side} × ${currentLevel().side}`
      : `${shown} of ${count} pictures in sight`;
    const text = matches ? `${matches.size} found · ${what}` : what;
    if (find("count").textContent !== text) find("count").textContent = text;
  }

  function renderRows() {
    const dim = Number(style("--dim"));
    const gap = camera.scale * places[view].size > 16 ? 1 : 0;
    let shown = 0;
    for (let row = 0; row < count; row++) {
      const [x, y, size] = boxOfRow(row);
      const [sx, sy] = toScreen(x, y);
      const side = size * camera.scale - gap;
      if (sx + side < 0 || sy + side < 0 || sx > width || sy > height) continue;
      shown++;
      pen.globalAlpha = matches && !matches.has(row) ? dim : 1;
      paint(pen, data.thumbs, row, sx, sy, side);
      if (trust) frame(sx, sy, side, trustColour(data.kept[row]), Math.max(1.5, side / 14), true);
    }
    pen.globalAlpha = 1;
    return shown;
  }

  function renderCells() {
    const level = currentLevel();
    const dim = Number(style("--dim"));
    let shown = 0;
    level.cells.forEach((cell, i) => {
      const [x, y, size] = boxOfCell(level, cell);
      const [sx, sy] = toScreen(x, y);
      const side = size * camera.scale;
      if (sx + side < 0 || sy + side < 0 || sx > width || sy > height) return;
      shown++;
      pen.globalAlpha = matches && !cell.members.some((row) => matches.has(row)) ? dim : 1;
      if (icons === "synthetic") paint(pen, level.icons, i, sx, sy, side);
      else paint(pen, data.thumbs, cell.sample, sx, sy, side);
      if (trust) {
        const mean = cell.members.reduce((sum, row) => sum + data.kept[row], 0) / cell.members.length;
        frame(sx, sy, side, trustColour(mean), Math.max(1.5, side / 18), true);
      }
    });
    pen.globalAlpha = 1;
    return shown;
  }

  function frame(x, y, size, colour, thickness, inside) {
    const shift = inside ? thickness / 2 : -thickness / 2;
    pen.strokeStyle = colour;
    pen.lineWidth = thickness;
    pen.strokeRect(x + shift, y + shift, size - 2 * shift, size - 2 * shift);
  }

  function renderFocus(thing) { // the picture in hand, larger, with lines to its true neighbours
    if (thing.level) {
      if (view !== "cells" || thing.level !== currentLevel()) return;
      const [x, y, size] = boxOfCell(thing.level, thing.level.cells[thing.cell]);
      const [sx, sy] = toScreen(x, y);
      frame(sx, sy, size * camera.scale, style("--accent"), 3, false);
      return;
    }
    if (view === "cells") return;
    const [x, y, size] = boxOfRow(thing.row);
    const [sx, sy] = toScreen(x, y);
    const side = size * camera.scale;
    const accent = style("--accent");
    pen.strokeStyle = accent;
    pen.lineWidth = 1.5;
    for (let i = 0; i < data.k; i++) {
      const other = data.neighbors[thing.row * data.k + i];
      const [ox, oy, osize] = boxOfRow(other);
      const [tx, ty] = toScreen(ox, oy);
      const oside = osize * camera.scale;
      pen.globalAlpha = 0.85;
      pen.setLineDash(data.keeps[thing.row * data.k + i] ? [] : [5, 4]);
      pen.beginPath();
      pen.moveTo(sx + side / 2, sy + side / 2);
      pen.lineTo(tx + oside / 2, ty + oside / 2);
      pen.stroke();
      pen.setLineDash([]);
      pen.globalAlpha = 1;
      frame(tx, ty, oside, accent, 2, false);
      paint(pen, data.thumbs, other, tx, ty, oside);
    }
    const large = Math.max(side * 1.25, 64);
    const bx = sx + side / 2 - large / 2, by = sy + side / 2 - large / 2;
    paint(pen, data.thumbs, thing.row, bx, by, large);
    frame(bx, by, large, accent, 3, false);
  }

  // ---- the panel --------------------------------------------------------------------------
  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  function small(strip, number, pixels) {
    const made = element("canvas");
    made.width = made.height = pixels;
    const brush = made.getContext("2d");
    brush.imageSmoothingQuality = "high";
    paint(brush, strip, number, 0, 0, pixels);
    return made;
  }

  const nameOf = (row) => data.names[data.name[row]];

  function pictureList(rows, extra) {
    const list = element("ol", undefined, "near");
    rows.forEach((row, i) => {
      const item = element("li");
      const button = element("button");
      button.type = "button";
      button.title = `${nameOf(row)} (${data.paths[row]})`;
      button.append(small(data.thumbs, row, 112));
      if (extra) {
        const { text, torn } = extra(i);
        button.append(element("b", text));
        if (torn) item.className = "torn";
      }
      button.append(element("span", nameOf(row)));
      button.addEventListener("click", () => { pin({ row }); flyTo(row); });
      item.append(button);
      list.append(item);
    });
    return list;
  }

  let panelShows = null;
  function refreshPanel(force = true) {
    const thing = hovered || pinned;
    if (!force && thing === panelShows) return;
    panelShows = thing;
    const box = find("found");
    box.replaceChildren();
    if (!thing) {
      box.append(element("p", "Point at a picture to see what the network finds near it."));
      return;
    }
    if (thing.level) describeCell(box, thing.level, thing.cell);
    else describeRow(box, thing.row);
  }

  function describeRow(box, row) {
    const figure = element("figure");
    figure.append(small(data.thumbs, row, 2 * data.thumbs.size));
    const big = element("div", undefined, "big");
    big.append(figure);
    const kept = Math.round(data.kept[row] * data.k);
    box.append(
      big, element("h2", nameOf(row)), element("p", data.paths[row], "path"),
      element("p", `The map keeps ${kept} of its ${data.k} nearest beside it.`),
      element("h3", `Nearest in ${data.layer}, by ${data.distance}`),
    );
    const from = row * data.k;
    const rows = data.neighbors.slice(from, from + data.k);
    box.append(pictureList(rows, (i) => ({
      text: data.distances[from + i].toFixed(2), torn: !data.keeps[from + i],
    })));
  }

  function describeCell(box, level, number) {
    const cell = level.cells[number];
    const big = element("div", undefined, "big");
    const add = (strip, at, text) => {
      const figure = element("figure");
      figure.append(small(strip, at, 2 * strip.size), element("figcaption", text));
      big.append(figure);
    };
    add(data.thumbs, cell.sample, "nearest to the mean");
    if (level.icons) add(level.icons, number, `made for the mean, cosine ${cell.cosine.toFixed(2)}`);
    const names = new Map();
    for (const row of cell.members) names.set(nameOf(row), (names.get(nameOf(row)) || 0) + 1);
    const ranked = [...names].sort((a, b) => b[1] - a[1]).slice(0, 3).map(([name]) => name);
    box.append(
      big, element("h2", ranked.join(", ")),
      element("p", `${cell.members.length} pictures in this square of ${level.side} × ${level.side}.`),
      element("h3", "Some of them"), pictureList(cell.members.slice(0, 15)),
    );
  }

  // ---- what one can do --------------------------------------------------------------------
  function hover(thing) {
    const same = (a, b) => a === b || (a && b && a.row === b.row && a.cell === b.cell && a.level === b.level);
    if (same(hovered, thing)) return;
    hovered = thing;
    canvas.style.cursor = thing ? "pointer" : "";
    refreshPanel();
    draw();
  }

  function pin(thing) {
    pinned = thing;
    hovered = null;
    refreshPanel();
    remember();
    draw();
  }

  function fly(to) {
    to.scale = clampScale(to.scale);
    if (calm.matches) { Object.assign(camera, to); flight = null; } else flight = { from: { ...camera }, to };
    draw();
  }

  function clampScale(scale) {
    const least = 0.5 * fitScale();
    return Math.min(Math.max(scale, least), Math.max(least, 3000 * Math.sqrt(count) / 10));
  }

  const fit = () => fly({ x: 0.5, y: worldHeight() / 2, scale: fitScale() });

  function flyTo(row) {
    const [x, y, size] = boxOfRow(row);
    fly({ x: x + size / 2, y: y + size / 2, scale: Math.max(camera.scale, 40 / size) });
  }

  function zoom(factor, sx = width / 2, sy = height / 2) {
    const [x, y] = toWorld(sx, sy);
    camera.scale = clampScale(camera.scale * factor);
    const [nx, ny] = toWorld(sx, sy);
    camera.x += x - nx;
    camera.y += y - ny;
    flight = null;
    draw();
  }

  function show(name) {
    if (name === view) return;
    const old = view;
    view = name;
    for (const button of find("views").children) {
      button.setAttribute("aria-pressed", String(button.dataset.view === name));
    }
    const able = data.levels.some((level) => level.icons);
    find("icons").hidden = !(able && name === "cells");
    morph = old !== "cells" && name !== "cells" && !calm.matches ? { from: old, t: 0, start: 0 } : null;
    if (pinned && (pinned.level ? name !== "cells" : name === "cells")) pinned = null;
    hovered = null;
    refreshPanel();
    remember();
    fit();
  }

  function choose(kind) {
    icons = kind;
    for (const button of find("icons").children) {
      button.setAttribute("aria-pressed", String(button.dataset.icons === kind));
    }
    hovered = pinned = null;
    refreshPanel();
    draw();
  }

  function seek(text) {
    const wanted = text.trim().toLowerCase();
    matches = null;
    if (wanted) {
      matches = new Set();
      for (let row = 0; row < count; row++) {
        if (nameOf(row).toLowerCase().includes(wanted) || data.paths[row].toLowerCase().includes(wanted)) matches.add(row);
      }
    }
    draw();
  }

  // The picture that lies next in a direction: near, and rather straight ahead.
  function walk(dx, dy) {
    if (view === "cells") { camera.x += dx * 60 / camera.scale; camera.y += dy * 60 / camera.scale; draw(); return; }
    const [x, y] = pinned ? boxOfRow(pinned.row) : [camera.x, camera.y];
    let best = null, least = Infinity;
    for (let row = 0; row < count; row++) {
      if (pinned && row === pinned.row) continue;
      const [ox, oy] = boxOfRow(row);
      const ahead = (ox - x) * dx + (oy - y) * dy, aside = Math.abs((ox - x) * dy) + Math.abs((oy - y) * dx);
      const cost = pinned ? (ahead > 1e-9 ? ahead + 2.5 * aside : Infinity) : Math.hypot(ox - x, oy - y);
      if (cost < least) { least = cost; best = row; }
    }
    if (best === null) return;
    pin({ row: best });
    const [bx, by, size] = boxOfRow(best);
    const [sx, sy] = toScreen(bx, by), side = size * camera.scale;
    if (sx < 0 || sy < 0 || sx + side > width || sy + side > height) {
      fly({ x: bx + size / 2, y: by + size / 2, scale: camera.scale });
    }
  }

  // ---- pointers ---------------------------------------------------------------------------
  const fingers = new Map();
  let travelled = 0, spread = 0;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at(event));
    travelled = 0;
    spread = 0;
    flight = null;
    canvas.classList.add("moving");
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event);
    const before = fingers.get(event.pointerId);
    if (!before) { hover(thingAt(...now)); return; }
    fingers.set(event.pointerId, now);
    travelled += Math.hypot(now[0] - before[0], now[1] - before[1]);
    const parts = fingers.size;
    camera.x -= (now[0] - before[0]) / camera.scale / parts;
    camera.y -= (now[1] - before[1]) / camera.scale / parts;
    if (parts === 2) {
      const [a, b] = [...fingers.values()];
      const apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (spread) zoom(apart / spread, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      spread = apart;
    }
    draw();
  });
  const release = (event) => {
    const last = fingers.get(event.pointerId);
    fingers.delete(event.pointerId);
    spread = 0;
    if (!fingers.size) canvas.classList.remove("moving");
    if (event.type === "pointerup" && last && travelled < 6) pin(thingAt(...last));
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", () => hover(null));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 18 : 1;
    zoom(Math.exp(-event.deltaY * lines * 0.0016), ...at(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoom(2, ...at(event)));

  // ---- keys and buttons -------------------------------------------------------------------
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", (event) => {
    if (event.target instanceof HTMLInputElement && event.target.type === "search") {
      if (event.key === "Escape") { event.target.value = ""; seek(""); }
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrow = ARROWS[event.key];
    if (arrow && event.target === canvas) {
      event.preventDefault();
      if (event.shiftKey) { camera.x += arrow[0] * 60 / camera.scale; camera.y += arrow[1] * 60 / camera.scale; draw(); }
      else walk(...arrow);
    } else if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "0") fit();
    else if (event.key === "Escape") pin(null);
    else if (event.key === "m") show("map");
    else if (event.key === "o") show("mosaic");
    else if (event.key === "c") show("cells");
  });
  find("closer").addEventListener("click", () => zoom(1.5));
  find("farther").addEventListener("click", () => zoom(1 / 1.5));
  find("whole").addEventListener("click", fit);
  find("views").addEventListener("click", (event) => {
    if (event.target.dataset.view) show(event.target.dataset.view);
  });
  find("icons").addEventListener("click", (event) => {
    if (event.target.dataset.icons) choose(event.target.dataset.icons);
  });
  find("trust").addEventListener("change", (event) => {
    trust = event.target.checked;
    find("legend").hidden = !trust;
    draw();
  });
  find("search").addEventListener("input", (event) => seek(event.target.value));

  // ---- light and dark ---------------------------------------------------------------------
  const root = document.documentElement;
  const night = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : night.matches);
  function named() { find("theme").textContent = isDark() ? "Light" : "Dark"; draw(); }
  find("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    named();
  });
  night.addEventListener("change", named);

  // ---- the address remembers view and picture ---------------------------------------------
  function remember() {
    const parts = [];
    if (view !== "map") parts.push(`view=${view}`);
    if (pinned && pinned.row !== undefined) parts.push(`row=${pinned.row}`);
    history.replaceState(null, "", parts.length ? `#${parts.join("&")}` : location.pathname + location.search);
  }
  function recall() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const row = Number(asked.get("row"));
    const wanted = asked.get("view");
    if (wanted && (places[wanted] || wanted === "cells")) show(wanted);
    if (asked.has("row") && Number.isInteger(row) && row >= 0 && row < count && view !== "cells") pin({ row });
  }

  // ---- begin ------------------------------------------------------------------------------
  function measure() {
    const first = width === 1;
    const whole = Math.abs(camera.scale / fitScale() - 1) < 0.01;
    width = Math.max(1, canvas.clientWidth);
    height = Math.max(1, canvas.clientHeight);
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    if (first || whole) Object.assign(camera, { x: 0.5, y: worldHeight() / 2, scale: fitScale() });
    draw();
  }
  new ResizeObserver(measure).observe(canvas);
  measure();
  named();
  refreshPanel();
  recall();

  // For scripts and tests: where a picture is on the page, and what the page shows.
  window.atlas = {
    screenOf(row) {
      const [x, y, size] = boxOfRow(row);
      const box = canvas.getBoundingClientRect();
      const [sx, sy] = toScreen(x + size / 2, y + size / 2);
      return { x: sx + box.left, y: sy + box.top, size: size * camera.scale };
    },
    state: () => ({
      view, icons, scale: camera.scale, hovered: hovered && hovered.row, pinned: pinned && pinned.row,
      side: view === "cells" ? currentLevel().side : null, moving: Boolean(morph || flight),
      ready: [data.thumbs, ...data.levels.map((level) => level.icons)].every(
        (strip) => !strip || strip.images.every((image) => image.ready)),
    }),
  };
})();
