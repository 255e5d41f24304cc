// Animation, and what is drawn above the map on a second canvas: names of classes, the selected
// picture, the lines to its neighbors. And the panel beside the map.

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
    // Along a straight line on the screen, also while zooming.
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
  if (stale) {
    stale = false; // before composing, which may ask for another frame
    renderer.render(compose(), ratio);
  }
  over.setTransform(ratio, 0, 0, ratio, 0, 0);
  over.clearRect(0, 0, width, height);
  over.imageSmoothingQuality = "high";
  const focus = state.hovered || state.pinned;
  if (state.names && state.view === "points" && labels && !morph && !matches) drawNames();
  if (focus) drawFocus(focus);
  say();
}

// Names of classes below pictures of them, as many as do not touch.
let named = []; // rows with a name beside them
function drawNames() {
  const boxes = [];
  named = [];
  over.font = "600 11.5px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
  over.textAlign = "center";
  over.textBaseline = "middle";
  over.lineJoin = "round";
  over.lineWidth = 4;
  over.strokeStyle = `rgb(${theme.ground.join(",")})`;
  for (const label of labels) {
    const [x, y] = toScreen(atlas.xy[2 * label.row], atlas.xy[2 * label.row + 1]);
    if (x < 0 || y < 0 || x > width || y > height) continue;
    // A name is below its picture, or below its dot where the page has no thumbnail.
    const own = shownAmongPoints(label.row);
    if (!own && atlas.thumbOf[label.row] >= 0) continue;
    label.width = label.width || over.measureText(atlas.classes[label.own]).width;
    const down = y + (own ? own / 2 + 9 : 12);
    const box = [x - label.width / 2 - 5, down - 12, x + label.width / 2 + 5, down + 12];
    if (box[0] < 0 || box[2] > width || boxes.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
    boxes.push(box);
    named.push(label.row);
    over.strokeText(atlas.classes[label.own], x, down);
    over.fillStyle = theme.ink;
    over.fillText(atlas.classes[label.own], x, down);
    if (boxes.length === 60) break;
  }
}

function say() {
  let text;
  if (matches) text = matchCount ? `${counted(matchCount)} found` : "nothing found";
  else if (state.view === "cells") text = `${levelNow().side} × ${levelNow().side} squares`;
  else text = "";
  if (find("count").textContent !== text) find("count").textContent = text;
}

function outline(x, y, size, color, thickness) {
  over.strokeStyle = color;
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

// The selected picture, larger, with lines to its true neighbors: solid where they are among the
// nearest on the map too, dashed where they are not.
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
  colorOf: (own) => (atlas.classOf && (classesTell || state.color === "class") && own >= 0 && own < atlas.classes.length
    ? `rgb(${classRgb(own).join(",")})` : null),
});

function refreshPanel() {
  const thing = state.hovered || state.pinned;
  panel.show(thing);
}
