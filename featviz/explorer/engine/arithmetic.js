// The inner loops on one block of memory (`floats`): addresses are counted in floats.
//
//   tiles(a, b, c, depth, count, stride)  four rows times `count` tiles of eight columns:
//       c[row * stride + 8 t + column] = sum over d of a[4 d + row] b[(t depth + d) 8 + column]
//   dots(w, x, y, rows, length)           y[row] = sum of w[row length + i] x[i]
//   spread(w, g, y, rows, length)         y[i] += sum over rows of g[row] w[row length + i]
//
// `length` is a multiple of 16. The loops are WebAssembly with four numbers an instruction where the
// browser has it, assembled below; else plain JavaScript.

class PlainArithmetic {
  constructor(count) {
    this.floats = new Float32Array(count);
  }

  tiles(a, b, c, depth, count, stride) {
    const f = this.floats, sums = new Float64Array(32);
    for (let t = 0; t < count; t++) {
      sums.fill(0);
      for (let d = 0, p = a, q = b + t * depth * 8; d < depth; d++, p += 4, q += 8)
        for (let row = 0; row < 4; row++) {
          const w = f[p + row];
          for (let j = 0; j < 8; j++) sums[row * 8 + j] += w * f[q + j];
        }
      for (let row = 0; row < 4; row++)
        for (let j = 0; j < 8; j++) f[c + row * stride + t * 8 + j] = sums[row * 8 + j];
    }
  }

  dots(w, x, y, rows, length) {
    const f = this.floats;
    for (let row = 0; row < rows; row++) {
      let sum = 0;
      for (let i = 0, p = w + row * length; i < length; i++) sum += f[p + i] * f[x + i];
      f[y + row] = sum;
    }
  }

  spread(w, g, y, rows, length) {
    const f = this.floats;
    for (let row = 0; row < rows; row++) {
      const factor = f[g + row];
      for (let i = 0, p = w + row * length; i < length; i++) f[y + i] += factor * f[p + i];
    }
  }
}

class VectorArithmetic {
  constructor(count, module) {
    const memory = new WebAssembly.Memory({ initial: Math.ceil(count / 16384) });
    const { tiles, dots, spread } = new WebAssembly.Instance(module, { page: { memory } }).exports;
    this.floats = new Float32Array(memory.buffer, 0, count);
    this.tiles = (a, b, c, depth, count, stride) => tiles(4 * a, 4 * b, 4 * c, depth, count, 4 * stride);
    this.dots = (w, x, y, rows, length) => dots(4 * w, 4 * x, 4 * y, rows, length / 16);
    this.spread = (w, g, y, rows, length) => spread(4 * w, 4 * g, 4 * y, rows, length / 16);
  }
}

function arithmetic(count) {
  for (const fused of [true, false]) {
    const bytes = assembled(fused);
    if (typeof WebAssembly === "object" && WebAssembly.validate(bytes))
      return new VectorArithmetic(count, new WebAssembly.Module(bytes));
  }
  return new PlainArithmetic(count);
}

