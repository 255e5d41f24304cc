// Weights from the page's block as float32: float32, float16, or whole numbers times a step a row.

function halves() {
  // The float32 of every float16.
  const table = new Float32Array(65536);
  for (let bits = 0; bits < 65536; bits++) {
    const exponent = (bits >> 10) & 31, fraction = bits & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24
      : exponent === 31 ? (fraction ? NaN : Infinity)
      : (1 + fraction / 1024) * 2 ** (exponent - 15);
    table[bits] = bits & 32768 ? -size : size;
  }
  return table;
}

class Tensors {
  constructor(entries, bytes) {
    this.entries = entries;
    this.bytes = bytes;
    this.table = null;
  }

  shape(index) {
    return this.entries[index].shape;
  }

  // The values of a stored tensor, row after row; null for none. Equal columns are there once.
  floats(index) {
    if (index === null || index === undefined) return null;
    const { shape, type, start, scale } = this.entries[index];
    const count = shape.reduce((a, b) => a * b, 1);
    const stored = this.stored(type, start, count);
    if (scale === undefined) return Float32Array.from(stored);
    const scales = this.floats(scale), row = count / shape[0];
    const values = new Float32Array(count);
    for (let i = 0, at = 0; i < shape[0]; i++)
      for (const end = at + row; at < end; at++) values[at] = stored[at] * scales[i];
    return values;
  }

  // Of a matrix with equal columns: which of the stored columns each is; else null.
  columns(index) {
    const { columns } = this.entries[index];
    return columns === undefined ? null : this.floats(columns);
  }

  stored(type, start, count) {
    const buffer = this.bytes.buffer, offset = this.bytes.byteOffset + start;
    if (type === "f32") return new Float32Array(buffer, offset, count);
    if (type === "i8") return new Int8Array(buffer, offset, count);
    // All low bytes from -128 to 127, then all high bytes.
    const low = new Int8Array(buffer, offset, count), high = new Int8Array(buffer, offset + count, count);
    const words = new Uint16Array(count);
    for (let i = 0; i < count; i++) words[i] = (high[i] << 8) + low[i];
    if (type === "i16") return new Int16Array(words.buffer);
    this.table ??= halves();
    const table = this.table, values = new Float32Array(count);
    for (let i = 0; i < count; i++) values[i] = table[words[i]];
    return values;
  }
}
