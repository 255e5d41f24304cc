// Every map of every layer; a cell, its receptive field in the picture, and what fed it.

/** All maps of a layer as buttons. Colors share one scale, so that strong maps stand out. */
function mapGrid(state, onpick) {
  const element = h("div.maps", {role: "group"});
  let layer = null, tiles = [], own = false;
  element.addEventListener("keydown", (event) => {
    const by = arrow(event), now = tiles.findIndex(({tile}) => tile === document.activeElement);
    if (!by || now < 0) return;
    event.preventDefault();
    const across = Math.max(1, Math.round(element.clientWidth / (tiles[0].tile.offsetWidth + 4)));
    const next = tiles[clamp(now + by[1] + across * by[0], 0, tiles.length - 1)];
    next.tile.focus();
    onpick(next.unit);
  });
  function show(next) {
    layer = next;
    element.setAttribute("aria-label", `Maps of ${layer.name}`);
    tiles = Array.from({length: layer.shape[0]}, (_, unit) => {
      const canvas = pixelCanvas(null, ...layer.shape.slice(1));
      const tile = h("button.map", {type: "button", "aria-label": `Map ${unit}`, title: `${layer.name}:${unit}`,
        onclick: () => onpick(unit)}, canvas);
      return {tile, canvas, unit};
    });
    element.style.setProperty("--side", `${layer.shape[0] > 130 ? 38 : layer.shape[0] > 65 ? 46 : 58}px`);
    element.replaceChildren(...tiles.map(({tile}) => tile));
  }
  function paint() {
    const values = layer && state.run && state.run.values[layer.name];
    if (!values) return;
    const [, height, width] = layer.shape, area = height * width;
    const shared = own || layerLimit(values);
    const off = new Set((state.run.off || {})[layer.name] || []);
    for (const {tile, canvas, unit} of tiles) {
      paintLater(canvas, () => paintMap(canvas, values, height, width, own ? largest(values, unit * area, area) : shared, unit * area));
      tile.classList.toggle("off", off.has(unit));
    }
  }
  function choose(unit) {
    tiles.forEach(({tile, unit: other}) => tile.setAttribute("aria-pressed", String(other === unit)));
  }
  return {element, show, paint, choose, scale: (mode) => { own = mode; paint(); }};
}