// The WebAssembly module. Instructions are arrays of bytes; `fused` multiplies and adds in one
// instruction, which not every browser knows.
function assembled(fused) {
  const I32 = 0x7f, V128 = 0x7b, EMPTY = 0x40;
  const leb = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...leb(n >>> 7)]);
  const vector = (parts) => [...leb(parts.length), ...parts.flat()];
  const sized = (bytes) => [...leb(bytes.length), ...bytes];
  const section = (id, parts) => [id, ...sized(vector(parts))];
  const text = (word) => sized(Array.from(word, (letter) => letter.charCodeAt(0)));

  const get = (i) => [0x20, i], set = (i) => [0x21, i];
  const signed = (n) => (n >= -64 && n < 64 ? [n & 127] : [(n & 127) | 128, ...signed(n >> 7)]);
  const integer = (n) => [0x41, ...signed(n)];
  const moved = (i, by) => [...get(i), ...integer(by), 0x6a, ...set(i)];
  const advanced = (i, by) => [...get(i), ...get(by), 0x6a, ...set(i)];
  const load = (i, offset) => [...get(i), 0xfd, 0x00, 2, ...leb(offset)];
  const splat = (i, offset) => [...get(i), 0xfd, 0x09, 2, ...leb(offset)];
  const store = (i, offset, value) => [...get(i), ...value, 0xfd, 0x0b, 2, ...leb(offset)];
  const zero = (i) => [0xfd, 0x0c, ...new Array(16).fill(0), ...set(i)];
  const add = [0xfd, 0xe4, 0x01], multiply = [0xfd, 0xe6, 0x01];
  // sum += x * y, of locals or of what their code leaves behind
  const accumulate = (sum, x, y) => fused
    ? [...x, ...y, ...get(sum), 0xfd, 0x85, 0x02, ...set(sum)]
    : [...get(sum), ...x, ...y, ...multiply, ...add, ...set(sum)];
  // body as often as the local i says, which is 0 afterwards
  const repeat = (i, body) => [
    0x02, EMPTY, ...get(i), 0x45, 0x0d, 0,
    0x03, EMPTY, ...body, ...moved(i, -1), ...get(i), 0x0d, 0, 0x0b, 0x0b,
  ];
  const range = (n) => Array.from({ length: n }, (_, i) => i);

  // locals behind the parameters: integers, then vectors
  const tiles = (() => {
    const [a, b, c, depth, count, stride, d, p] = range(8), sums = 8, left = 16, right = 17, weight = 18;
    const inner = [
      ...load(b, 0), ...set(left), ...load(b, 16), ...set(right),
      ...range(4).flatMap((row) => [
        ...splat(p, 4 * row), ...set(weight),
        ...accumulate(sums + 2 * row, get(weight), get(left)),
        ...accumulate(sums + 2 * row + 1, get(weight), get(right)),
      ]),
      ...moved(p, 16), ...moved(b, 32),
    ];
    const outer = [
      ...range(8).flatMap((i) => zero(sums + i)),
      ...get(a), ...set(p), ...get(depth), ...set(d),
      ...repeat(d, inner),
      ...get(c), ...set(p),
      ...range(4).flatMap((row) => [
        ...store(p, 0, get(sums + 2 * row)), ...store(p, 16, get(sums + 2 * row + 1)), ...advanced(p, stride),
      ]),
      ...moved(c, 32),
    ];
    return { integers: 2, vectors: 11, code: repeat(count, outer) };
  })();
  const dots = (() => {
    const [w, x, y, rows, length, n, p] = range(7), sums = 7;
    const lane = (i) => [...get(sums), 0xfd, 0x1f, i];
    const row = [
      ...range(4).flatMap((i) => zero(sums + i)), ...get(x), ...set(p), ...get(length), ...set(n),
      ...repeat(n, [
        ...range(4).flatMap((i) => accumulate(sums + i, load(w, 16 * i), load(p, 16 * i))),
        ...moved(w, 64), ...moved(p, 64),
      ]),
      ...range(3).flatMap((i) => [...get(sums), ...get(sums + i + 1), ...add, ...set(sums)]),
      ...get(y), ...lane(0), ...lane(1), 0x92, ...lane(2), 0x92, ...lane(3), 0x92, 0x38, 2, 0,
      ...moved(y, 4),
    ];
    return { integers: 2, vectors: 4, code: repeat(rows, row) };
  })();
  const spread = (() => {
    const [w, g, y, rows, length, n, p] = range(7), factor = 7, sum = 8;
    const row = [
      ...splat(g, 0), ...set(factor), ...get(y), ...set(p), ...get(length), ...set(n),
      ...repeat(n, [
        ...range(4).flatMap((i) => [
          ...load(p, 16 * i), ...set(sum), ...accumulate(sum, get(factor), load(w, 16 * i)), ...store(p, 16 * i, get(sum)),
        ]),
        ...moved(w, 64), ...moved(p, 64),
      ]),
      ...moved(g, 4),
    ];
    return { integers: 2, vectors: 2, code: repeat(rows, row) };
  })();

  const functions = { tiles, dots, spread };
  const type = (count) => [0x60, ...vector(new Array(count).fill([I32])), 0];
  const body = ({ integers, vectors, code }) =>
    sized([...vector([[...leb(integers), I32], [...leb(vectors), V128]]), ...code, 0x0b]);
  return new Uint8Array([
    0, 0x61, 0x73, 0x6d, 1, 0, 0, 0,
    ...section(1, [type(6), type(5)]),
    ...section(2, [[...text("page"), ...text("memory"), 2, 0, ...leb(1)]]),
    ...section(3, [[0], [1], [1]]),
    ...section(7, Object.keys(functions).map((name, i) => [...text(name), 0, i])),
    ...section(10, Object.values(functions).map(body)),
  ]);
}
