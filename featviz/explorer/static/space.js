// The last lists of numbers, the nearest pictures by them, and the map on which all pictures lie.

/** What the build gathered about pictures: vectors, places, classes, thumbnails. Null without pictures. */
async function openSpace(data, blocks) {
  const about = data.pictures;
  if (!about) return null;
  const {count, dim} = about;
  const rows = new Int8Array((await blocks.inflated("vectors")).buffer);
  const norms = new Float32Array(count);
  for (let row = 0; row < count; row++) {
    let sum = 0;
    for (let i = row * dim; i < (row + 1) * dim; i++) sum += rows[i] * rows[i];
    norms[row] = Math.sqrt(sum) || 1;
  }
  return {
    ...about,
    places: about.placed ? blocks.floats("places") : null,
    sheet: thumbnails(about.thumbs, blocks),
    label: (row) => about.classes[row] || about.names[row],
    label: (row) => about.classes[row] || about.names[row],
    /** The nearest rows by cosine distance: [{row, distance}]; the picture itself (by its name, or nearly the same list) is no neighbor. */
    nearest(vector, wanted, {itself = false, named = ""} = {}) {
      const present = about.names.indexOf(named);
      let own = 0;
      for (const value of vector) own += value * value;
      own = Math.sqrt(own) || 1;
      const found = new Float32Array(count);
      for (let row = 0; row < count; row++) {
        let dot = 0;
        for (let i = 0, j = row * dim; i < dim; i++, j++) dot += vector[i] * rows[j];
        found[row] = 1 - dot / (own * norms[row]);
      }
      return Array.from(found, (distance, row) => ({row, distance}))
        .filter(({row, distance}) => itself || (row !== present && distance > about.itself)).sort((a, b) => a.distance - b.distance).slice(0, wanted);
    },
  };
}

/** Pictures on JPEG sheets: draw(canvas, row), and where a row lies on its sheet. */
function thumbnails(about, blocks) {
  const sheets = Array.from({length: about.sheets}, (_, i) => {
    const image = new Image();
    image.src = blocks.url(`${about.name}-${i}`, "image/jpeg");
    return image;
  });
  const ready = Promise.allSettled(sheets.map((image) => image.decode()));
  return {
    ready, size: about.size,
    at(row) {
      const within = row % about.per_sheet;
      return {image: sheets[Math.floor(row / about.per_sheet)], x: Math.floor(within / about.rows) * about.pitch, y: (within % about.rows) * about.pitch};
    },
    draw(canvas, row) {
      canvas.width = canvas.height = about.size;
      ready.then(() => {
        const {image, x, y} = this.at(row);
        canvas.getContext("2d").drawImage(image, x, y, about.size, about.size, 0, 0, about.size, about.size);
      });
      return canvas;
    },
  };
}

/** A vector as a block of cells, and words about the cell under the pointer. */
function vectorStrip(state, name, label) {
  const {network} = state;
  const count = network.find(name).shape[0];
  const columns = Math.ceil(Math.sqrt(count * 5)), rows = Math.ceil(count / columns);
  const told = h("span.quiet", {role: "status"});
  let at = 0;
  const cells = board({label: `${label}: ${count} numbers. Arrow keys go from number to number.`, height: rows, width: columns, hover: true,
    onpoint: (y, x) => look(Math.floor(y), Math.floor(x)), onmove: (dy, dx) => look(Math.floor(at / columns) + dy, at % columns + dx)});
  cells.element.classList.add("vector");
  function look(y, x) {
    at = clamp(clamp(y, 0, rows - 1) * columns + clamp(x, 0, columns - 1), 0, count - 1);
    const values = state.run && state.run.values[name] && network.vector(state.run.values[name], name);
    if (!values) return;
    cells.frame([{y: Math.floor(at / columns), x: at % columns, height: 1, width: 1}]);
    told.textContent = `number ${at + 1}: ${short(values[at])}`;
  }
  function update() {
    const values = state.run && state.run.values[name] && network.vector(state.run.values[name], name);
    if (!values) return;
    const padded = new Float32Array(rows * columns);
    padded.set(values);
    paintMap(cells.canvas, padded, rows, columns, layerLimit(values));
    const active = values.reduce((sum, v) => sum + (v > 0), 0);
    caption.replaceChildren(h("b", {}, label), `: ${whole(active)} above zero. `, told);
  }
  const caption = h("figcaption");
  return {element: h("figure.strip", {}, caption, cells.element), update};
}

