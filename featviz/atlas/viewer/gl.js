// Drawing by WebGL2: rows as points, pictures as instanced quads from texture arrays.
//
// Each picture has a layer of its own in a texture array, so neither filtering nor mipmaps mix it
// with others. A sheet becomes one texture, or more where the machine allows fewer layers. What to
// draw is said by a `frame` (see viewer.js); flat.js takes the same and draws the same.

const DOT_VERTEX = `#version 300 es
layout(location = 0) in vec2 a_from;
layout(location = 1) in vec2 a_to;
layout(location = 2) in vec4 a_colour;
layout(location = 3) in float a_grow;
uniform vec3 u_camera;
uniform vec2 u_half;
uniform float u_t, u_size, u_alpha;
out vec4 v_colour;
out float v_size;
void main() {
  vec2 p = (mix(a_from, a_to, u_t) - u_camera.xy) * u_camera.z / u_half;
  gl_Position = vec4(p.x, -p.y, 0.0, 1.0);
  v_size = u_size * a_grow;
  gl_PointSize = v_size + 1.0;
  float alpha = a_colour.a * u_alpha;
  v_colour = vec4(a_colour.rgb * alpha, alpha);
}`;

const DOT_FRAGMENT = `#version 300 es
precision mediump float;
in vec4 v_colour;
in float v_size;
uniform float u_square;
out vec4 colour;
void main() {
  vec2 d = abs(gl_PointCoord - 0.5) * (v_size + 1.0);
  float away = mix(length(d), max(d.x, d.y), u_square);
  colour = v_colour * clamp(v_size * 0.5 - away + 0.5, 0.0, 1.0);
}`;

const PICTURE_VERTEX = `#version 300 es
layout(location = 0) in vec2 a_from;
layout(location = 1) in vec2 a_to;
layout(location = 2) in vec4 a_colour;
layout(location = 3) in float a_grow;
layout(location = 4) in float a_layer;
layout(location = 5) in float a_spacing;
uniform vec3 u_camera;
uniform vec2 u_half;
uniform float u_t, u_size, u_spacing;
out vec2 v_uv;
out vec4 v_colour;
out float v_size;
flat out float v_layer;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
  float shown = clamp((a_spacing / u_spacing - 1.0) * 20.0, 0.0, 1.0);
  float size = u_size * a_grow * (0.4 + 0.6 * shown);
  vec2 p = (mix(a_from, a_to, u_t) - u_camera.xy) * u_camera.z;
  if (shown == 0.0 || any(greaterThan(abs(p), u_half + size))) {
    gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
    return;
  }
  // Half a pixel more on each side, for smooth edges at places between pixels.
  v_uv = mix(vec2(-0.5), vec2(size + 0.5), corner) / size;
  p += (corner - 0.5) * (size + 1.0);
  gl_Position = vec4(p.x / u_half.x, -p.y / u_half.y, 0.0, 1.0);
  v_colour = vec4(a_colour.rgb, a_colour.a * shown);
  v_size = size;
  v_layer = a_layer;
}`;

