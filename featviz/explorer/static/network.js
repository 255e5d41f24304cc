// The network as the views see it: layers by name, what follows what, and the engine's calls.

const ACTIVATIONS = new Set(["relu", "clamp", "leaky_relu", "elu", "sigmoid", "tanh", "silu", "hardswish", "hardsigmoid"]);
const POOLS = new Set(["maxpool", "avgpool", "adaptive"]);
/** Operations that keep units and positions apart: between a sum and what is made of it. */
const POINTWISE = new Set([...ACTIVATIONS, ...POOLS, "lrn", "affine"]);

async function openNetwork(data, engine) {
  const ops = data.ops;
  const operation = (value) => (value ? ops[value - 1] : null);
  const shapeOf = (value) => (value ? ops[value - 1].shape : [data.input.channels, ...data.input.size]);
  const kernelOf = (op) => (op.op === "conv" ? data.tensors[op.weight].shape.slice(2) : op.kernel);
  const fields = receptiveFields(ops, shapeOf, kernelOf);
  const byName = new Map(), byValue = new Map();
  for (const {name, value} of data.layers) {
    const op = operation(value);
    if (!name || !op) continue;
    const layer = byValue.get(value) || {
      name, value, op: op.op, shape: op.shape, field: fields[value],
      kind: POOLS.has(op.op) ? "pool" : ACTIVATIONS.has(op.op) ? "relu" : op.op,
      pool: op.op === "maxpool" ? "largest" : "average",
      kernel: kernelOf(op), stride: op.stride, padding: op.padding, inputs: op.inputs,
    };
    byValue.set(value, layer);
    byName.set(name, layer);
  }
  const layers = [...byValue.values()].sort((a, b) => a.value - b.value);
  const users = (value) => ops.map((op, i) => i + 1).filter((i) => operation(i).inputs.includes(value));
  const sums = layers.filter(({op, shape}) => op === "conv" && shape.length === 3);
  const logits = data.logits === null || data.logits === undefined ? null : byValue.get(data.logits) || null;

  /** A sum and the pointwise layers after it, as long as nothing else uses their values. */
  function stages(layer) {
    const found = [layer.name];
    if (layer.op !== "conv") return found;
    for (let value = layer.value; ;) {
      const [next, ...more] = users(value);
      if (!next || more.length || !POINTWISE.has(operation(next).op) || operation(next).shape.length < 3) return found;
      const named = byValue.get(next);
      if (named) found.push(named.name);
      value = next;
    }
  }
  /** From a value back to the convolution that it was made from: [pool1, relu1, conv1]. */
  function back(layer) {
    const found = [];
    for (let value = layer.value; value; value = operation(value).inputs[0]) {
      const named = byValue.get(value);
      if (named) found.push(named);
      if (operation(value).op === "conv") return found;
      if (!POINTWISE.has(operation(value).op)) return [];
    }
    return [];
  }
  const sourceOf = (layer) => byValue.get(layer.inputs[0]) || null;
  const vectorLayers = layers.filter(({shape, value, op}) => shape.length === 1 && (op === "linear" || ACTIVATIONS.has(op)) &&
    !users(value).some((i) => ACTIVATIONS.has(operation(i).op)) && value !== data.logits);
  const head = data.logits ? operation(data.logits) : null;
  const given = data.pictures && byName.get(data.pictures.layer);
  const space = given || (head && head.op === "linear" && byValue.get(head.inputs[0])) || vectorLayers[vectorLayers.length - 1] || layers[layers.length - 1];

  const network = {
    name: data.model.name, classes: data.classes, channels: data.input.channels, size: data.input.size,
    mean: data.input.mean, std: data.input.std,
    layers, sums, spatial: layers.filter(({shape, kind}) => shape.length === 3 && kind !== "reshape"),
    main: spread(sums, 6), vectors: vectorLayers.map(({name}) => name), space: space.name, logits: logits && logits.name,
    switchable: [...spread(sums, 6), ...vectorLayers.filter(({op}) => op !== "softmax")],
    channelNames: data.input.channels === 1 ? ["gray"] : ["red", "green", "blue"],
    find: (name) => byName.get(name) || null,
    stages, source: (layer) => { const found = sourceOf(layer); return found && found.name; },
    below: (layer) => { const found = sourceOf(layer); return found ? back(found).map(({name}) => name) : []; },
    fedBy: (layer) => layer.op === "conv",
    /** The convolution of which a layer shows the maps after ReLU and pooling. */
    describing: (layer) => { const found = back(layer); return found.length ? found[found.length - 1] : null; },
    /** The cell of that convolution from which a cell of a layer took its value. */
    cellBelow(layer, unit, y, x, values) {
      const chain = back(layer);
      for (let i = 0; i + 1 < chain.length; i++) {
        if (chain[i].kind !== "pool") continue;
        const before = chain[i + 1], [, rows, columns] = before.shape;
        const best = pooledFrom(chain[i], before, values[before.name], unit, y, x);
        y = best ? best.y : clamp(y, 0, rows - 1); x = best ? best.x : clamp(x, 0, columns - 1);
      }
      return {y, x};
    },
    /** The pixels that a cell depends on, as a frame; it may reach beyond the picture. */
    seen: ({field}, y, x) => ({y: field.offset[0] + y * field.stride[0], x: field.offset[1] + x * field.stride[1], height: field.size[0], width: field.size[1]}),
    /** "fc7 (here relu7, 640 numbers)" where a layer is known by the sum that it is made from. */
    plainName(name) {
      const layer = byName.get(name);
      if (!layer || layer.shape.length > 1) return name;
      const before = ACTIVATIONS.has(layer.op) && sourceOf(layer);
      return before && before.op === "linear" ? `${before.name} (here ${name}, ${plural(layer.shape[0], "number")})` : `${name} (${plural(layer.shape[0], "number")})`;
    },
    /** One number a unit: the value, or the mean over positions. */
    vector(values, name = space.name) {
      const {shape} = byName.get(name);
      if (shape.length === 1) return values;
      const area = shape[1] * shape[2];
      return Float32Array.from({length: shape[0]}, (_, c) => values.subarray(c * area, (c + 1) * area).reduce((a, b) => a + b, 0) / area);
    },
    async forward(picture, {layers: names = [], off = {}, slot = "look"} = {}) {
      const found = await engine.forward(picture, {layers: [...new Set(names)].filter(Boolean), off: muted(off), slot});
      return found && {...found, values: Object.fromEntries(Object.entries(found.values).map(([name, {data: values}]) => [name, values]))};
    },
    async gradient(picture, target, slot = "gradient") {
      const found = await engine.gradient(picture, {class: target}, {slot});
      return found && found.gradient;
    },
    perturb: (picture, options) => engine.perturb(picture, options),
    /** What each input added: products (C, kh, kw) of the window, by channel of the source. */
    async contributions(picture, name, unit, y, x, off) {
      const layer = byName.get(name), op = operation(layer.value);
      const found = await engine.contributions(picture, name, unit, y, x, {off: muted(off)});
      return found && {...found, source: sourceOf(layer), step: (op.dilation || [1])[0]};
    },
    async firstLayerWith(picture, moment) {
      const found = await engine.forward(picture, {layers: [network.first.name], logits: false, weights: moment, slot: "growth"});
      return found && found.values[network.first.name].data;
    },
    input: (picture) => engine.inputOf(picture),
    tensor: (index) => engine.tensor(index),
  };
  /** Units are switched off behind their activation, where zero means no answer. */
  function muted(off) {
    return Object.fromEntries(Object.entries(off || {}).map(([name, units]) => {
      const after = stages(byName.get(name)).map((one) => byName.get(one)).find(({kind}) => kind === "relu");
      return [after ? after.name : name, units];
    }));
  }
  network.first = await firstLayer(data, sums[0], operation, engine);
  return network;
}

