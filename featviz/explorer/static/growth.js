// How it learned: kernels of the first layer at several moments of the training, and their maps of this picture.

function growthView(root, state, {full}) {
  const {network, growth} = state;
  const layer = network.first, [kh, kw] = layer.kernel;
  const last = growth.steps.length - 1;
  let moment = full ? last : 0, playing = false, timer = 0, asked = 0, found = null;
  const strip = kernelStrip(network, -1, () => {}, growth.weights(moment));
  strip.element.classList.add("large");
  strip.tiles.forEach(({tile}, unit) => { tile.title = `Kernel ${unit}`; });
  const maps = Array.from({length: layer.shape[0]}, () => pixelCanvas(null, ...layer.shape.slice(1)));
  const mapped = h("div.kernels.maps-now", {role: "img", "aria-label": "The maps of your picture at this moment of the training"}, maps.map((canvas) => h("span.kernel", {}, canvas)));
  const time = slider("Training", {min: 0, max: last, value: moment, text: (i) => stepText(i), oninput: (i) => { pause(); show(i); }});
  const play = h("button.primary", {type: "button", onclick: () => (playing ? pause() : start())}, "Play");
  const curve = accuracyCurve(growth);
  root.append(h("div.row", {}, play, time.element),
    h("div.split", {}, h("figure", {}, strip.element, h("figcaption", {}, `the ${layer.shape[0]} kernels of the first layer at this moment`)),
      h("figure", {}, mapped, h("figcaption", {}, "what they made of your picture"))),
    curve ? curve.element : "");
  function stepText(i) { return growth.steps[i] === 0 ? "before the first step" : `after ${plural(growth.steps[i], "step")}`; }
  function show(i) {
    moment = i;
    time.set(i);
    strip.paint(growth.weights(i));
    if (curve) curve.mark(i);
    compute();
    if (state.retell) state.retell();
  }
  async function compute() {
    const mine = ++asked;
    const values = await network.firstLayerWith(state.picture, moment);
    if (!values || mine !== asked || !root.isConnected) return;
    found = values;
    paint();
  }
  function paint() {
    if (!found) return;
    const [, rows, columns] = layer.shape, area = rows * columns;
    const values = found;
    maps.forEach((canvas, unit) => paintLater(canvas, () => paintMap(canvas, values, rows, columns, largest(values, unit * area, area) || 1, unit * area)));
  }
  function start() {
    playing = true; play.textContent = "Pause";
    if (moment === last) show(0);
    timer = setInterval(() => { if (moment < last) show(moment + 1); else pause(); }, 700);
  }
  function pause() { playing = false; play.textContent = "Play"; clearInterval(timer); }
  const stop = state.on("picture", compute);
  show(moment);
  return {
    needs: [],
    number: () => {
      const known = growth.top1[moment];
      return known === null || known === undefined ? [whole(growth.steps[moment]), "steps of training so far"]
        : [percent(known), `of new pictures named correctly ${stepText(moment)}; guessing would give ${percent(1 / network.classes.length)}`];
    },
    repaint: () => { strip.paint(growth.weights(moment)); paint(); },
    close() { pause(); asked++; stop(); },
  };
}

/** Accuracy over the moments (evenly spaced, as the slider is) with the present one marked. */
function accuracyCurve(growth) {
  const known = growth.top1.map((value, i) => [i, value]).filter(([, value]) => value !== null && value !== undefined);
  if (known.length < 2) return null;
  const width = 600, height = 120, last = growth.steps.length - 1, most = Math.max(...known.map(([, v]) => v));
  const x = (i) => 8 + (width - 16) * i / last, y = (v) => height - 8 - (height - 24) * v / most;
  const dot = svg("circle", {r: 6, class: "now"});
  const drawing = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Accuracy from ${percent(known[0][1])} to ${percent(known[known.length - 1][1])}`},
    svg("line", {x1: 0, x2: width, y1: height - 8, y2: height - 8, class: "axis"}),
    svg("polyline", {points: known.map(([i, v]) => `${x(i)},${y(v)}`).join(" ")}), dot);
  return {
    element: h("figure.curve", {}, drawing, h("figcaption", {}, "pictures named correctly, from the first moment of the training to the last")),
    mark(i) {
      const value = growth.top1[i];
      dot.setAttribute("visibility", value === null || value === undefined ? "hidden" : "visible");
      if (value !== null && value !== undefined) { dot.setAttribute("cx", x(i)); dot.setAttribute("cy", y(value)); }
    },
  };
}
