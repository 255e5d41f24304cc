// Convolutions and matrices by the graphics card, with WebGL2 in the worker: a fragment gives four
// units at four neighboring cells, one texture for each cell. Numbers are float32, four a texel:
// weights of four units for four inputs, inputs of four channels, sums of four units.
//
// What is faster here than by WebAssembly is measured in the page (`moveToCard`). A card that is lost,
// or that gives an error, is not asked again.

const ROW = 1024; // texels a line of a texture
const MOST = 1 << 24; // weights of a product: more take long to lay out
const SHADER = `#version 300 es
precision highp float;
precision highp int;
precision highp sampler2D;
uniform sampler2D weights, inputs;
uniform ivec2 kernel, stride, dilation, size; // size of the padded input
uniform ivec4 counts; // fours of inputs and of units a group, columns, cells
layout(location = 0) out vec4 sum0;
layout(location = 1) out vec4 sum1;
layout(location = 2) out vec4 sum2;
layout(location = 3) out vec4 sum3;
vec4 at(sampler2D numbers, int i) {
  return texelFetch(numbers, ivec2(i & ${ROW - 1}, i / ${ROW}), 0);
}
void main() {
  ivec2 place = ivec2(gl_FragCoord.xy);
  int i = place.y * ${ROW} + place.x, quads = (counts.w + 3) / 4, four = i / quads;
  ivec4 cell = min(4 * (i - four * quads) + ivec4(0, 1, 2, 3), counts.w - 1), row = cell / counts.z;
  ivec4 first = row * stride.x * size.y + (cell - row * counts.z) * stride.y;
  first += four / counts.y * counts.x * size.x * size.y;
  int w = four * counts.x * kernel.x * kernel.y * 4;
  sum0 = sum1 = sum2 = sum3 = vec4(0);
  for (int c = 0; c < counts.x; c++)
    for (int a = 0; a < kernel.x; a++)
      for (int b = 0; b < kernel.y; b++, w += 4) {
        mat4 m = mat4(at(weights, w), at(weights, w + 1), at(weights, w + 2), at(weights, w + 3));
        ivec4 p = first + (c * size.x + a * dilation.x) * size.y + b * dilation.y;
        sum0 += m * at(inputs, p.x);
        sum1 += m * at(inputs, p.y);
        sum2 += m * at(inputs, p.z);
        sum3 += m * at(inputs, p.w);
      }
}`;
const FAILED = "WebGL2 has failed";
const CORNERS = `#version 300 es
void main() {
  gl_Position = vec4(vec2(gl_VertexID & 1, gl_VertexID >> 1) * 4.0 - 1.0, 0, 1);
}`;

class Card {
  // `how` as in `moveToCard`; throws the reason where there is none.
  constructor(how) {
    const gl = typeof OffscreenCanvas === "function"
      && new OffscreenCanvas(1, 1).getContext("webgl2", { powerPreference: "high-performance" });
    if (!gl) throw new Error("this browser has no WebGL2");
    const more = gl.getExtension("WEBGL_debug_renderer_info");
    this.gl = gl;
    this.name = gl.getParameter(more ? more.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
    if (!how && /swiftshader|llvmpipe|softpipe|software|basic render/i.test(this.name))
      throw new Error("WebGL2 is drawn by the processor");
    if (!gl.getExtension("EXT_color_buffer_float")) throw new Error("WebGL2 cannot draw float32");
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, CORNERS], [gl.FRAGMENT_SHADER, SHADER]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    this.places = {};
    for (const name of ["weights", "inputs", "kernel", "stride", "dilation", "size", "counts"])
      this.places[name] = gl.getUniformLocation(program, name);
    gl.uniform1i(this.places.weights, 0);
    gl.uniform1i(this.places.inputs, 1);
    gl.bindFramebuffer(gl.FRAMEBUFFER, gl.createFramebuffer());
    this.inputs = this.texture(1, 1);
    this.sums = [0, 1, 2, 3].map((i) => {
      const one = this.texture(2 + i, 1);
      gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0 + i, gl.TEXTURE_2D, one.texture, 0);
      return one;
    });
    gl.bindBuffer(gl.PIXEL_PACK_BUFFER, gl.createBuffer());
    gl.drawBuffers([0, 1, 2, 3].map((i) => gl.COLOR_ATTACHMENT0 + i));
    if (gl.checkFramebufferStatus(gl.FRAMEBUFFER) !== gl.FRAMEBUFFER_COMPLETE || this.failed())
      throw new Error("WebGL2 cannot draw float32");
  }

  // A texture in a unit of the card, of `rows` lines.
  texture(unit, rows, numbers = null) {
    const gl = this.gl, one = { unit, rows: 0, texture: gl.createTexture() };
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(gl.TEXTURE_2D, one.texture);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
    this.grow(one, rows, numbers);
    return one;
  }

  grow(one, rows, numbers = null) {
    if (rows <= one.rows) return;
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE0 + one.unit);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, ROW, rows, 0, gl.RGBA, gl.FLOAT, numbers);
    one.rows = rows;
  }

  failed() {
    if (!this.lost && (this.gl.isContextLost() || this.gl.getError())) {
      this.lost = true;
      self.postMessage({ card: { reason: FAILED } });
    }
    return this.lost;
  }
}

