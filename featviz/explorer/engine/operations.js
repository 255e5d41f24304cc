// The operations of a program: what each gives for its inputs, and the gradient of its inputs.
//
//   forward(one, inputs, network)          -> Float32Array, the value
//   backward(one, inputs, value, gradient, network) -> [Float32Array or null for each input]
//
// A value is a Float32Array of one picture, channel after channel; its shape stands in the program.

const UNARY = {
  relu: [(x) => (x > 0 ? x : 0), (x) => (x > 0 ? 1 : 0)],
  clamp: [(x, low, high) => Math.min(Math.max(x, low), high), (x, low, high) => (x > low && x < high ? 1 : 0)],
  leaky_relu: [(x, slope) => (x > 0 ? x : slope * x), (x, slope) => (x > 0 ? 1 : slope)],
  elu: [(x, a) => (x > 0 ? x : a * Math.expm1(x)), (x, a) => (x > 0 ? 1 : a * Math.exp(x))],
  sigmoid: [sigmoid, (x) => sigmoid(x) * (1 - sigmoid(x))],
  tanh: [Math.tanh, (x) => 1 - Math.tanh(x) ** 2],
  silu: [(x) => x * sigmoid(x), (x) => sigmoid(x) * (1 + x * (1 - sigmoid(x)))],
  hardswish: [(x) => (x * Math.min(Math.max(x + 3, 0), 6)) / 6, (x) => (x < -3 ? 0 : x > 3 ? 1 : x / 3 + 0.5)],
  hardsigmoid: [(x) => Math.min(Math.max(x + 3, 0), 6) / 6, (x) => (x > -3 && x < 3 ? 1 / 6 : 0)],
  log: [Math.log, (x) => 1 / x],
};

function sigmoid(x) {
  return 1 / (1 + Math.exp(-x));
}

function size(shape) {
  return shape.reduce((a, b) => a * b, 1);
}

// Positions a channel: 1 for vectors.
function area(shape) {
  return shape.length === 3 ? shape[1] * shape[2] : 1;
}

