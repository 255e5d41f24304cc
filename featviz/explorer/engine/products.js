// Convolutions and matrices: products of weights and inputs by the inner loops of `arithmetic`.

const BLOCK = 1 << 17; // floats of gathered inputs that are multiplied at a time

function padTo(n, step) {
  return Math.ceil(n / step) * step;
}

// Rows (count x depth) for `tiles`: four rows at a time, side by side, zeros behind the last. Row r
// has its numbers at from + r * rowStep + d * step.
function packRows(floats, at, rows, depth, weight, from, rowStep, step) {
  floats.fill(0, at, at + padTo(rows, 4) * depth);
  for (let row = 0; row < rows; row++) {
    let to = at + (row >> 2) * 4 * depth + (row & 3);
    for (let d = 0, p = from + row * rowStep; d < depth; d++, p += step, to += 4) floats[to] = weight[p];
  }
}

class Convolution {
  card = null; // a `CardProduct` that is faster

  constructor(one, before, weight, bias, memory) {
    this.one = one;
    this.before = before;
    this.weight = weight;
    this.bias = bias;
    this.memory = memory;
    const [ky, kx] = one.kernel, [sy, sx] = one.stride, [dy, dx] = one.dilation;
    const [channels, tall, wide] = before, [units, rows, columns] = one.shape;
    this.inputs = channels / one.groups;
    this.outputs = units / one.groups;
    this.depth = this.inputs * ky * kx;
    this.cells = rows * columns;
    // The padded input, and in it the first position of each window and the places within one.
    this.tall = tall + 2 * one.padding[0];
    this.wide = wide + 2 * one.padding[1];
    this.starts = new Int32Array(padTo(this.cells, 8));
    for (let r = 0, i = 0; r < rows; r++)
      for (let q = 0; q < columns; q++) this.starts[i++] = r * sy * this.wide + q * sx;
    this.places = new Int32Array(this.depth);
    for (let c = 0, i = 0; c < this.inputs; c++)
      for (let a = 0; a < ky; a++)
        for (let b = 0; b < kx; b++)
          this.places[i++] = (c * this.tall + a * dy) * this.wide + b * dx;
    this.forwardRows = this.backwardRows = -1;
  }

  // How many cells are gathered at a time for sums over `depth`.
  chunk(depth, rows) {
    const most = Math.max(8, Math.floor(BLOCK / padTo(Math.max(depth, rows), 4)) & ~7);
    return Math.min(most, padTo(this.cells, 8));
  }

  forward(x) {
    const found = this.card?.forward(x);
    if (found) return found;
    const { memory, outputs, depth, cells, starts, places, bias } = this;
    const y = new Float32Array(this.one.groups * outputs * cells);
    const input = this.padded(x), each = this.inputs * this.tall * this.wide;
    if (outputs === 1) return this.direct(input, each, y);
    this.packForward();
    const chunk = this.chunk(depth, outputs), packed = padTo(outputs, 4) * depth;
    for (let group = 0; group < this.one.groups; group++)
      for (let first = 0; first < cells; first += chunk) {
        const count = Math.min(chunk, padTo(cells - first, 8)), b = memory.scratch(depth * chunk, 0);
        const c = memory.scratch(padTo(outputs, 4) * chunk, 1), f = memory.floats;
        for (let t = 0, at = b; t < count; t += 8) {
          const [p0, p1, p2, p3, p4, p5, p6, p7] = starts.subarray(first + t, first + t + 8);
          for (let d = 0, base = group * each; d < depth; d++, at += 8) {
            const p = base + places[d];
            f[at] = input[p + p0];
            f[at + 1] = input[p + p1];
            f[at + 2] = input[p + p2];
            f[at + 3] = input[p + p3];
            f[at + 4] = input[p + p4];
            f[at + 5] = input[p + p5];
            f[at + 6] = input[p + p6];
            f[at + 7] = input[p + p7];
          }
        }
        memory.rows(this.forwardRows + group * packed, b, c, outputs, depth, count);
        const kept = Math.min(count, cells - first);
        for (let o = 0; o < outputs; o++) {
          const unit = group * outputs + o, add = bias ? bias[unit] : 0;
          for (let j = 0, to = unit * cells + first, at = c + o * count; j < kept; j++)
            y[to + j] = f[at + j] + add;
        }
      }
    return y;
  }

  // One unit a group: too few rows for tiles.
  direct(input, each, y) {
    const { depth, cells, starts, places, weight, bias } = this;
    for (let unit = 0; unit < this.one.groups; unit++)
      for (let i = 0; i < cells; i++) {
        let sum = bias ? bias[unit] : 0;
        const base = unit * each + starts[i];
        for (let d = 0; d < depth; d++) sum += weight[unit * depth + d] * input[base + places[d]];
        y[unit * cells + i] = sum;
      }
    return y;
  }

  // The gradient of the input: the transposed weights times the gradient, added where it was read.
  backward(gradient) {
    const { memory, outputs, depth, cells, starts, places } = this;
    const back = new Float32Array(this.before[0] * this.tall * this.wide);
    const each = this.inputs * this.tall * this.wide;
    this.packBackward();
    const chunk = this.chunk(depth, outputs), packed = padTo(depth, 4) * outputs;
    for (let group = 0; group < this.one.groups; group++)
      for (let first = 0; first < cells; first += chunk) {
        const count = Math.min(chunk, padTo(cells - first, 8)), b = memory.scratch(outputs * chunk, 0);
        const c = memory.scratch(padTo(depth, 4) * chunk, 1), f = memory.floats;
        const kept = Math.min(count, cells - first);
        for (let t = 0, at = b; t < count; t += 8)
          for (let o = 0; o < outputs; o++)
            for (let j = t; j < t + 8; j++)
              f[at++] = j < kept ? gradient[(group * outputs + o) * cells + first + j] : 0;
        memory.rows(this.backwardRows + group * packed, b, c, depth, outputs, count);
        for (let d = 0; d < depth; d++)
          for (let j = 0, base = group * each + places[d], at = c + d * count; j < kept; j++)
            back[base + starts[first + j]] += f[at + j];
      }
    return this.cropped(back);
  }

