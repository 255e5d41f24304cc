// A network of a few operations in plain loops, with the calls that the views of the explorer make.
// Gradients are finite differences: slow, and right for any network.

class Engine {
  static async start(data) {
    const engine = new Engine();
    engine.data = data;
    engine.calls = [];
    window.engine = engine;
    return engine;
  }
  tried = Promise.resolve();
  computedBy() { return "Computed by plain loops."; }
  tensor(index) { return Promise.resolve(Float32Array.from(this.data.tensors[index].values)); }
  shape(value) { return value ? this.data.ops[value - 1].shape : [this.data.input.channels, ...this.data.input.size]; }
  run(pixels, {off = {}, weights = null} = {}) {
    const values = [pixels], {tensors, ops, layers, snapshots} = this.data;
    const of = (index) => tensors[weights === null ? index : snapshots[weights].tensors[index] ?? index].values;
    const muted = Object.fromEntries(Object.entries(off).map(([name, units]) => [layers.find((l) => l.name === name).value, units]));
    ops.forEach((op, i) => {
      const value = RUN[op.op](op, values[op.inputs[0]], this.shape(op.inputs[0]), of);
      const each = op.shape.slice(1).reduce((a, b) => a * b, 1);
      for (const unit of muted[i + 1] || []) value.fill(0, unit * each, (unit + 1) * each);
      values.push(value);
    });
    return values;
  }
  async forward(pixels, options = {}) {
    this.calls.push(["forward", options]);
    const values = this.run(pixels, options), found = {};
    for (const name of options.layers || []) {
      const {value} = this.data.layers.find((layer) => layer.name === name);
      found[name] = {shape: this.shape(value), data: values[value]};
    }
    return {logits: values[this.data.logits], values: found, ms: 1};
  }
  loss(pixels, label) {
    const logits = this.run(pixels)[this.data.logits], most = Math.max(...logits);
    return most + Math.log(logits.reduce((sum, v) => sum + Math.exp(v - most), 0)) - logits[label];
  }
  async gradient(pixels, {class: label}) {
    const gradient = pixels.map((_, i) => {
      const moved = Float32Array.from(pixels);
      moved[i] += 0.01;
      return this.loss(moved, label) - this.loss(pixels, label);
    });
    return {gradient, value: this.loss(pixels, label)};
  }
  async perturb(pixels, {eps, label}) {
    const {gradient} = await this.gradient(pixels, {class: label});
    return {pixels: pixels.map((v, i) => Math.min(1, Math.max(0, v - eps * Math.sign(gradient[i]))))};
  }
  async contributions(pixels, name, unit, y, x) {
    const op = this.data.ops[this.data.layers.find((layer) => layer.name === name).value - 1];
    const before = this.run(pixels)[op.inputs[0]], shape = this.shape(op.inputs[0]), weights = this.data.tensors[op.weight];
    const per = weights.values.length / weights.shape[0], kernel = weights.values.slice(unit * per, (unit + 1) * per);
    const [kh, kw] = [...weights.shape.slice(2), 1, 1], channels = weights.shape[1];
    const top = op.op === "conv" ? y * op.stride[0] - op.padding[0] : 0, left = op.op === "conv" ? x * op.stride[1] - op.padding[1] : 0;
    const patch = kernel.map((_, i) => (op.op === "conv" ? at(before, shape, Math.floor(i / (kh * kw)), top + Math.floor(i / kw) % kh, left + i % kw) : before[i]));
    const products = patch.map((v, i) => v * kernel[i]), sums = new Float32Array(channels);
    products.forEach((v, i) => { sums[Math.floor(i * channels / per)] += v; });
    return {patch, kernel, products: Float32Array.from(products), channels: sums, bias: this.data.tensors[op.bias].values[unit], shape: [channels, kh, kw], first: 0, top, left};
  }
  async inputOf(picture) {
    const [height, width] = this.data.input.size, canvas = Object.assign(document.createElement("canvas"), {width, height});
    const context = canvas.getContext("2d");
    context.drawImage(picture, 0, 0, width, height);
    const {data} = context.getImageData(0, 0, width, height), area = height * width;
    return Float32Array.from({length: 3 * area}, (_, i) => data[4 * (i % area) + Math.floor(i / area)] / 255);
  }
}

const at = (values, [, height, width], c, y, x) => (y < 0 || x < 0 || y >= height || x >= width ? 0 : values[(c * height + y) * width + x]);

const RUN = {
  affine: (op, x, shape, of) => x.map((v, i) => v * of(op.scale)[Math.floor(i * shape[0] / x.length)] + of(op.shift)[Math.floor(i * shape[0] / x.length)]),
  relu: (op, x) => x.map((v) => Math.max(0, v)),
  reshape: (op, x) => x,
  conv(op, x, shape, of) {
    const [units, rows, columns] = op.shape, weights = of(op.weight), k = Math.sqrt(weights.length / units / shape[0]);
    return Float32Array.from({length: units * rows * columns}, (_, i) => {
      const unit = Math.floor(i / rows / columns), top = Math.floor(i / columns) % rows * op.stride[0] - op.padding[0], left = i % columns * op.stride[1] - op.padding[1];
      let sum = of(op.bias)[unit];
      for (let c = 0; c < shape[0]; c++) for (let dy = 0; dy < k; dy++) for (let dx = 0; dx < k; dx++) sum += weights[((unit * shape[0] + c) * k + dy) * k + dx] * at(x, shape, c, top + dy, left + dx);
      return sum;
    });
  },
  maxpool(op, x, shape) {
    const [units, rows, columns] = op.shape;
    return Float32Array.from({length: units * rows * columns}, (_, i) => {
      let most = -Infinity;
      for (let dy = 0; dy < op.kernel[0]; dy++) for (let dx = 0; dx < op.kernel[1]; dx++) most = Math.max(most, at(x, shape, Math.floor(i / rows / columns), Math.floor(i / columns) % rows * op.stride[0] + dy, i % columns * op.stride[1] + dx));
      return most;
    });
  },
  linear: (op, x, shape, of) => Float32Array.from({length: op.shape[0]}, (_, unit) => x.reduce((sum, v, i) => sum + v * of(op.weight)[unit * x.length + i], of(op.bias)[unit])),
};

function textOf(id) { return document.getElementById(id).textContent; }