// One product on the card; `product` is a `Convolution` or a `Matrix`.
class CardProduct {
  constructor(card, product) {
    const { groups, shape, kernel, stride, padding, dilation } = product.one, [ky, kx] = kernel;
    const [channels, tall, wide] = product.before, [units, rows, columns] = shape;
    const inputs = channels / groups, outputs = units / groups;
    const fours = Math.ceil(inputs / 4), groupFours = Math.ceil(outputs / 4);
    Object.assign(this, { card, product, groups, inputs, outputs, fours, groupFours, cells: rows * columns });
    this.size = [tall + 2 * padding[0], wide + 2 * padding[1]];
    this.quads = Math.ceil(this.cells / 4);
    const lines = (texels) => Math.ceil(texels / ROW), depth = fours * ky * kx;
    this.rows = lines(groups * groupFours * this.quads);
    this.numbers = new Float32Array(4 * ROW * lines(groups * fours * this.size[0] * this.size[1]));
    this.sums = new Float32Array(16 * ROW * this.rows); // texture after texture
    const weights = new Float32Array(4 * ROW * lines(4 * groups * groupFours * depth));
    for (let unit = 0; unit < units; unit++) {
      const row = product.row(unit), o = unit % outputs, place = ky * kx;
      const at = 16 * depth * (Math.floor(unit / outputs) * groupFours + (o >> 2)) + (o & 3);
      for (let c = 0, i = 0; c < inputs; c++)
        for (let k = 0; k < place; k++) weights[at + 16 * ((c >> 2) * place + k) + 4 * (c & 3)] = row[i++];
    }
    this.weights = card.texture(0, weights.length / (4 * ROW), weights);
    this.uniforms = { kernel, stride, dilation, size: this.size, counts: [fours, groupFours, columns, this.cells] };
  }

  // The value, or null where the card has failed.
  forward(x) {
    const { card, numbers, rows } = this, { gl } = card;
    if (card.lost) return null;
    this.pack(x);
    card.grow(card.inputs, numbers.length / (4 * ROW));
    gl.activeTexture(gl.TEXTURE0 + 1);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, ROW, numbers.length / (4 * ROW), gl.RGBA, gl.FLOAT, numbers);
    for (const one of card.sums) card.grow(one, rows);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.weights.texture);
    for (const [name, value] of Object.entries(this.uniforms)) gl[`uniform${value.length}iv`](card.places[name], value);
    gl.viewport(0, 0, ROW, rows);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
    // All four into one buffer, so that the card is waited for once.
    gl.bufferData(gl.PIXEL_PACK_BUFFER, this.sums.byteLength, gl.STREAM_READ);
    for (let i = 0; i < 4; i++) {
      gl.readBuffer(gl.COLOR_ATTACHMENT0 + i);
      gl.readPixels(0, 0, ROW, rows, gl.RGBA, gl.FLOAT, i * this.sums.byteLength / 4);
    }
    gl.getBufferSubData(gl.PIXEL_PACK_BUFFER, 0, this.sums);
    return card.failed() ? null : this.unpacked();
  }

  pack(x) {
    const { numbers, groups, inputs, fours, size: [tall, wide], product: { before, one } } = this;
    const [, rows, columns] = before, [top, left] = one.padding;
    for (let group = 0, from = 0; group < groups; group++)
      for (let c = 0; c < inputs; c++)
        for (let r = 0; r < rows; r++) {
          const line = ((group * fours + (c >> 2)) * tall + r + top) * wide + left;
          for (let q = 0, to = 4 * line + (c & 3); q < columns; q++, to += 4) numbers[to] = x[from++];
        }
  }

  unpacked() {
    const { sums, groups, outputs, groupFours, quads, cells, product: { bias } } = this;
    const y = new Float32Array(groups * outputs * cells), each = sums.length / 4;
    for (let unit = 0; unit < groups * outputs; unit++) {
      const o = unit % outputs, four = Math.floor(unit / outputs) * groupFours + (o >> 2), add = bias ? bias[unit] : 0;
      for (let q = 0, at = 4 * four * quads + (o & 3), to = unit * cells; q < cells; q++)
        y[to++] = sums[at + (q & 3) * each + (q & -4)] + add;
    }
    return y;
  }
}

// Gives the card the products that it computes faster: from the heaviest on, up to the first that it
// does not. `how` is for tests: "imitated" tries a card that the processor imitates, too, and "always"
// takes all products, however slow. Gives what `Engine.card` is.
async function moveToCard(network, how, pause) {
  const always = how === "always", moved = [], faster = [];
  try {
    const card = new Card(how);
    for (const product of network.products(MOST)) {
      const other = new CardProduct(card, product), ratio = await speedup(product, other, pause);
      if (!always && !(ratio >= 1.3)) break;
      product.card = other;
      moved.push(product);
      faster.push(ratio);
    }
    return { name: card.name, faster };
  } catch (error) {
    for (const product of moved) product.card = null;
    return { reason: error.message };
  }
}

// How many times as fast a product is on the card; throws where the numbers differ.
async function speedup(product, other, pause) {
  const x = Float32Array.from({ length: size(product.before) }, (_, i) => Math.sin(i * i));
  const least = [Infinity, Infinity];
  for (let round = 0; round < 4; round++) {
    const values = [];
    for (const [i, one] of [product, other].entries()) {
      await pause();
      const began = performance.now();
      values.push(one.forward(x));
      if (round) least[i] = Math.min(least[i], performance.now() - began);
    }
    if (round) continue;
    const [own, found] = values;
    if (!found) throw new Error(FAILED);
    const largest = own.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
    if (!own.every((v, i) => Math.abs(v - found[i]) <= 1e-4 * largest)) throw new Error("WebGL2 gave other numbers");
  }
  return least[0] / least[1];
}