function vectorsView(root, state, {full}) {
  const {network, space} = state;
  const names = full ? network.vectors : [network.space];
  const strips = names.map((name) => vectorStrip(state, name, network.plainName(name)));
  const near = space ? nearestList(state, full ? 24 : 8) : null;
  root.append(...strips.map((strip) => strip.element));
  if (near) root.append(h("h3", {}, "The pictures with the nearest lists"), near.element);
  if (full) root.append(h("h3", {}, "From the list to the classes"), classWeights(state).element);
  const update = () => { strips.forEach((strip) => strip.update()); if (near) near.update(); };
  const stop = state.on("run", update);
  update();
  return {
    needs: names,
    number: () => {
      const first = near && near.first();
      const dim = network.find(network.space).shape[0];
      return first ? [first.distance < 0.01 ? first.distance.toPrecision(1) : first.distance.toFixed(2), `is the distance of the nearest of ${whole(space.count)} pictures, ${space.label(first.row)}: 0 is the same direction, 1 has nothing in common`]
        : [whole(dim), "numbers are all that the last layer gets to know of the picture"];
    },
    repaint: update,
    close: stop,
  };
}

function classWeights(state) {
  // Which numbers of the last list speak for the first class: value times weight.
  const element = h("div");
  const {network} = state;
  async function update() {
    if (!state.run || !network.logits || network.find(network.logits).op !== "linear") return;
    const [best] = topOf(state.run.logits, 1);
    const found = await network.contributions(state.run.picture, network.logits, best, 0, 0, state.run.off);
    if (!found) return;
    const products = found.channels;
    const order = topOf(Array.from(products, Math.abs), 10);
    const most = Math.abs(products[order[0]]) || 1;
    element.replaceChildren(h("p.quiet", {}, `For \u201c${network.classes[best]}\u201d: the numbers whose product with their weight is largest.`),
      h("ol.inputs", {}, order.map((i) => h("li", {}, h("div.input", {}, h("span.name", {}, `number ${i + 1}`),
        h("span.bar", {}, h("i", {class: products[i] < 0 ? "below" : "above", style: `width:${100 * Math.abs(products[i]) / most}%`})), h("b", {}, short(products[i])))))));
  }
  const stop = state.on("run", () => { if (element.isConnected) update(); else stop(); });
  update();
  return {element};
}

/** The nearest pictures; a click takes one into the network. */
function nearestList(state, wanted) {
  const {space, network} = state;
  const element = h("ul.nearest", {"aria-label": "Nearest pictures"});
  let found = [];
  function update() {
    const values = state.run && state.run.values[network.space];
    if (!values) return;
    const vector = network.vector(values);
    found = space.nearest(vector, wanted, {named: state.title});
    element.replaceChildren(...found.map(({row, distance}) => h("li", {}, h("button", {type: "button", title: `Take this picture: ${space.names[row]}`,
      onclick: () => state.take(row)}, space.sheet.draw(pixelCanvas(), row), h("span.name", {}, space.label(row)), h("b", {}, distance < 0.01 ? distance.toPrecision(1) : distance.toFixed(2))))));
  }
  return {element, update, first: () => found[0]};
}

