// The kernel slides: patch, kernel, products, their sum, and the cell of the map that it fills.

/**
 * Geometry and arithmetic of the first convolution.
 *
 * patch(picture, y, x) are the normalized inputs (C, k, k) under the window, 0 outside the picture;
 * products(patch, unit) one product each; their sum plus the bias is the value of the map.
 */
function slidingWindow(network) {
  const layer = network.first;
  const [height, width] = network.size;
  const channels = layer.weights.length / (layer.shape[0] * layer.kernel[0] * layer.kernel[1]);
  const [kh, kw] = layer.kernel;
  const per = channels * kh * kw;
  const corner = (y, x) => [y * layer.stride[0] - layer.padding[0], x * layer.stride[1] - layer.padding[1]];
  return {
    layer, channels, per,
    rows: layer.shape[1], columns: layer.shape[2], corner,
    reach: [(kh - 1) * layer.dilation[0] + 1, (kw - 1) * layer.dilation[1] + 1],
    kernel: (unit, weights = layer.weights) => weights.subarray(unit * per, (unit + 1) * per),
    /** `outside` fills what lies beyond the edge; `normalize` gives the numbers that the network sees. */
    patch(picture, y, x, {normalize = true, outside = 0} = {}) {
      const [top, left] = corner(y, x);
      const found = new Float32Array(per);
      for (let c = 0, i = 0; c < channels; c++) {
        const {plane, scale, shift} = layer.planes[c];
        for (let dy = 0; dy < kh; dy++) {
          for (let dx = 0; dx < kw; dx++, i++) {
            const py = top + dy * layer.dilation[0], px = left + dx * layer.dilation[1];
            if (py < 0 || px < 0 || py >= height || px >= width) { found[i] = outside; continue; }
            const value = picture[(plane * height + py) * width + px];
            found[i] = normalize ? value * scale + shift : value;
          }
        }
      }
      return found;
    },
    products: (patch, unit) => patch.map((value, i) => value * layer.weights[unit * per + i]),
    bias: (unit) => (layer.bias ? layer.bias[unit] : 0),
    /** Products summed over colors: (k, k). */
    overColors(products) {
      const sums = new Float32Array(kh * kw);
      for (let i = 0; i < per; i++) sums[i % (kh * kw)] += products[i];
      return sums;
    },
  };
}

/** Small pictures of all first-layer kernels, one of them chosen. */
function kernelStrip(network, chosen, onpick, weights) {
  const window = slidingWindow(network);
  const [kh, kw] = window.layer.kernel;
  const tiles = Array.from({length: window.layer.shape[0]}, (_, unit) => {
    const canvas = pixelCanvas(null, kh, kw);
    const tile = h("button.kernel", {type: "button", "aria-pressed": String(unit === chosen),
      "aria-label": `Kernel ${unit}`, title: `Kernel ${unit}`, onclick: () => onpick(unit)}, canvas);
    return {tile, canvas};
  });
  function paint(given) {
    tiles.forEach(({canvas}, unit) => paintLater(canvas, () => paintAroundGray(canvas, window.kernel(unit, given), kh, kw)));
  }
  function choose(unit) {
    tiles.forEach(({tile}, other) => tile.setAttribute("aria-pressed", String(other === unit)));
  }
  paint(weights);
  return {element: h("div.kernels", {role: "group", "aria-label": "Kernels of the first layer"}, tiles.map((t) => t.tile)), paint, choose, tiles};
}