/** The first convolution with its weights, and how its input is made from the picture; null where it is not the first sum. */
async function firstLayer(data, layer, operation, engine) {
  if (!layer) return null;
  const op = operation(layer.value);
  const steps = [];
  for (let value = op.inputs[0]; value; value = operation(value).inputs[0]) {
    const one = operation(value);
    if (one.op === "affine") steps.unshift({scale: await engine.tensor(one.scale), shift: await engine.tensor(one.shift)});
    else if (one.op === "select") steps.unshift({channels: one.channels});
    else return null;
  }
  if (op.groups !== 1) return null;
  const weights = await engine.tensor(op.weight);
  const kernel = data.tensors[op.weight].shape.slice(2);
  // Each input channel is a plane of the picture, scaled and shifted.
  let planes = Array.from({length: data.input.channels}, (_, plane) => ({plane, scale: 1, shift: 0}));
  for (const step of steps) {
    planes = step.channels ? step.channels.map((c) => planes[c])
      : planes.map(({plane, scale, shift}, c) => ({plane, scale: scale * step.scale[c], shift: shift * step.scale[c] + step.shift[c]}));
  }
  return {...layer, weights, weight: op.weight, bias: op.bias === null || op.bias === undefined ? null : await engine.tensor(op.bias), kernel,
    stride: op.stride, padding: op.padding, dilation: op.dilation || [1, 1], planes};
}

