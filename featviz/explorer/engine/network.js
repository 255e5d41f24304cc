// The network of a page: runs its program, goes back through it, and shows how a value was made.

class Network {
  constructor(data, bytes, make) {
    this.data = data;
    this.tensors = new Tensors(data.tensors, bytes);
    this.cache = new Map(); // decoded tensors and prepared products
    this.layers = new Map(data.layers.map((layer) => [layer.name, layer]));
    this.snapshot = null;
    this.memory = new Memory(make, ...this.needs());
    this.last = null;
  }

  // Floats of scratch, and of weights in both directions.
  needs() {
    let scratch = BLOCK + 64, weights = 0;
    for (const one of this.data.ops)
      if (one.op === "conv") {
        const depth = size(this.tensors.shape(one.weight).slice(1)), units = one.shape[0] / one.groups;
        const rows = padTo(units, 4) * depth + padTo(depth, 4) * units + 64;
        const times = 1 + (this.data.snapshots || []).filter((s) => one.weight in s.tensors).length;
        weights += rows * one.groups * times;
        scratch = Math.max(scratch, 8 * (Math.max(depth, units) + 8), 8 * padTo(Math.max(depth, units), 4));
      } else if (one.op === "linear") {
        const [rows, length] = this.tensors.shape(one.weight);
        weights += rows * padTo(length, 16) + 64;
        scratch = Math.max(scratch, rows + 16, padTo(length, 16));
      }
    return [scratch, weights];
  }

  shape(value) {
    return value === 0 ? [this.data.input.channels, ...this.data.input.size] : this.data.ops[value - 1].shape;
  }

  layer(name) {
    const layer = this.layers.get(name);
    if (!layer) throw new Error(`no layer ${name}`);
    return layer;
  }

  // Which tensor stands for a tensor in the snapshot that is used.
  current(index) {
    return this.snapshot === null ? index : this.data.snapshots[this.snapshot].tensors[index] ?? index;
  }

  kept(key, make) {
    if (!this.cache.has(key)) this.cache.set(key, make());
    return this.cache.get(key);
  }

  floats(index) {
    if (index === null || index === undefined) return null;
    const now = this.current(index);
    return this.kept(`t${now}`, () => this.tensors.floats(now));
  }

  convolution(one) {
    return this.kept(`c${one.value},${this.current(one.weight)},${this.current(one.bias)}`, () => new Convolution(
      { ...one, kernel: this.tensors.shape(one.weight).slice(2) },
      this.shape(one.inputs[0]), this.floats(one.weight), this.floats(one.bias), this.memory,
    ));
  }

  matrix(one) {
    return this.kept(`m${one.value},${this.current(one.weight)},${this.current(one.bias)}`, () => new Matrix(
      this.tensors.floats(this.current(one.weight)), ...this.tensors.shape(one.weight), this.tensors.columns(one.weight), this.floats(one.bias), this.memory,
    ));
  }

  // Convolutions and matrices of at most `most` weights, the heaviest first.
  products(most) {
    this.snapshot = null;
    const depth = (one) => size(one.op === "conv" ? this.tensors.shape(one.weight).slice(1) : this.shape(one.inputs[0]));
    return this.data.ops.filter((one) => (one.op === "conv" || one.op === "linear") && one.shape[0] * depth(one) <= most)
      .sort((a, b) => size(b.shape) * depth(b) - size(a.shape) * depth(a))
      .map((one) => (one.op === "conv" ? this.convolution(one) : this.matrix(one)));
  }

  // Lays out the weights and lets the browser compile the loops, so that the first picture is as
  // fast as later ones.
  async prepare() {
    for (const color of [0, 1]) await this.values(new Float32Array(size(this.shape(0))).fill(color));
    this.last = null;
  }

  // The weights of the way back, one operation at a time, so that calls in between wait for one.
  async prepareBackward(pause) {
    for (const one of this.data.ops) {
      if (one.op === "conv") this.convolution(one).packBackward();
      await pause();
    }
  }