const OPERATIONS = {
  conv: {
    forward: (one, [x], network) => network.convolution(one).forward(x),
    backward: (one, [x], value, gradient, network) => [network.convolution(one).backward(gradient)],
  },
  linear: {
    forward: (one, [x], network) => network.matrix(one).forward(x),
    backward: (one, [x], value, gradient, network) => [network.matrix(one).backward(gradient)],
  },
  affine: {
    forward(one, [x], network) {
      const scale = network.floats(one.scale), shift = network.floats(one.shift);
      const y = new Float32Array(x.length), each = x.length / scale.length;
      for (let c = 0, i = 0; c < scale.length; c++)
        for (const a = scale[c], b = shift[c], end = i + each; i < end; i++) y[i] = x[i] * a + b;
      return y;
    },
    backward(one, [x], value, gradient, network) {
      const scale = network.floats(one.scale);
      const each = x.length / scale.length;
      return [gradient.map((g, i) => g * scale[Math.floor(i / each)])];
    },
  },
  maxpool: {
    forward(one, [x], network) {
      const y = new Float32Array(size(one.shape));
      const at = winners(one, x, network.shape(one.inputs[0]));
      for (let i = 0; i < y.length; i++) y[i] = at[i] < 0 ? -Infinity : x[at[i]];
      return y;
    },
    backward(one, [x], value, gradient, network) {
      const back = new Float32Array(x.length);
      const at = winners(one, x, network.shape(one.inputs[0]));
      for (let i = 0; i < at.length; i++) if (at[i] >= 0) back[at[i]] += gradient[i];
      return [back];
    },
  },
  avgpool: {
    forward(one, [x], network) {
      const y = new Float32Array(size(one.shape));
      windows(one, network.shape(one.inputs[0]), (i, from, to, wide, share) => {
        let sum = 0;
        for (let row = from; row < to; row += wide.row)
          for (let p = row; p < row + wide.width; p++) sum += x[p];
        y[i] = sum * share;
      });
      return y;
    },
    backward(one, [x], value, gradient, network) {
      const back = new Float32Array(x.length);
      windows(one, network.shape(one.inputs[0]), (i, from, to, wide, share) => {
        for (let row = from; row < to; row += wide.row)
          for (let p = row; p < row + wide.width; p++) back[p] += gradient[i] * share;
      });
      return [back];
    },
  },
  lrn: {
    forward: (one, [x]) => {
      const s = sums(one, x);
      return x.map((v, i) => v * power(s[i], -one.beta));
    },
    // y_i = x_i s_i^-b with s_i = k + a/n sum of x_j^2 over the channels j around i
    backward(one, [x], value, gradient) {
      const s = sums(one, x), each = area(one.shape), channels = one.shape[0];
      const inner = x.map((v, i) => gradient[i] * v * power(s[i], -one.beta - 1));
      const back = x.map((v, i) => gradient[i] * power(s[i], -one.beta));
      const factor = (2 * one.alpha * one.beta) / one.size;
      for (let j = 0; j < channels; j++) {
        // the channels i whose sum holds j
        const low = Math.max(0, j - ((one.size - 1) >> 1)), high = Math.min(channels - 1, j + (one.size >> 1));
        for (let p = 0; p < each; p++) {
          let sum = 0;
          for (let i = low; i <= high; i++) sum += inner[i * each + p];
          back[j * each + p] -= factor * x[j * each + p] * sum;
        }
      }
      return [back];
    },
  },
  pad: {
    forward(one, [x], network) {
      const y = new Float32Array(size(one.shape)).fill(one.value);
      padded(one, network.shape(one.inputs[0]), (inside, outside) => (y[outside] = x[inside]));
      return y;
    },
    backward(one, [x], value, gradient, network) {
      const back = new Float32Array(x.length);
      padded(one, network.shape(one.inputs[0]), (inside, outside) => (back[inside] = gradient[outside]));
      return [back];
    },
  },
  add: {
    forward: (one, [x, y]) => x.map((v, i) => v + y[i]),
    backward: (one, inputs, value, gradient) => [gradient, gradient],
  },
  mul: {
    // The second may have one number a channel.
    forward(one, [x, y]) {
      const each = x.length / y.length;
      return x.map((v, i) => v * y[Math.floor(i / each)]);
    },
    backward(one, [x, y], value, gradient) {
      const each = x.length / y.length;
      const other = new Float32Array(y.length);
      gradient.forEach((g, i) => (other[Math.floor(i / each)] += g * x[i]));
      return [gradient.map((g, i) => g * y[Math.floor(i / each)]), other];
    },
  },
  concat: {
    forward(one, parts) {
      const y = new Float32Array(size(one.shape));
      let at = 0;
      for (const part of parts) {
        y.set(part, at);
        at += part.length;
      }
      return y;
    },
    backward(one, parts, value, gradient) {
      let at = 0;
      return parts.map((part) => gradient.slice(at, (at += part.length)));
    },
  },
  select: {
    forward(one, [x], network) {
      const each = area(network.shape(one.inputs[0]));
      const y = new Float32Array(size(one.shape));
      one.channels.forEach((c, i) => y.set(x.subarray(c * each, (c + 1) * each), i * each));
      return y;
    },
    backward(one, [x], value, gradient, network) {
      const each = area(network.shape(one.inputs[0]));
      const back = new Float32Array(x.length);
      one.channels.forEach((c, i) => back.set(gradient.subarray(i * each, (i + 1) * each), c * each));
      return [back];
    },
  },
  reshape: {
    forward: (one, [x]) => x,
    backward: (one, inputs, value, gradient) => [gradient],
  },
  softmax: {
    forward(one, [x]) {
      const each = area(one.shape), channels = one.shape[0], y = new Float32Array(x.length);
      for (let p = 0; p < each; p++) {
        let most = -Infinity, sum = 0;
        for (let c = 0; c < channels; c++) most = Math.max(most, x[c * each + p]);
        for (let c = 0; c < channels; c++) sum += y[c * each + p] = Math.exp(x[c * each + p] - most);
        for (let c = 0; c < channels; c++) y[c * each + p] /= sum;
      }
      return y;
    },
    backward(one, [x], value, gradient) {
      const each = area(one.shape), channels = one.shape[0], back = new Float32Array(x.length);
      for (let p = 0; p < each; p++) {
        let mean = 0;
        for (let c = 0; c < channels; c++) mean += gradient[c * each + p] * value[c * each + p];
        for (let c = 0; c < channels; c++)
          back[c * each + p] = value[c * each + p] * (gradient[c * each + p] - mean);
      }
      return [back];
    },
  },
};