/** Size, stride and offset in pixels of what one cell of each value sees; null once all is seen. */
function receptiveFields(ops, shapeOf, kernelOf) {
  const found = [{size: [1, 1], stride: [1, 1], offset: [0, 0]}];
  for (const op of ops) {
    const inputs = op.inputs.map((i) => found[i]);
    const before = shapeOf(op.inputs[0]);
    let field = inputs[0];
    if (op.shape.length < 3 || inputs.some((one) => !one)) field = null;
    else if (op.op === "adaptive" && op.shape[1] === before[1] && op.shape[2] === before[2]) field = inputs[0];
    else if (op.op === "adaptive") field = null;
    else if (["conv", "maxpool", "avgpool"].includes(op.op)) {
      const kernel = kernelOf(op), dilation = op.dilation || [1, 1];
      field = {
        size: field.size.map((s, i) => s + (kernel[i] - 1) * dilation[i] * field.stride[i]),
        stride: field.stride.map((s, i) => s * op.stride[i]),
        offset: field.offset.map((o, i) => o - op.padding[i] * field.stride[i]),
      };
    } else if (inputs.length > 1) {
      const low = [0, 1].map((i) => Math.min(...inputs.map((one) => one.offset[i])));
      const high = [0, 1].map((i) => Math.max(...inputs.map((one) => one.offset[i] + one.size[i])));
      field = {size: [high[0] - low[0], high[1] - low[1]], stride: inputs[0].stride, offset: low};
    }
    found.push(field);
  }
  return found;
}

/** The cell of `before` that a largest-value pool kept for a cell; null for other pools. */
function pooledFrom(stage, before, values, unit, y, x) {
  const [, rows, columns] = before.shape;
  if (stage.op !== "maxpool" || !values) return null;
  let best = null;
  for (let dy = 0; dy < stage.kernel[0]; dy++) {
    for (let dx = 0; dx < stage.kernel[1]; dx++) {
      const py = y * stage.stride[0] - stage.padding[0] + dy, px = x * stage.stride[1] - stage.padding[1] + dx;
      if (py < 0 || px < 0 || py >= rows || px >= columns) continue;
      const value = values[(unit * rows + py) * columns + px];
      if (!best || value > best.value) best = {value, y: py, x: px};
    }
  }
  return best;
}

/** At most `count` of a list, the first and the last among them. */
function spread(list, count) {
  if (list.length <= count) return list;
  return Array.from({length: count}, (_, i) => list[Math.round(i * (list.length - 1) / (count - 1))]);
}
