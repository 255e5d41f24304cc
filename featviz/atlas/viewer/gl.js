// Drawing by WebGL2: rows as points in buffers of the card, pictures as quads from texture arrays.
//
// Only visible pictures are uploaded, four corners each. (Instances, one a picture, take fifteen
// times as long where a processor draws.)
// Each picture has a layer of its own in a texture array, so neither filtering nor mipmaps mix it
// with others. A sheet becomes one texture, or more where the machine allows fewer layers. Input is
// a `frame` (see scene.js); flat.js takes the same and draws the same.

const DOT_VERTEX = `#version 300 es
layout(location = 0) in vec2 a_from;
layout(location = 1) in vec2 a_to;
layout(location = 2) in vec4 a_color;
uniform vec3 u_camera;
uniform vec2 u_half;
uniform float u_t, u_size, u_alpha;
out vec4 v_color;
void main() {
  vec2 p = (mix(a_from, a_to, u_t) - u_camera.xy) * u_camera.z / u_half;
  gl_Position = vec4(p.x, -p.y, 0.0, 1.0);
  gl_PointSize = u_size + 1.0;
  float alpha = a_color.a * u_alpha;
  v_color = vec4(a_color.rgb * alpha, alpha);
}`;

const DOT_FRAGMENT = `#version 300 es
precision highp float;
in vec4 v_color;
uniform float u_size, u_square;
out vec4 color;
void main() {
  vec2 d = abs(gl_PointCoord - 0.5) * (u_size + 1.0);
  float away = mix(length(d), max(d.x, d.y), u_square);
  color = v_color * clamp(u_size * 0.5 - away + 0.5, 0.0, 1.0);
}`;

const PICTURE_VERTEX = `#version 300 es
layout(location = 0) in vec4 a_place; // x and y of the middle from the canvas's, size, layer
layout(location = 1) in vec4 a_color;
uniform vec2 u_half;
out vec2 v_uv;
out vec4 v_color;
out float v_size;
flat out float v_layer;
void main() {
  vec2 corner = vec2(gl_VertexID & 1, (gl_VertexID >> 1) & 1);
  v_size = a_place.z;
  // Half a pixel more on each side, for smooth edges at places between pixels.
  v_uv = mix(vec2(-0.5), vec2(v_size + 0.5), corner) / v_size;
  vec2 p = (a_place.xy + (corner - 0.5) * (v_size + 1.0)) / u_half;
  gl_Position = vec4(p.x, -p.y, 0.0, 1.0);
  v_color = a_color;
  v_layer = a_place.w;
}`;

const PICTURE_FRAGMENT = `#version 300 es
precision highp float;
precision highp sampler2DArray;
in vec2 v_uv;
in vec4 v_color;
in float v_size;
flat in float v_layer;
uniform sampler2DArray u_pictures;
uniform float u_frame;
out vec4 color;
void main() {
  vec3 seen = texture(u_pictures, vec3(v_uv, v_layer), -0.4).rgb;
  vec2 inside = min(v_uv, 1.0 - v_uv) * v_size;
  float edge = min(inside.x, inside.y);
  seen = mix(v_color.rgb, seen, clamp(edge - u_frame + 0.5, 0.0, 1.0));
  vec2 cover = clamp(inside + 0.5, 0.0, 1.0);
  float alpha = cover.x * cover.y * v_color.a;
  color = vec4(seen * alpha, alpha);
}`;