const PICTURE_FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler2DArray;
in vec2 v_uv;
in vec4 v_colour;
in float v_size;
flat in float v_layer;
uniform sampler2DArray u_pictures;
uniform float u_frame, u_alpha;
out vec4 colour;
void main() {
  vec3 seen = texture(u_pictures, vec3(v_uv, v_layer), -0.4).rgb;
  vec2 inside = min(v_uv, 1.0 - v_uv) * v_size;
  float edge = min(inside.x, inside.y);
  seen = mix(v_colour.rgb, seen, clamp(edge - u_frame + 0.5, 0.0, 1.0));
  vec2 cover = clamp(inside + 0.5, 0.0, 1.0);
  float alpha = cover.x * cover.y * v_colour.a * u_alpha;
  colour = vec4(seen * alpha, alpha);
}`;

// A renderer on this canvas, or null where WebGL2 is missing or refuses. `redraw` is called when
// something has become drawable (a sheet on the card, a context that came back).
function makeGlRenderer(canvas, atlas, views, redraw) {
  const gl = canvas.getContext("webgl2", {
    alpha: false, antialias: false, depth: false, stencil: false, powerPreference: "high-performance",
  });
  if (!gl) return null;

  const thickness = 2; // numbers of a position
  let programs, buffers, batches, pages, lost = false, layersOfPage, scratch = null;
  const colours = { rows: null, cells: new Map() };
  let spacing = null;
  const queue = []; // [strip, sheet] waiting for the card, one a frame

  function compile(vertex, fragment) {
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
    const at = {};
    const count = gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS);
    for (let i = 0; i < count; i++) {
      const { name } = gl.getActiveUniform(program, i);
      at[name] = gl.getUniformLocation(program, name);
    }
    return { program, at };
  }

  function buffer(values) {
    const made = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, made);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    return made;
  }

  // Everything that lives on the card. False where it cannot be made.
  function build() {
    programs = { dots: compile(DOT_VERTEX, DOT_FRAGMENT), pictures: compile(PICTURE_VERTEX, PICTURE_FRAGMENT) };
    if (!programs.dots || !programs.pictures) return false;
    gl.disable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    const most = gl.getParameter(gl.MAX_ARRAY_TEXTURE_LAYERS);
    layersOfPage = (strip) => Math.min(most, strip.per_sheet);
    buffers = { rows: {}, bare: {} };
    batches = new Map();
    pages = new Map();
    // Rows without a picture come first, so that they can be drawn alone.
    const bare = [], seen = [];
    for (let row = 0; row < atlas.count; row++) (atlas.thumbOf[row] < 0 ? bare : seen).push(row);
    buffers.order = Uint32Array.from([...bare, ...seen]);
    buffers.bare = bare.length;
    for (const view of Object.values(views)) buffers.rows[view.name] = buffer(gather(view.at, buffers.order, 2));
    buffers.colour = buffer(new Uint8Array(4 * atlas.count));
    const at = {};
    for (const view of Object.values(views)) at[view.name] = gather(view.at, atlas.pictured, 2);
    batches.set("rows", makeBatch(atlas.thumbs, atlas.pictured.map((_, i) => i), at, null));
    if (colours.rows) setRowColours(colours.rows);
    if (spacing) setSpacing(spacing);
    return true;
  }

  // Pictures to draw in one go: `numbers` in their strip, ascending.
  function makeBatch(strip, numbers, at, grow) {
    const most = layersOfPage(strip);
    const layers = new Float32Array(numbers.length);
    const runs = []; // {page, start, count}
    numbers.forEach((number, i) => {
      const within = number % strip.per_sheet;
      const page = `${strip.name}/${strip.sheetOf(number)}/${Math.floor(within / most)}`;
      layers[i] = within % most;
      const last = runs[runs.length - 1];
      if (last && last.page === page) last.count++;
      else runs.push({ page, start: i, count: 1 });
    });
    const made = { runs, at: {}, layer: buffer(layers), count: numbers.length };
    for (const name of Object.keys(at)) made.at[name] = buffer(at[name]);
    made.grow = grow ? buffer(grow) : null;
    made.colour = buffer(new Uint8Array(4 * numbers.length));
    made.spacing = null;
    return made;
  }

  function cellsBatch(level, kind) {
    const key = `${level.side}/${kind}`;
    if (!batches.has(key)) {
      const strip = kind === "synthetic" ? level.icons : atlas.thumbs;
      const number = (cell) => (kind === "synthetic" ? cell : atlas.thumbOf[level.sample[cell]]);
      const cells = Uint32Array.from({ length: level.cells }, (_, i) => i)
        .filter((cell) => number(cell) >= 0).sort((a, b) => number(a) - number(b));
      const made = makeBatch(
        strip, Array.from(cells, number), { cells: gather(level.at, cells, 2) }, gather(level.grow, cells, 1),
      );
      made.cells = cells;
      if (colours.cells.has(level)) fillColours(made, colours.cells.get(level), cells);
      batches.set(key, made);
    }
    return batches.get(key);
  }

  function fillColours(batch, rgba, chosen) {
    gl.bindBuffer(gl.ARRAY_BUFFER, batch.colour);
    gl.bufferData(gl.ARRAY_BUFFER, gather(rgba, chosen, 4), gl.DYNAMIC_DRAW);
  }

  function setRowColours(rgba) {
    colours.rows = rgba;
    if (lost) return;
    gl.bindBuffer(gl.ARRAY_BUFFER, buffers.colour);
    gl.bufferData(gl.ARRAY_BUFFER, gather(rgba, buffers.order, 4), gl.DYNAMIC_DRAW);
    fillColours(batches.get("rows"), rgba, atlas.pictured);
  }

  function setCellColours(level, rgba) {
    colours.cells.set(level, rgba);
    if (lost) return;
    for (const kind of ["sample", "synthetic"]) {
      const batch = batches.get(`${level.side}/${kind}`);
      if (batch) fillColours(batch, rgba, batch.cells);
    }
  }

  function setSpacing(values) { // one a pictured row
    spacing = values;
    if (!lost) batches.get("rows").spacing = buffer(values);
  }

  // ---- textures ---------------------------------------------------------------------------
  function upload(strip, sheet) {
    const bitmap = strip.bitmaps[sheet];
    if (!bitmap) return;
    scratch = scratch || document.createElement("canvas");
    scratch.width = bitmap.width;
    scratch.height = bitmap.height;
    const pen = scratch.getContext("2d", { willReadFrequently: true });
    pen.drawImage(bitmap, 0, 0);
    const pixels = pen.getImageData(0, 0, bitmap.width, bitmap.height).data;
    const count = Math.floor(bitmap.width / strip.pitch) * strip.rows;
    const most = layersOfPage(strip);
    gl.pixelStorei(gl.UNPACK_ROW_LENGTH, bitmap.width);
    gl.pixelStorei(gl.UNPACK_IMAGE_HEIGHT, strip.pitch);
    for (let first = 0; first < count; first += most) {
      const texture = gl.createTexture();
      const layers = Math.min(most, count - first);
      gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
      gl.texStorage3D(gl.TEXTURE_2D_ARRAY, Math.floor(Math.log2(strip.size)) + 1, gl.RGBA8, strip.size, strip.size, layers);
      for (let layer = 0; layer < layers;) {
        const place = first + layer; // a run down one column of the sheet
        const run = Math.min(strip.rows - (place % strip.rows), layers - layer);
        gl.pixelStorei(gl.UNPACK_SKIP_PIXELS, Math.floor(place / strip.rows) * strip.pitch);
        gl.pixelStorei(gl.UNPACK_SKIP_ROWS, (place % strip.rows) * strip.pitch);
        gl.texSubImage3D(
          gl.TEXTURE_2D_ARRAY, 0, 0, 0, layer, strip.size, strip.size, run, gl.RGBA, gl.UNSIGNED_BYTE, pixels,
        );
        layer += run;
      }
      gl.generateMipmap(gl.TEXTURE_2D_ARRAY);
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
      pages.set(`${strip.name}/${sheet}/${first / most}`, texture);
    }
    for (const name of [gl.UNPACK_ROW_LENGTH, gl.UNPACK_IMAGE_HEIGHT, gl.UNPACK_SKIP_PIXELS, gl.UNPACK_SKIP_ROWS]) {
      gl.pixelStorei(name, 0);
    }
    if (!queue.length) scratch = null;
  }

  // ---- drawing ----------------------------------------------------------------------------
  function attribute(place, made, size, kind, divisor, start, fallback) {
    if (!made) {
      gl.disableVertexAttribArray(place);
      gl.vertexAttrib1f(place, fallback);
      return;
    }
    const wide = kind === gl.FLOAT ? 4 : 1;
    gl.bindBuffer(gl.ARRAY_BUFFER, made);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, kind, kind !== gl.FLOAT, 0, start * size * wide);
    gl.vertexAttribDivisor(place, divisor);
  }

  function begin({ program, at }, frame, ratio) {
    gl.useProgram(program);
    gl.uniform3f(at.u_camera, frame.camera.x, frame.camera.y, frame.camera.scale * ratio);
    gl.uniform2f(at.u_half, canvas.width / 2, canvas.height / 2);
  }

  function drawDots(frame, ratio) {
    const { from, to, t, dots } = frame.rows;
    const { at } = programs.dots;
    begin(programs.dots, frame, ratio);
    gl.uniform1f(at.u_t, t);
    gl.uniform1f(at.u_size, dots.size * ratio);
    gl.uniform1f(at.u_alpha, dots.alpha);
    gl.uniform1f(at.u_square, dots.square ? 1 : 0);
    attribute(0, buffers.rows[from.name], thickness, gl.FLOAT, 0, 0);
    attribute(1, buffers.rows[to.name], thickness, gl.FLOAT, 0, 0);
    attribute(2, buffers.colour, 4, gl.UNSIGNED_BYTE, 0, 0);
    attribute(3, null, 1, gl.FLOAT, 0, 0, 1);
    gl.drawArrays(gl.POINTS, 0, dots.bareOnly ? buffers.bare : atlas.count);
  }

  function drawPictures(batch, from, to, t, how, frame, ratio) {
    const { at } = programs.pictures;
    begin(programs.pictures, frame, ratio);
    gl.uniform1f(at.u_t, t);
    gl.uniform1f(at.u_size, how.size * ratio);
    gl.uniform1f(at.u_spacing, Math.max(how.spacing, 1e-6));
    gl.uniform1f(at.u_frame, how.frame * ratio);
    gl.uniform1f(at.u_alpha, how.alpha);
    gl.uniform1i(at.u_pictures, 0);
    for (const run of batch.runs) {
      const texture = pages.get(run.page);
      if (!texture) continue;
      gl.bindTexture(gl.TEXTURE_2D_ARRAY, texture);
      attribute(0, batch.at[from], thickness, gl.FLOAT, 1, run.start);
      attribute(1, batch.at[to], thickness, gl.FLOAT, 1, run.start);
      attribute(2, batch.colour, 4, gl.UNSIGNED_BYTE, 1, run.start);
      attribute(3, batch.grow, 1, gl.FLOAT, 1, run.start, 1);
      attribute(4, batch.layer, 1, gl.FLOAT, 1, run.start);
      attribute(5, batch.spacing, 1, gl.FLOAT, 1, run.start, 1e3);
      gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, run.count);
    }
  }

  function render(frame, ratio) {
    if (lost) return;
    if (queue.length) {
      upload(...queue.shift());
      redraw();
    }
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(...frame.ground.map((value) => value / 255), 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    if (frame.rows) {
      const { from, to, t, dots, pictures } = frame.rows;
      if (dots) drawDots(frame, ratio);
      if (pictures) drawPictures(batches.get("rows"), from.name, to.name, t, pictures, frame, ratio);
    }
    for (const { level, icons, ...how } of frame.cells) {
      drawPictures(cellsBatch(level, icons), "cells", "cells", 0, { ...how, spacing: 0 }, frame, ratio);
    }
  }

  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    lost = true;
  });
  canvas.addEventListener("webglcontextrestored", () => {
    lost = false; // so that build fills the colours again
    lost = !build();
    queue.length = 0;
    for (const strip of [atlas.thumbs, ...atlas.levels.map((level) => level.icons)]) {
      if (strip) strip.bitmaps.forEach((bitmap, sheet) => { if (bitmap) queue.push([strip, sheet]); });
    }
    redraw();
  });

  if (!build()) return null;
  return {
    name: "webgl2", render, setRowColours, setCellColours, setSpacing,
    sheetReady(strip, sheet) { queue.push([strip, sheet]); redraw(); },
    settled: () => !lost && queue.length === 0,
    finish() { gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); },
    about: () => {
      const more = gl.getExtension("WEBGL_debug_renderer_info");
      return gl.getParameter(more ? more.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
    },
    loseContext() { return gl.getExtension("WEBGL_lose_context"); },
  };
}

// Chosen rows of an array with `size` values a row.
function gather(values, chosen, size) {
  const found = new values.constructor(chosen.length * size);
  for (let i = 0; i < chosen.length; i++) {
    for (let j = 0; j < size; j++) found[i * size + j] = values[chosen[i] * size + j];
  }
  return found;
}