OPERATIONS.adaptive = OPERATIONS.avgpool;

for (const [name, [value, slope]] of Object.entries(UNARY))
  OPERATIONS[name] = {
    forward(one, [x]) {
      const [a, b] = one.numbers, y = new Float32Array(x.length);
      for (let i = 0; i < x.length; i++) y[i] = value(x[i], a, b);
      return y;
    },
    backward(one, [x], y, gradient) {
      const [a, b] = one.numbers, back = new Float32Array(x.length);
      for (let i = 0; i < x.length; i++) back[i] = gradient[i] * slope(x[i], a, b);
      return [back];
    },
  };

// For each cell of a max pool the index of its largest input, the first of equals; -1 for none.
function winners(one, x, [channels, tall, wide]) {
  const [, rows, columns] = one.shape;
  const [ky, kx] = one.kernel, [sy, sx] = one.stride, [py, px] = one.padding, [dy, dx] = one.dilation;
  const found = new Int32Array(channels * rows * columns);
  for (let c = 0, i = 0; c < channels; c++)
    for (let r = 0; r < rows; r++)
      for (let q = 0; q < columns; q++, i++) {
        let best = -1;
        for (let a = 0; a < ky; a++) {
          const y = r * sy - py + a * dy;
          if (y < 0 || y >= tall) continue;
          for (let b = 0; b < kx; b++) {
            const at = q * sx - px + b * dx;
            if (at < 0 || at >= wide) continue;
            const p = (c * tall + y) * wide + at;
            if (best < 0 || x[p] > x[best]) best = p;
          }
        }
        found[i] = best;
      }
  return found;
}

// The window of each cell of an average pool: visit(cell, first, end, {row, width}, share).
function windows(one, [channels, tall, wide], visit) {
  const [, rows, columns] = one.shape;
  for (let c = 0, i = 0; c < channels; c++)
    for (let r = 0; r < rows; r++)
      for (let q = 0; q < columns; q++, i++) {
        const [top, bottom, high] = span(one, 0, r, rows, tall);
        const [left, right, broad] = span(one, 1, q, columns, wide);
        const inside = Math.max(0, bottom - top) * Math.max(0, right - left);
        const count = one.op === "adaptive" ? inside : one.divisor || (one.padded ? high * broad : inside);
        const first = (c * tall + top) * wide + left;
        visit(i, first, first + (bottom - top) * wide, { row: wide, width: right - left }, 1 / count);
      }
}

// First and end of a window along an axis, and how many positions count, padding among them.
function span(one, axis, cell, cells, length) {
  if (one.op === "adaptive") {
    const first = Math.floor((cell * length) / cells), end = Math.ceil(((cell + 1) * length) / cells);
    return [first, end, end - first];
  }
  const first = cell * one.stride[axis] - one.padding[axis];
  const end = Math.min(first + one.kernel[axis], length + one.padding[axis]);
  return [Math.max(first, 0), Math.min(end, length), end - first];
}

// k + alpha / n times the sum of squares over n channels around each.
function sums(one, x) {
  const each = area(one.shape), channels = one.shape[0], found = new Float32Array(x.length);
  const below = one.size >> 1, above = (one.size - 1) >> 1;
  for (let i = 0; i < channels; i++) {
    const low = Math.max(0, i - below), high = Math.min(channels - 1, i + above);
    for (let p = 0; p < each; p++) {
      let sum = 0;
      for (let j = low; j <= high; j++) sum += x[j * each + p] ** 2;
      found[i * each + p] = one.k + (one.alpha / one.size) * sum;
    }
  }
  return found;
}

// x to a negative power; the usual ones by square roots, which are faster.
function power(x, exponent) {
  if (exponent === -0.75) return 1 / (Math.sqrt(x) * Math.sqrt(Math.sqrt(x)));
  return x ** exponent;
}

// Pairs of indices without and with the padding; negative padding cuts.
function padded(one, [channels, tall, wide], visit) {
  const [left, , top] = one.padding, [, rows, columns] = one.shape;
  for (let c = 0; c < channels; c++)
    for (let y = Math.max(0, -top); y < Math.min(tall, rows - top); y++)
      for (let x = Math.max(0, -left); x < Math.min(wide, columns - left); x++)
        visit((c * tall + y) * wide + x, (c * rows + y + top) * columns + x + left);
}