  // All values of a picture up to the one asked for. `pause` is awaited between operations.
  async values(pixels, { off = {}, weights = null } = {}, until = this.data.ops.length, pause = null) {
    const key = JSON.stringify([off, weights]), last = this.last;
    const same = last && last.key === key && last.values[0].length === pixels.length && last.values[0].every((v, i) => v === pixels[i]);
    const values = same ? last.values : [pixels.slice()];
    const silent = this.silent(off);
    this.snapshot = weights;
    if (!same) this.last = { key, values, times: [0] };
    const times = this.last.times;
    if (values.length === 1) mute(values[0], silent.get(0), this.shape(0));
    for (let i = values.length; i <= until; i++) {
      if (pause) await pause();
      this.snapshot = weights;
      const one = this.data.ops[i - 1], began = performance.now();
      let value = OPERATIONS[one.op].forward(one, one.inputs.map((j) => values[j]), this);
      if (silent.has(i)) mute((value = value.slice()), silent.get(i), one.shape);
      if (values.length > i) continue; // another call has gone on meanwhile
      values.push(value);
      times.push(performance.now() - began);
    }
    return values;
  }

  // Value to the channels of it that are switched off.
  silent(off) {
    const found = new Map();
    for (const [name, units] of Object.entries(off)) {
      const value = this.layer(name).value;
      found.set(value, [...(found.get(value) || []), ...units]);
    }
    return found;
  }

  async forward(pixels, options = {}, pause = null) {
    const began = performance.now(), names = options.layers || [];
    const deepest = Math.max(0, ...names.map((name) => this.layer(name).value));
    const wanted = options.logits === false ? deepest : Math.max(deepest, this.data.logits ?? 0);
    const values = await this.values(pixels, options, wanted, pause);
    const found = {};
    for (const name of names) {
      const { value, shape } = this.layer(name);
      found[name] = { shape, data: values[value].slice() };
    }
    const logits = wanted < this.data.logits || this.data.logits === null ? null : values[this.data.logits].slice();
    return { logits, values: found, ms: performance.now() - began };
  }

  // The gradient of a target with respect to the pixels; see `seed`.
  async gradient(pixels, target, options = {}, pause = null) {
    const until = target.layer === undefined ? this.data.logits : this.layer(target.layer).value;
    const values = await this.values(pixels, options, until, pause);
    const { value, gradient } = this.seed(target, values[until], until);
    const silent = this.silent(options.off || {});
    const gradients = new Map([[until, gradient]]);
    for (let i = until; i > 0; i--) {
      const own = gradients.get(i);
      if (!own) continue;
      gradients.delete(i);
      if (pause) await pause();
      this.snapshot = options.weights ?? null;
      if (silent.has(i)) mute(own, silent.get(i), this.shape(i));
      const one = this.data.ops[i - 1];
      const back = OPERATIONS[one.op].backward(one, one.inputs.map((j) => values[j]), values[i], own, this);
      one.inputs.forEach((j, n) => {
        const sum = gradients.get(j);
        if (sum) back[n].forEach((g, p) => (sum[p] += g));
        else gradients.set(j, back[n].slice());
      });
    }
    return { gradient: gradients.get(0) ?? new Float32Array(pixels.length), value };
  }

  // The target's value, and its gradient with respect to the value that it is read from:
  // {class}: the cross-entropy of a class; {logit}: a logit; {layer, unit, y, x}: a unit at a
  // position, or the sum over its positions.
  seed(target, values, index) {
    const gradient = new Float32Array(values.length);
    if (target.class !== undefined) {
      const probabilities = OPERATIONS.softmax.forward({ shape: [values.length] }, [values]);
      gradient.set(probabilities);
      gradient[target.class] -= 1;
      const most = values.reduce((a, b) => Math.max(a, b));
      const sum = values.reduce((a, b) => a + Math.exp(b - most), 0);
      return { value: most + Math.log(sum) - values[target.class], gradient };
    }
    if (target.logit !== undefined) {
      gradient[target.logit] = 1;
      return { value: values[target.logit], gradient };
    }
    const shape = this.shape(index), each = area(shape), first = target.unit * each;
    const [from, to] = target.y === undefined ? [first, first + each] : [first + target.y * shape[2] + target.x, first + target.y * shape[2] + target.x + 1];
    gradient.fill(1, from, to);
    return { value: values.subarray(from, to).reduce((a, b) => a + b, 0), gradient };
  }