// A renderer on this canvas, or null where WebGL2 is missing, fails, or (unless `anyway`) would be
// drawn by the processor, which flat.js does faster. `redraw` is called when something has become
// drawable (a sheet on the card, a context that came back).
function makeGlRenderer(canvas, atlas, views, anyway, redraw) {
  const gl = canvas.getContext("webgl2", {
    alpha: false, antialias: false, depth: false, stencil: false,
    powerPreference: "high-performance", failIfMajorPerformanceCaveat: !anyway,
  });
  if (!gl) return null;
  const about = () => {
    const more = gl.getExtension("WEBGL_debug_renderer_info");
    return gl.getParameter(more ? more.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
  };
  if (!anyway && /swiftshader|llvmpipe|softpipe|software|basic render/i.test(about())) return null;

  const NUMBERS = 5; // 32-bit numbers of a corner: x, y, size, layer, color
  let programs, dots, tiled, quads, textures, layersOfPage, lost = false, scratch = null;
  let floats = new Float32Array(0), words = new Uint32Array(0);
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

  function filled(values) {
    const made = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, made);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.STATIC_DRAW);
    return made;
  }

  // All objects on the card. False where they cannot be made.
  function build() {
    programs = { dots: compile(DOT_VERTEX, DOT_FRAGMENT), pictures: compile(PICTURE_VERTEX, PICTURE_FRAGMENT) };
    if (!programs.dots || !programs.pictures) return false;
    gl.disable(gl.DEPTH_TEST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    const most = gl.getParameter(gl.MAX_ARRAY_TEXTURE_LAYERS);
    layersOfPage = (strip) => Math.min(most, strip.per_sheet);
    // Rows without a picture come first, so that they can be drawn alone.
    const bare = [], seen = [];
    for (let row = 0; row < atlas.count; row++) (atlas.thumbOf[row] < 0 ? bare : seen).push(row);
    const order = Uint32Array.from([...bare, ...seen]);
    dots = { order, bare: bare.length, at: {}, color: gl.createBuffer(), rgba: null };
    for (const view of Object.values(views)) dots.at[view.name] = filled(gather(view.at, order, 2));
    tiled = atlas.tiles && { order: atlas.tiles.rows, at: filled(gather(views.points.at, atlas.tiles.rows, 2)), color: gl.createBuffer(), rgba: null };
    quads = { corners: gl.createBuffer(), index: gl.createBuffer(), room: 0 };
    textures = new Map(); // strip -> textures of its pages
    return true;
  }

  // Room for so many pictures at a time.
  function reserve(count) {
    if (count <= quads.room) return;
    quads.room = Math.max(1024, 2 ** Math.ceil(Math.log2(count)));
    const index = new Uint32Array(6 * quads.room);
    for (let i = 0; i < quads.room; i++) index.set([4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 2, 4 * i + 1, 4 * i + 3], 6 * i);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, quads.index);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, index, gl.STATIC_DRAW);
    const larger = new Float32Array(4 * NUMBERS * quads.room);
    larger.set(floats.subarray(0, Math.min(floats.length, larger.length)));
    floats = larger;
    words = new Uint32Array(larger.buffer);
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
    const most = layersOfPage(strip), pagesOfSheet = Math.ceil(strip.per_sheet / most);
    if (!textures.has(strip)) textures.set(strip, []);
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
      textures.get(strip)[sheet * pagesOfSheet + first / most] = texture;
    }
    for (const name of [gl.UNPACK_ROW_LENGTH, gl.UNPACK_IMAGE_HEIGHT, gl.UNPACK_SKIP_PIXELS, gl.UNPACK_SKIP_ROWS]) {
      gl.pixelStorei(name, 0);
    }
    if (!queue.length) scratch = null;
  }

  // ---- drawing ----------------------------------------------------------------------------
  function attribute(place, made, size, kind, stride, offset) {
    gl.bindBuffer(gl.ARRAY_BUFFER, made);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, size, kind, kind !== gl.FLOAT, stride, offset);
  }

  function drawDots({ camera, rows }, ratio) {
    const { program, at } = programs.dots;
    const { from, to, t, rgba, dots: how } = rows;
    const held = how.ranges ? tiled : dots;
    if (held.rgba !== rgba) {
      held.rgba = rgba;
      gl.bindBuffer(gl.ARRAY_BUFFER, held.color);
      gl.bufferData(gl.ARRAY_BUFFER, gather(rgba, held.order, 4), gl.DYNAMIC_DRAW);
    }
    gl.useProgram(program);
    gl.uniform3f(at.u_camera, camera.x, camera.y, camera.scale * ratio);
    gl.uniform2f(at.u_half, canvas.width / 2, canvas.height / 2);
    gl.uniform1f(at.u_t, t);
    gl.uniform1f(at.u_size, how.size * ratio);
    gl.uniform1f(at.u_alpha, how.alpha);
    gl.uniform1f(at.u_square, how.square ? 1 : 0);
    attribute(0, how.ranges ? tiled.at : dots.at[from.name], 2, gl.FLOAT, 0, 0);
    attribute(1, how.ranges ? tiled.at : dots.at[to.name], 2, gl.FLOAT, 0, 0);
    attribute(2, held.color, 4, gl.UNSIGNED_BYTE, 0, 0);
    for (const [first, behind] of how.ranges || [[0, how.bareOnly ? dots.bare : atlas.count]]) {
      gl.drawArrays(gl.POINTS, first, behind - first);
    }
    gl.disableVertexAttribArray(2);
  }

  function drawPictures(group, frame, ratio) {
    const { strip } = group;
    const pages = textures.get(strip);
    if (!pages) return;
    const most = layersOfPage(strip), pagesOfSheet = Math.ceil(strip.per_sheet / most);
    const runs = []; // [page, first picture, behind the last]
    let count = 0;
    eachPicture(group, frame.camera, ratio, canvas, (number, x, y, size, own, alpha) => {
      reserve(count + 1);
      const within = number % strip.per_sheet;
      const page = strip.sheetOf(number) * pagesOfSheet + Math.floor(within / most);
      const { rgba } = group;
      const color = rgba[own] | (rgba[own + 1] << 8) | (rgba[own + 2] << 16) | (Math.round(rgba[own + 3] * alpha) << 24);
      for (let corner = 0; corner < 4; corner++) {
        const at = NUMBERS * (4 * count + corner);
        floats[at] = x;
        floats[at + 1] = y;
        floats[at + 2] = size;
        floats[at + 3] = within % most;
        words[at + 4] = color;
      }
      count++;
      const last = runs[runs.length - 1];
      if (last && last[0] === page) last[2] = count; else runs.push([page, count - 1, count]);
    });
    if (!count) return;
    const { program, at } = programs.pictures;
    gl.useProgram(program);
    gl.uniform2f(at.u_half, canvas.width / 2, canvas.height / 2);
    gl.uniform1f(at.u_frame, group.frame * ratio);
    gl.uniform1i(at.u_pictures, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, quads.corners);
    gl.bufferData(gl.ARRAY_BUFFER, floats.subarray(0, 4 * NUMBERS * count), gl.STREAM_DRAW);
    attribute(0, quads.corners, 4, gl.FLOAT, 4 * NUMBERS, 0);
    attribute(1, quads.corners, 4, gl.UNSIGNED_BYTE, 4 * NUMBERS, 16);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, quads.index);
    for (const [page, first, behind] of runs) {
      if (!pages[page]) continue;
      gl.bindTexture(gl.TEXTURE_2D_ARRAY, pages[page]);
      gl.drawElements(gl.TRIANGLES, 6 * (behind - first), gl.UNSIGNED_INT, 24 * first);
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
    if (frame.rows && frame.rows.dots) drawDots(frame, ratio);
    for (const group of frame.pictures) drawPictures(group, frame, ratio);
  }

  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    lost = true;
  });
  canvas.addEventListener("webglcontextrestored", () => {
    lost = !build();
    queue.length = 0;
    for (const strip of [atlas.thumbs, ...atlas.levels.map((level) => level.icons)]) {
      if (strip) strip.bitmaps.forEach((bitmap, sheet) => { if (bitmap) queue.push([strip, sheet]); });
    }
    redraw();
  });

  if (!build()) return null;
  return {
    name: "webgl2", render,
    sheetReady(strip, sheet) { queue.push([strip, sheet]); redraw(); },
    settled: () => !lost && queue.length === 0,
    finish() { gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4)); },
    about,
    loseContext: () => gl.getExtension("WEBGL_lose_context"),
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