function mapsView(root, state, {full, layers, start}) {
  const {network} = state;
  const offered = layers ? network.spatial.filter(({name}) => layers.includes(name)) : full ? network.spatial : network.main;
  const from = start && state.picked.layer === network.sums[0].name ? start : state.picked.layer;
  let layer = offered.find(({name}) => name === from) || offered[0], begun = false;
  const grid = mapGrid(state, (unit) => pick({unit, ...peak(unit), byHand: true}));
  const big = h("div.chosen");
  const tabs = offered.length < 2 ? null : choice("Layer", offered.map(({name, shape}) => [name, name, `${plural(shape[0], "map")} of ${shape[1]} by ${shape[2]}`]), layer.name,
    (name) => { begun = false; pick({layer: name, unit: 0, ...middle(network.find(name)), byHand: false}); });
  const scale = full ? choice("Colors", [["layer", "One scale"], ["own", "Each map its own"]], "layer", (key) => grid.scale(key === "own")) : null;
  const about = h("p.quiet");
  root.append(h("div.row", {}, tabs && tabs.element, scale && scale.element), about, h("div.split.wide-left", {}, grid.element, big));
  const cell = cellView(big, state, {full, pick});

  function middle(of) { return {y: of.shape[1] >> 1, x: of.shape[2] >> 1}; }
  function peak(unit) {
    const values = state.run && state.run.values[layer.name];
    if (!values) return middle(layer);
    const [, height, width] = layer.shape;
    let best = 0;
    for (let i = 1; i < height * width; i++) if (values[unit * height * width + i] > values[unit * height * width + best]) best = i;
    return {y: Math.floor(best / width), x: best % width};
  }
  function pick(change) { state.pick(change); }
  function follow() {
    const next = offered.find(({name}) => name === state.picked.layer);
    if (next && next !== layer) { layer = next; show(); state.need(needs()); }
    grid.choose(state.picked.unit);
    cell.update();
  }
  function show() {
    grid.show(layer);
    if (tabs) tabs.choose(layer.name);
    about.textContent = `${plural(layer.shape[0], "map")} of ${layer.shape[1]} by ${layer.shape[2]} cells` +
      (layer.field ? `; each cell sees ${Math.min(layer.field.size[0], network.size[0])} by ${Math.min(layer.field.size[1], network.size[1])} pixels of the picture.` : ".");
    grid.paint();
    grid.choose(state.picked.unit);
  }
  const needs = () => [layer.name, ...network.stages(layer), ...network.below(layer), network.source(layer)].filter(Boolean);
  /** The map and cell with the largest value, as long as nobody has chosen one. */
  function begin() {
    if (!state.picked.byHand) {
      const values = state.run && state.run.values[layer.name], area = layer.shape[1] * layer.shape[2];
      const [unit] = values ? topOf(Array.from({length: layer.shape[0]}, (_, u) => values.subarray(u * area, (u + 1) * area).reduce((a, b) => Math.max(a, b))), 1) : [0];
      begun = Boolean(values);
      pick({layer: layer.name, unit, ...peak(unit)});
    } else if (state.picked.layer !== layer.name) pick({layer: layer.name, unit: 0, ...peak(0)});
  }
  const stop = [state.on("run", () => { if (!begun) begin(); grid.paint(); cell.update(); }), state.on("pick", follow), state.on("picture", cell.see)];
  show();
  begin();
  cell.update();
  return {
    get needs() { return needs(); },
    number: () => [whole(layer.shape[0]), `maps in ${layer.name}, ${layer.shape[1]} by ${layer.shape[2]} cells each: ${whole(layer.shape[0] * layer.shape[1] * layer.shape[2])} numbers`],
    repaint: () => { grid.paint(); cell.update(); },
    close() { stop.forEach((off) => off()); cell.close(); },
  };
}