function kernelView(root, state, {full}) {
  const {network} = state;
  const window = slidingWindow(network);
  const {layer, rows, columns} = window;
  const [height, width] = network.size;
  const [kh, kw] = layer.kernel;
  let unit = state.picked.layer === layer.name ? state.picked.unit : liveliest();
  let at = [rows >> 1, columns >> 1];
  let filled = 0, playing = !still.matches, speed = full ? 40 : 60, carry = 0, last = 0, timer = 0;

  const margin = Math.max(...layer.padding);
  const picture = board({label: `The picture. Drag the window of ${kh} by ${kw} pixels, or move it with the arrow keys.`,
    height, width, margin,
    onpoint: (y, x) => { pause(); move(Math.round((y + layer.padding[0] - window.reach[0] / 2) / layer.stride[0]),
      Math.round((x + layer.padding[1] - window.reach[1] / 2) / layer.stride[1])); },
    onmove: (dy, dx) => { pause(); move(at[0] + dy, at[1] + dx); }});
  const map = board({label: `The map of this kernel, ${rows} by ${columns} cells.`, height: rows, width: columns,
    onpoint: (y, x) => { pause(); move(Math.floor(y), Math.floor(x)); }, onmove: (dy, dx) => { pause(); move(at[0] + dy, at[1] + dx); }});
  const patch = pixelCanvas("The patch under the window"), kernel = pixelCanvas("The kernel"), product = pixelCanvas("Their products");
  const balance = h("div.balance", {"aria-hidden": "true"}, h("i.above"), h("i.below"), h("b"));
  const sum = h("p.sum"), told = speaker();
  const play = h("button.primary", {type: "button", onclick: () => (playing ? pause() : start())});
  const pace = slider("Speed", {min: 0, max: 5, step: 0.5, value: Math.log2(speed / 4),
    text: (v) => `${Math.round(4 * 2 ** v)} cells a second`, oninput: (v) => { speed = 4 * 2 ** v; }});
  const strip = kernelStrip(network, unit, (next) => { unit = next; filled = 0; strip.choose(unit); state.pick({layer: layer.name, unit}); draw(); });

  root.append(
    h("div.slide", {},
      h("figure.stage-picture", {}, picture.element, h("figcaption", {}, "the picture")),
      h("div.sumline", {},
        h("figure", {}, patch, h("figcaption", {}, "patch")), h("span.sign", {"aria-label": "times"}, "\u00d7"),
        h("figure", {}, kernel, h("figcaption", {}, "kernel")), h("span.sign", {"aria-label": "gives"}, "="),
        h("figure", {}, product, h("figcaption", {}, "products")),
        balance, sum),
      h("figure.stage-map", {}, map.element, h("figcaption", {}, "the map so far"))),
    h("div.row", {}, play, full ? h("button", {type: "button", onclick: () => { pause(); step(1); }}, "One step") : null, pace.element),
    strip.element, told.element);
  if (full) root.append(h("div.rows"));
  const perColor = root.querySelector(".rows");

  function liveliest() {
    // The kernel with the strongest single value somewhere in this picture, if it is known.
    const values = state.run && state.run.values[layer.name];
    if (!values) return 0;
    const area = rows * columns;
    return topOf(Array.from({length: layer.shape[0]}, (_, u) => largest(values, u * area, area)), 1)[0];
  }
  function move(y, x) {
    at = [clamp(y, 0, rows - 1), clamp(x, 0, columns - 1)];
    filled = Math.max(filled, at[0] * columns + at[1] + 1);
    draw();
    const [a, b] = [at[0], at[1]];
    told.say(`Row ${a + 1}, column ${b + 1}: sum ${short(valueAt())}`);
  }
  function step(count) {
    const next = at[0] * columns + at[1] + count;
    if (next >= rows * columns) filled = 0;
    at = [Math.floor(next / columns) % rows, next % columns];
    filled = Math.max(filled, at[0] * columns + at[1] + 1);
    draw();
  }
  function tick(now) {
    timer = requestAnimationFrame(tick);
    carry += speed * Math.min(0.1, (now - last) / 1000);
    last = now;
    const count = Math.floor(carry);
    if (count) { carry -= count; step(count); }
  }
  function start() {
    if (filled >= rows * columns) { filled = 0; at = [0, 0]; }
    playing = true; last = performance.now(); cancelAnimationFrame(timer); timer = requestAnimationFrame(tick); label();
  }
  function pause() { playing = false; cancelAnimationFrame(timer); label(); }
  function label() { play.textContent = playing ? "Pause" : "Play"; }
  function valueAt() {
    return products().reduce((a, b) => a + b, 0) + window.bias(unit);
  }
  const products = () => window.products(window.patch(state.picture, ...at), unit);

  const draw = eachFrame(() => {
    if (!state.picture || !root.isConnected) return;
    const [top, left] = window.corner(...at);
    paintPicture(picture.canvas, state.picture, height, width);
    picture.frame([{y: top, x: left, height: window.reach[0], width: window.reach[1]}]);
    paintPicture(patch, window.patch(state.picture, ...at, {normalize: false, outside: 0.5}), kh, kw);
    paintAroundGray(kernel, window.kernel(unit), kh, kw);
    const each = products(), sums = window.overColors(each);
    paintMap(product, sums, kh, kw, largest(sums) || 1);
    let above = 0, below = 0;
    for (const value of each) { if (value > 0) above += value; else below -= value; }
    const bias = window.bias(unit), total = above - below + bias;
    const most = Math.max(above, below, 1e-9);
    balance.children[0].style.width = `${50 * above / most}%`;
    balance.children[1].style.width = `${50 * below / most}%`;
    balance.children[2].style.left = `${50 + 50 * clamp(total / most, -1, 1)}%`;
    sum.replaceChildren(h("span.above", {}, short(above)), " for, ", h("span.below", {}, short(below)), " against",
      full ? `, ${bias < 0 ? "\u2212" : "+"} ${short(Math.abs(bias))} built in` : "", " \u2192 ", h("b", {}, short(total)));
    const values = state.run && state.run.values[layer.name];
    if (values) {
      const area = rows * columns;
      const limit = largest(values, unit * area, area) || 1;
      paintMap(map.canvas, values, rows, columns, limit, unit * area, filled);
    }
    map.frame([{y: at[0], x: at[1], height: 1, width: 1}]);
    if (perColor) drawColors(each);
  });
  function drawColors(each) {
    const names = layer.planes.map(({plane}) => network.channelNames[plane]);
    const limit = largest(each) || 1;
    perColor.replaceChildren(h("table", {}, h("caption", {}, `The ${window.per} products, color by color`),
      h("tbody", {}, names.map((name, c) => {
        const canvas = pixelCanvas();
        paintMap(canvas, each, kh, kw, limit, c * kh * kw);
        const total = each.slice(c * kh * kw, (c + 1) * kh * kw).reduce((a, b) => a + b, 0);
        return h("tr", {}, h("th", {scope: "row"}, name), h("td", {}, canvas), h("td.figure", {}, short(total)));
      }), h("tr", {}, h("th", {scope: "row"}, "built in (bias)"), h("td"), h("td.figure", {}, short(window.bias(unit)))))));
  }

  const stop = [state.on("picture", draw), state.on("run", draw),
    state.on("pick", () => { if (state.picked.layer === layer.name && state.picked.unit !== unit) { unit = state.picked.unit; strip.choose(unit); draw(); } })];
  label();
  if (playing) start(); else { filled = rows * columns; draw(); }
  return {
    needs: [layer.name],
    number: () => [whole(window.per), `numbers under the window, times as many in the kernel, become one number: ${whole(rows * columns)} times a map`],
    repaint: () => { strip.paint(); draw(); },
    close() { pause(); stop.forEach((off) => off()); },
  };
}
