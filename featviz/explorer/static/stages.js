// What ReLU and pooling do to one map: before and after, with one window of the pool under the pointer.

function showStages(root, state, layer, unit) {
  const {network} = state;
  const names = network.stages(layer);
  const values = names.map((name) => state.run && state.run.values[name]);
  if (names.length < 2 || values.some((v) => !v)) { root.replaceChildren(); return; }
  const before = network.find(names[0]);
  const limit = largest(values[0], unit * before.shape[1] * before.shape[2], before.shape[1] * before.shape[2]) || 1;
  const boards = names.map((name, i) => {
    const stage = network.find(name), [, rows, columns] = stage.shape;
    const moves = pooled(stage);
    const one = board({label: `${stage.name} of unit ${unit}`, height: rows, width: columns, hover: moves,
      onpoint: moves ? (y, x) => light(i, clamp(Math.floor(y), 0, rows - 1), clamp(Math.floor(x), 0, columns - 1)) : null,
      onmove: moves ? (dy, dx) => light(i, clamp(seen[0] + dy, 0, rows - 1), clamp(seen[1] + dx, 0, columns - 1)) : null});
    paintMap(one.canvas, values[i], rows, columns, limit, unit * rows * columns);
    return one;
  });
  let seen = [0, 0];
  const told = h("p.quiet", {role: "status"}, words(state, names, values, unit));
  function light(i, y, x) {
    seen = [y, x];
    const stage = network.find(names[i]), source = network.find(names[i - 1]);
    const top = y * stage.stride[0] - stage.padding[0], left = x * stage.stride[1] - stage.padding[1];
    const window = {y: top, x: left, height: stage.kernel[0], width: stage.kernel[1]};
    const best = pooledFrom(stage, source, values[i - 1], unit, y, x);
    boards[i].frame([{y, x, height: 1, width: 1}]);
    boards[i - 1].frame(best ? [window, {y: best.y, x: best.x, height: 1, width: 1, kind: "won"}] : [window]);
    told.textContent = !best ? `This cell is the mean of the ${stage.kernel[0]} by ${stage.kernel[1]} cells in the frame.`
      : `Of the ${stage.kernel[0]} by ${stage.kernel[1]} cells in the frame the largest, ${short(best.value)}, is kept.`;
  }
  root.replaceChildren(h("h4", {}, "What happens to this map next"), h("div.stages", {}, names.map((name, i) => {
    const stage = network.find(name);
    const caption = i === 0 ? "sums" : pooled(stage) ? `${stage.pool === "average" ? "average" : "largest"} of each ${stage.kernel[0]} \u00d7 ${stage.kernel[1]}` : stage.kind === "relu" ? "below zero becomes zero" : stage.op;
    return [i ? h("span.sign", {"aria-hidden": "true"}, "\u2192") : null, h("figure", {}, boards[i].element, h("figcaption", {}, caption, h("span.code", {}, ` ${name}`)))];
  }).flat()), told);
}

const pooled = (stage) => stage.kind === "pool" && Boolean(stage.kernel);

function words(state, names, values, unit) {
  const {network} = state;
  const relu = names.findIndex((name) => network.find(name).kind === "relu");
  if (relu < 1) return "";
  const [, rows, columns] = network.find(names[relu - 1]).shape, area = rows * columns;
  let below = 0;
  for (let i = unit * area; i < (unit + 1) * area; i++) below += values[relu - 1][i] < 0;
  return `${whole(below)} of ${whole(area)} cells are below zero and become zero.` + (names.some((name) => pooled(network.find(name))) ? " Point at the last map to see which cells it keeps." : "");
}