/** One map large, its cell that is followed, the pixels it sees, and the inputs that made its value. */
function cellView(root, state, {full, pick}) {
  const {network} = state;
  let asked = 0, trail = [];
  const heading = h("h3"), places = h("div.pair"), stages = h("div"), fed = h("div.fed"), path = h("nav.trail", {"aria-label": "From cell to cell"}), told = speaker();
  root.append(heading, places, path, fed, stages, told.element);
  let picture = null, map = null, shownLayer = "";

  function build(layer) {
    const [height, width] = network.size, [, rows, columns] = layer.shape;
    shownLayer = layer.name;
    picture = board({label: "The picture, with the pixels that this cell sees", height, width});
    map = board({label: `Map of ${layer.name}, ${rows} by ${columns} cells. Choose a cell by pointer or arrow keys.`, height: rows, width: columns,
      onpoint: (y, x) => go(Math.floor(y), Math.floor(x)), onmove: (dy, dx) => go(state.picked.y + dy, state.picked.x + dx)});
    places.replaceChildren(h("figure", {}, map.element, h("figcaption", {}, "the map: choose a cell")),
      h("figure", {}, picture.element, h("figcaption", {}, "what the cell sees")));
    function go(y, x) { pick({y: clamp(y, 0, rows - 1), x: clamp(x, 0, columns - 1), byHand: true}); }
  }

  function see() { if (picture && state.picture) paintPicture(picture.canvas, state.picture, ...network.size); }
  const update = eachFrame(() => {
    if (!root.isConnected || !state.picture) return;
    const {layer: name, unit, y, x} = state.picked;
    const layer = network.find(name);
    if (!layer || layer.shape.length < 3) return;
    if (shownLayer !== name) build(layer);
    const [, rows, columns] = layer.shape, area = rows * columns;
    see();
    picture.frame(layer.field ? [network.seen(layer, y, x)] : []);
    map.frame([{y, x, height: 1, width: 1}]);
    const values = state.run && state.run.values[name];
    if (!values) return;
    paintMap(map.canvas, values, rows, columns, largest(values, unit * area, area) || 1, unit * area);
    const value = values[unit * area + y * columns + x];
    heading.replaceChildren(`${name}:${unit}`, h("span.quiet", {}, ` row ${y + 1}, column ${x + 1}: `), h("b", {}, short(value)));
    told.say(`${name} ${unit}, row ${y + 1}, column ${x + 1}, value ${short(value)}`);
    showTrail();
    showStages(stages, state, layer, unit);
    showInputs(layer, unit, y, x);
  });

  async function showInputs(layer, unit, y, x) {
    if (!network.fedBy(layer)) { fed.replaceChildren(); return; }
    const mine = ++asked;
    const {picture, off} = state.run;
    const found = await network.contributions(picture, layer.name, unit, y, x, off);
    if (!found || mine !== asked || !root.isConnected) return;
    const {source} = found, totals = Array.from(found.channels);
    const shown = topOf(totals.map(Math.abs), full ? 12 : 5).filter((c) => totals[c] !== 0);
    const most = Math.max(...shown.map((c) => Math.abs(totals[c])), 1e-9);
    const rest = totals.reduce((a, b) => a + b, 0) - shown.reduce((a, c) => a + totals[c], 0);
    const names = source || layer.name !== network.sums[0].name ? null : network.channelNames;
    fed.replaceChildren(h("h4", {}, source ? `What fed it: the strongest maps of ${source.name}` : "What fed it: the colors of the picture"),
      h("ol.inputs", {}, shown.map((c) => input(c, totals[c], totals[c] / most, found, source, names))),
      h("p.quiet", {}, `${shown.length < totals.length ? `All others together ${short(rest)}, built in` : "Built in"} (bias) ${short(found.bias)}; the sum is ${short(totals.reduce((a, b) => a + b, 0) + found.bias)}.`));
  }
  function input(channel, total, share, found, source, names) {
    const canvas = pixelCanvas();
    const values = source && state.run.values[source.name], own = channel + found.first;
    const window = {y: found.top, x: found.left, height: found.shape[1], width: found.shape[2]};
    if (values) {
      const area = source.shape[1] * source.shape[2];
      paintMap(canvas, values, source.shape[1], source.shape[2], largest(values, own * area, area) || 1, own * area);
    } else {
      const per = found.shape[1] * found.shape[2], part = found.products.subarray(channel * per, (channel + 1) * per);
      paintMap(canvas, part, found.shape[1], found.shape[2], largest(part) || 1);
    }
    const bar = h("span.bar", {}, h("i", {class: total < 0 ? "below" : "above", style: `width:${100 * Math.abs(share)}%`}));
    const inner = [h("span.thumb", {}, canvas, source ? svgWindow(source, window) : null), h("span.name", {}, names ? names[channel] : `${source ? source.name : "input"}:${channel + found.first}`), bar, h("b", {}, short(total))];
    const target = source && network.describing(source);
    if (!target) return h("li", {}, h("div.input", {}, inner));
    return h("li", {}, h("button.input", {type: "button", title: "Follow this map", onclick: () => {
      trail.push({...state.picked});
      const [py, px] = strongestCell(found, channel);
      pick({...network.cellBelow(source, own, py, px, state.run.values), unit: own, layer: target.name, byHand: true});
    }}, inner));
  }
  function showTrail() {
    const last = trail[trail.length - 1];
    path.hidden = !last;
    if (last) path.replaceChildren(h("button", {type: "button", onclick: () => pick(trail.pop())}, `\u2190 back to ${last.layer}:${last.unit}`));
  }
  return {update, see, close() { asked++; }};
}

/** The cell of the input, in its map, from which a channel added most (by size). */
function strongestCell(found, channel) {
  const [, kh, kw] = found.shape;
  let best = 0;
  const from = channel * kh * kw;
  for (let i = 1; i < kh * kw; i++) if (Math.abs(found.products[from + i]) > Math.abs(found.products[from + best])) best = i;
  return [found.top + Math.floor(best / kw) * found.step, found.left + (best % kw) * found.step];
}

function svgWindow(source, {y, x, height, width}) {
  return svg("svg", {viewBox: `0 0 ${source.shape[2]} ${source.shape[1]}`, preserveAspectRatio: "none", "aria-hidden": "true"},
    svg("rect", {x, y, width, height, class: "main"}));
}