/** The map of all pictures, and the place of the present one among its nearest. */
function atlasView(root, state, {full}) {
  const {space, network} = state;
  const canvas = h("canvas.atlas", {tabindex: 0, role: "application", "aria-label": "Map of all pictures. Arrow keys move, plus and minus zoom, enter takes the picture in the middle."});
  const told = speaker(), note = h("p.quiet");
  const view = {x: 0.5, y: 0.5, zoom: 1};
  let mine = null, near = [], goal = null, held = new Map(), moved = false, placed = false;
  root.append(h("div.atlas-frame", {}, canvas, h("div.zoom", {role: "group", "aria-label": "Zoom"},
    h("button", {type: "button", "aria-label": "Zoom in", onclick: () => zoom(1.5)}, "+"),
    h("button", {type: "button", "aria-label": "Zoom out", onclick: () => zoom(1 / 1.5)}, "\u2212"),
    h("button", {type: "button", "aria-label": "Go to your picture", title: "Go to your picture", onclick: () => fly()}, "\u25ce"))), note, told.element);
  if (state.data.links && state.data.links.atlas) root.append(h("p", {}, h("a", {href: state.data.links.atlas}, "Open the whole atlas")));
  let near8 = null;
  if (full) { near8 = nearestList(state, 12); root.append(h("h3", {}, "Nearest in the list of numbers"), near8.element); }

  const side = () => Math.min(canvas.clientWidth, canvas.clientHeight) * 0.9 * view.zoom;
  const toScreen = (x, y) => [canvas.clientWidth / 2 + (x - view.x) * side(), canvas.clientHeight / 2 + (y - view.y) * side()];
  const toMap = (sx, sy) => [view.x + (sx - canvas.clientWidth / 2) / side(), view.y + (sy - canvas.clientHeight / 2) / side()];
  const place = (row) => [space.places[2 * row], space.places[2 * row + 1]];
  const size = () => Math.min(0.94 * side() * space.pitch, space.sheet.size * 1.6);

  const draw = eachFrame(() => {
    if (!root.isConnected || !canvas.clientWidth) return;
    const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth, height = canvas.clientHeight;
    if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
    if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const accent = getComputedStyle(canvas).color, s = size();
    if (mine) {
      context.strokeStyle = accent; context.lineWidth = 1; context.globalAlpha = 0.6;
      for (const {row} of near) { context.beginPath(); context.moveTo(...toScreen(...mine)); context.lineTo(...toScreen(...place(row))); context.stroke(); }
      context.globalAlpha = 1;
    }
    for (let row = 0; row < space.count; row++) {
      const [x, y] = toScreen(...place(row));
      if (x < -s || y < -s || x > width + s || y > height + s) continue;
      const at = space.sheet.at(row);
      context.drawImage(at.image, at.x, at.y, space.sheet.size, space.sheet.size, x - s / 2, y - s / 2, s, s);
    }
    context.strokeStyle = accent; context.lineWidth = 2;
    for (const {row} of near) { const [x, y] = toScreen(...place(row)); context.strokeRect(x - s / 2 - 1, y - s / 2 - 1, s + 2, s + 2); }
    if (mine) {
      const [x, y] = toScreen(...mine), own = s * 1.35;
      context.drawImage(state.small(), x - own / 2, y - own / 2, own, own);
      context.lineWidth = 3; context.strokeRect(x - own / 2 - 2, y - own / 2 - 2, own + 4, own + 4);
    }
  });

  function update() {
    const values = state.run && state.run.values[network.space];
    if (!values) return;
    const vector = network.vector(values);
    near = space.nearest(vector, 8, {itself: true});
    // The mean of the places of the nearest, the nearer the heavier.
    let sum = 0, x = 0, y = 0;
    const closest = near[0].distance;
    for (const {row, distance} of near) {
      const weight = Math.exp(-(distance - closest) / 0.03);
      const [px, py] = place(row);
      x += weight * px; y += weight * py; sum += weight;
    }
    mine = [x / sum, y / sum];
    note.textContent = `Your picture lies beside ${[...new Set(near.slice(0, 4).map(({row}) => space.label(row)))].join(", ")}. Lines go to its eight nearest in the list of numbers.`;
    if (near8) near8.update();
    if (placed) fly(); else draw();
    placed = true;
  }
  function fly() { if (mine) glide(mine[0], mine[1], Math.max(view.zoom, 2.2)); }
  function glide(x, y, to) {
    if (still.matches) { Object.assign(view, {x, y, zoom: to}); draw(); return; }
    goal = {from: {...view}, x, y, zoom: to, begun: performance.now()};
    requestAnimationFrame(glideOn);
  }
  function glideOn(now) {
    if (!goal || !root.isConnected) return;
    const t = clamp((now - goal.begun) / 900, 0, 1), ease = t * t * (3 - 2 * t);
    view.x = goal.from.x + (goal.x - goal.from.x) * ease;
    view.y = goal.from.y + (goal.y - goal.from.y) * ease;
    view.zoom = goal.from.zoom * (goal.zoom / goal.from.zoom) ** ease;
    draw();
    if (t < 1) requestAnimationFrame(glideOn); else goal = null;
  }
  function zoom(by, sx = canvas.clientWidth / 2, sy = canvas.clientHeight / 2) {
    goal = null;
    const [x, y] = toMap(sx, sy);
    view.zoom = clamp(view.zoom * by, 0.8, 30);
    const [nx, ny] = toMap(sx, sy);
    view.x += x - nx; view.y += y - ny;
    draw();
  }
  function rowAt(sx, sy) {
    let best = null;
    for (let row = 0; row < space.count; row++) {
      const [x, y] = toScreen(...place(row)), away = Math.max(Math.abs(x - sx), Math.abs(y - sy));
      if (away < size() * 0.7 && (!best || away <= best.away)) best = {row, away};
    }
    return best && best.row;
  }
  function take(row) { if (row !== null && row !== undefined) { state.take(row); told.say(`Took ${space.label(row)}`); } }
  const local = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); held.set(event.pointerId, local(event)); moved = false; goal = null; });
  canvas.addEventListener("pointermove", (event) => {
    const was = held.get(event.pointerId), now = local(event);
    if (!was) { const row = rowAt(...now); canvas.title = row === null ? "" : space.names[row]; return; }
    if (Math.hypot(now[0] - was[0], now[1] - was[1]) > 3) moved = true;
    if (!moved) return;
    if (held.size === 2) {
      const other = [...held].find(([id]) => id !== event.pointerId)[1];
      zoom(Math.hypot(now[0] - other[0], now[1] - other[1]) / Math.max(1, Math.hypot(was[0] - other[0], was[1] - other[1])), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else { view.x -= (now[0] - was[0]) / side(); view.y -= (now[1] - was[1]) / side(); draw(); }
    held.set(event.pointerId, now);
  });
  const release = (event) => { if (held.delete(event.pointerId) && !moved && event.type === "pointerup") take(rowAt(...local(event))); };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 300), ...local(event)); }, {passive: false});
  canvas.addEventListener("keydown", (event) => {
    const by = arrow(event);
    if (by) { view.y += by[0] * 40 / side(); view.x += by[1] * 40 / side(); draw(); }
    else if (event.key === "+" || event.key === "=") zoom(1.4);
    else if (event.key === "-") zoom(1 / 1.4);
    else if (event.key === "Enter") take(rowAt(canvas.clientWidth / 2, canvas.clientHeight / 2));
    else return;
    event.preventDefault();
  });
  const resized = new ResizeObserver(draw);
  resized.observe(canvas);
  const stop = state.on("run", update);
  space.sheet.ready.then(draw);
  update();
  return {
    needs: [],
    number: () => space.kept === null ? [whole(space.count), "pictures on one map, placed by what the network makes of them"]
      : [percent(space.kept), `of the ten nearest pictures are also among the ten nearest on the map (by chance ${percent(space.chance)})`],
    repaint: draw,
    close() { stop(); resized.disconnect(); goal = null; },
  };
}