  packForward() {
    if (this.forwardRows >= 0) return;
    const { outputs, depth, weight } = this, one = padTo(outputs, 4) * depth;
    this.forwardRows = this.memory.reserve(one * this.one.groups);
    for (let g = 0; g < this.one.groups; g++)
      packRows(this.memory.floats, this.forwardRows + g * one, outputs, depth, weight, g * outputs * depth, depth, 1);
  }

  packBackward() {
    if (this.backwardRows >= 0) return;
    const { outputs, depth, weight } = this, one = padTo(depth, 4) * outputs;
    this.backwardRows = this.memory.reserve(one * this.one.groups);
    for (let g = 0; g < this.one.groups; g++)
      packRows(this.memory.floats, this.backwardRows + g * one, depth, outputs, weight, g * outputs * depth, 1, depth);
  }

  padded(x) {
    const [channels, tall, wide] = this.before, [py, px] = this.one.padding;
    if (!py && !px) return x;
    const y = new Float32Array(channels * this.tall * this.wide);
    for (let c = 0; c < channels; c++)
      for (let r = 0; r < tall; r++) {
        const from = (c * tall + r) * wide;
        y.set(x.subarray(from, from + wide), (c * this.tall + r + py) * this.wide + px);
      }
    return y;
  }

  cropped(x) {
    const [channels, tall, wide] = this.before, [py, px] = this.one.padding;
    if (!py && !px) return x;
    const y = new Float32Array(channels * tall * wide);
    for (let c = 0; c < channels; c++)
      for (let r = 0; r < tall; r++) {
        const from = (c * this.tall + r + py) * this.wide + px;
        y.set(x.subarray(from, from + wide), (c * tall + r) * wide);
      }
    return y;
  }

  // The inputs under the kernel at a cell, zeros in the padding: (inputs, ky, kx).
  patch(x, unit, row, column) {
    const input = this.padded(x), group = Math.floor(unit / this.outputs);
    const base = group * this.inputs * this.tall * this.wide;
    const start = base + this.starts[row * this.one.shape[2] + column];
    return Float32Array.from(this.places, (place) => input[start + place]);
  }

  row(unit) {
    return this.weight.slice(unit * this.depth, (unit + 1) * this.depth);
  }
}

// A matrix (rows x length) times vectors. Where `columns` is not null, column i of the matrix is
// column columns[i] of the weight.
class Matrix {
  card = null;

  constructor(weight, rows, length, columns, bias, memory) {
    Object.assign(this, { rows, length, columns, bias, memory });
    this.step = padTo(length, 16);
    // as a convolution of maps of one cell
    this.before = [columns?.length ?? length, 1, 1];
    this.one = { groups: 1, shape: [rows, 1, 1], kernel: [1, 1], stride: [1, 1], padding: [0, 0], dilation: [1, 1] };
    this.at = memory.reserve(rows * this.step);
    for (let row = 0; row < rows; row++)
      memory.floats.set(weight.subarray(row * length, (row + 1) * length), this.at + row * this.step);
  }

  forward(input) {
    const found = this.card?.forward(input);
    if (found) return found;
    const { memory, rows, step, bias } = this;
    const x = memory.scratch(step, 0), y = memory.scratch(rows, 1);
    memory.floats.fill(0, x, x + step);
    if (this.columns) input.forEach((v, i) => (memory.floats[x + this.columns[i]] += v));
    else memory.floats.set(input, x);
    memory.arithmetic.dots(this.at, x, y, rows, step);
    const value = memory.floats.slice(y, y + rows);
    return bias ? value.map((v, i) => v + bias[i]) : value;
  }

  backward(gradient) {
    const { memory, rows, step, length } = this;
    const g = memory.scratch(rows, 0), y = memory.scratch(step, 1);
    memory.floats.set(gradient, g);
    memory.floats.fill(0, y, y + step);
    memory.arithmetic.spread(this.at, g, y, rows, step);
    return this.spread(memory.floats.slice(y, y + length));
  }

  row(unit) {
    const at = this.at + unit * this.step;
    return this.spread(this.memory.floats.slice(at, at + this.length));
  }

  // For each column of the matrix the number of its stored column.
  spread(numbers) {
    return this.columns ? Float32Array.from(this.columns, (i) => numbers[i]) : numbers;
  }
}

// What the arithmetic works on: reserved places for weights behind two scratch areas.
class Memory {
  constructor(make, scratch, count) {
    this.half = padTo(scratch, 16);
    this.arithmetic = make(2 * this.half + count);
    this.used = 2 * this.half;
  }

  get floats() {
    return this.arithmetic.floats;
  }

  scratch(count, which) {
    if (count > this.half) throw new Error(`scratch of ${count} floats`);
    return which * this.half;
  }

  reserve(count) {
    const at = this.used;
    this.used += padTo(count, 16);
    if (this.used > this.floats.length) throw new Error("the network needs more memory than was reserved");
    return at;
  }

  // All rows of packed weights times the packed columns at b, into c.
  rows(a, b, c, rows, depth, count) {
    for (let row = 0; row < rows; row += 4, a += 4 * depth)
      this.arithmetic.tiles(a, b, c + row * count, depth, count / 8, count);
  }
}