  // A picture within eps of another, by steps along the sign of the gradient of the cross-entropy:
  // away from the class, or towards it where it is the target.
  async perturb(pixels, { eps, steps = 10, step = (2.5 * eps) / steps, label, towards = false, ...options }, pause = null) {
    const now = pixels.slice(), sign = towards ? -1 : 1;
    for (let i = 0; i < steps; i++) {
      const { gradient } = await this.gradient(now, { class: label }, options, pause);
      for (let p = 0; p < now.length; p++) {
        const moved = now[p] + sign * step * Math.sign(gradient[p]);
        now[p] = Math.min(1, pixels[p] + eps, Math.max(0, pixels[p] - eps, moved));
      }
    }
    const { logits } = await this.forward(now, options, pause);
    return { pixels: now, logits };
  }

  // How a unit's value at a position comes from the value before.
  async contributions(pixels, name, unit, y = 0, x = 0, options = {}, pause = null) {
    const layer = this.layer(name), values = await this.values(pixels, options, layer.value, pause);
    this.snapshot = options.weights ?? null;
    const shape = this.shape(layer.value), one = this.data.ops[layer.value - 1];
    const cell = shape.length === 3 ? (unit * shape[1] + y) * shape[2] + x : unit;
    const value = values[layer.value][cell];
    if (!one) return { op: "input", value };
    const inputs = one.inputs.map((i) => values[i]), from = one.inputs.map((i) => this.named(i));
    const result = { op: one.op, value, from, shapes: one.inputs.map((i) => this.shape(i)) };
    if (one.op === "conv") {
      const product = this.convolution(one), patch = product.patch(inputs[0], unit, y, x);
      const shape = [product.inputs, ...product.one.kernel];
      const first = Math.floor(unit / product.outputs) * product.inputs;
      return { ...result, ...summed(patch, product.row(unit), product.inputs), shape, first, bias: product.bias ? product.bias[unit] : 0,
        top: y * one.stride[0] - one.padding[0], left: x * one.stride[1] - one.padding[1] };
    }
    if (one.op === "linear") {
      const product = this.matrix(one);
      return { ...result, ...summed(inputs[0], product.row(unit), inputs[0].length), shape: [inputs[0].length, 1, 1], first: 0, bias: product.bias ? product.bias[unit] : 0 };
    }
    if (one.op === "maxpool") {
      const [, tall, wide] = this.shape(one.inputs[0]);
      const p = winners(one, inputs[0], this.shape(one.inputs[0]))[cell] % (tall * wide);
      return { ...result, winner: { y: Math.floor(p / wide), x: p % wide },
        top: y * one.stride[0] - one.padding[0], left: x * one.stride[1] - one.padding[1], kernel: one.kernel };
    }
    return { ...result, before: inputs.map((values) => values[cell]) };
  }

  // The last layer whose value this is.
  named(value) {
    return this.data.layers.findLast((layer) => layer.value === value)?.name ?? null;
  }
}

// Products of patch and kernel, and their sum for each input channel.
function summed(patch, kernel, channels) {
  const products = patch.map((v, i) => v * kernel[i]), each = patch.length / channels;
  const sums = new Float32Array(channels);
  products.forEach((v, i) => (sums[Math.floor(i / each)] += v));
  return { patch, kernel, products, channels: sums };
}

function mute(value, units, shape) {
  for (const unit of units || []) value.fill(0, unit * area(shape), (unit + 1) * area(shape));
}
