// The picture: where it comes from, and what is done to it before it goes into the network.

/** Edits of a picture: strokes on it, and a shift, turn, brightness and noise over them; undone step by step. */
function makeEditor(state) {
  const {network} = state;
  const [height, width] = network.size, area = height * width;
  const planes = network.channels;
  const none = () => ({dx: 0, dy: 0, angle: 0, light: 0, noise: 0});
  let base = null, how = none(), past = [], grain = null;
  const apply = eachFrame(() => state.setPicture(applied()));
  const editor = {
    get how() { return how; },
    get undoable() { return past.length > 0; },
    load(picture, title) {
      base = picture; how = none(); past = [];
      state.setPicture(picture, title);
    },
    /** Keep the present picture, so that undo comes back to it. */
    keep() { past.push({base, how: {...how}}); if (past.length > 60) past.shift(); },
    undo() {
      const before = past.pop();
      if (!before) return;
      ({base, how} = before);
      state.setPicture(applied());
    },
    reset() { if (!base) return; editor.keep(); if (editor.source) base = editor.source; how = none(); state.setPicture(applied()); },
    change(change) { Object.assign(how, change); apply(); },
    /** Strokes go onto the picture as it is seen. */
    begin() { editor.keep(); base = Float32Array.from(applied()); how = none(); },
    dab(y, x, radius, color) {
      const next = Float32Array.from(base);
      for (let py = Math.max(0, Math.floor(y - radius)); py <= Math.min(height - 1, y + radius); py++) {
        for (let px = Math.max(0, Math.floor(x - radius)); px <= Math.min(width - 1, x + radius); px++) {
          const cover = clamp(radius + 0.5 - Math.hypot(py + 0.5 - y, px + 0.5 - x), 0, 1);
          for (let c = 0; c < planes; c++) {
            const i = c * area + py * width + px;
            next[i] += cover * (color[c] - next[i]);
          }
        }
      }
      base = next;
    },
    show() { state.setPicture(base); },
  };
  function applied() {
    if (!how.dx && !how.dy && !how.angle && !how.light && !how.noise) return base;
    if (!how.dx && !how.dy && !how.angle && !how.noise) return base.map((value) => clamp(value + how.light, 0, 1));
    const next = new Float32Array(base.length);
    const turn = how.angle * Math.PI / 180, cos = Math.cos(turn), sin = Math.sin(turn);
    if (how.noise && !grain) grain = Float32Array.from({length: planes * area}, gaussian);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const ry = y - how.dy - (height - 1) / 2, rx = x - how.dx - (width - 1) / 2;
        const sy = cos * ry - sin * rx + (height - 1) / 2, sx = sin * ry + cos * rx + (width - 1) / 2;
        for (let c = 0; c < planes; c++) {
          const i = c * area + y * width + x;
          const value = between(c, sy, sx) + how.light + (how.noise ? how.noise * grain[i] : 0);
          next[i] = clamp(value, 0, 1);
        }
      }
    }
    return next;
  }
  /** Bilinear; what lies outside has the mean color. */
  function between(c, y, x) {
    const top = Math.floor(y), left = Math.floor(x), fy = y - top, fx = x - left;
    const at = (py, px) => (py < 0 || px < 0 || py >= height || px >= width ? network.mean[c] : base[c * area + py * width + px]);
    if (!fy && !fx) return at(top, left);
    return (1 - fy) * ((1 - fx) * at(top, left) + fx * at(top, left + 1)) + fy * ((1 - fx) * at(top + 1, left) + fx * at(top + 1, left + 1));
  }
  return editor;
}

function gaussian() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

/** The panel with the picture, its sources, its edits and its classes. */
function picturePanel(root, state) {
  const {network, samples} = state;
  const [height, width] = network.size;
  const editor = makeEditor(state);
  let brush = null, last = null, stream = null, color = "#d0402b", radius = Math.max(2, Math.round(width / 14));
  const canvas = board({label: "Your picture. Drop a picture here.", height, width, onpoint: stroke});
  canvas.element.classList.add("mine");
  canvas.element.removeAttribute("role");
  canvas.element.setAttribute("role", "img");
  canvas.element.setAttribute("tabindex", "-1");
  const title = h("p.title"), told = h("p.problem", {role: "alert", hidden: true});
  const classes = topClasses(state);
  const ms = h("p.quiet.small");
  const file = h("input", {type: "file", accept: "image/*", hidden: true, onchange: () => { if (file.files[0]) openFile(file.files[0]); file.value = ""; }});
  const video = h("video", {hidden: true, muted: true, playsinline: true});
  const camera = h("button", {type: "button", "aria-pressed": "false", onclick: () => (stream ? stopCamera() : startCamera())}, "Camera");
  const chosen = h("ul.samples", {"aria-label": "Bundled pictures"}, samples.map((sample) => h("li", {}, h("button", {type: "button", "aria-label": `Take the picture ${sample.name}`, title: sample.name,
    onclick: () => takeSample(sample)}, h("img", {src: sample.url, alt: "", draggable: "false"})))));
  const tools = choice("Brush", [["", "None", "Touching the picture does nothing"], ["hide", "Hide", "Cover parts of the picture"], ["paint", "Paint", "Paint with a color"]], "", (key) => setBrush(key || null));
  const swatch = h("input", {type: "color", value: color, "aria-label": "Color of the brush", oninput: () => { color = swatch.value; setBrush("paint"); tools.choose("paint"); }});
  const undo = h("button", {type: "button", title: "Undo (Ctrl Z)", onclick: () => { editor.undo(); sync(); }}, "Undo");
  const reset = h("button", {type: "button", onclick: () => { editor.reset(); sync(); }}, "Reset");
  const knobs = {
    dx: edit("Right", -width / 2, width / 2, 1, (v) => `${v} px`), dy: edit("Down", -height / 2, height / 2, 1, (v) => `${v} px`),
    angle: edit("Turn", -180, 180, 1, (v) => `${v}\u00b0`), light: edit("Light", -0.6, 0.6, 0.02, (v) => `${v > 0 ? "+" : ""}${Math.round(100 * v)}%`),
    noise: edit("Noise", 0, 0.5, 0.01, (v) => `${Math.round(100 * v)}%`),
  };
  for (const [name, knob] of Object.entries(knobs)) {
    knob.input.addEventListener("pointerdown", () => editor.keep());
    knob.input.addEventListener("keydown", (event) => { if (event.key.startsWith("Arrow") && !event.repeat) editor.keep(); });
    knob.input.dataset.knob = name;
  }
  function edit(label, min, max, step, text) {
    const made = slider(label, {min, max, step, value: 0, text, oninput: (value) => { editor.change({[made.input.dataset.knob]: value}); undo.disabled = false; }});
    return made;
  }
  const more = h("details.edit", {}, h("summary", {}, "Change it"),
    h("div.row", {}, tools.element, swatch), h("div.knobs", {}, Object.values(knobs).map((knob) => knob.element)), h("div.row", {}, undo, reset));
  root.append(
    h("div.own", {}, canvas.element, h("div.words", {}, title, classes.element, ms)), video, told,
    h("details.sources", {open: !matchMedia("(max-width: 700px)").matches}, h("summary", {}, "Take another picture"), chosen,
      h("div.row", {}, h("button", {type: "button", onclick: () => file.click()}, "Open a file"), camera,
        h("button", {type: "button", onclick: blank}, "Draw"), file),
      h("p.quiet.small", {}, "Or drop or paste one anywhere. It stays on this machine.")),
    more);

  function setBrush(kind) {
    brush = kind;
    canvas.element.classList.toggle("brush", Boolean(kind));
    canvas.element.parentElement.classList.toggle("large", Boolean(kind));
  }
  function stroke(y, x, event) {
    if (!brush) return;
    if (event.type === "pointerdown") { editor.begin(); last = null; undo.disabled = false; syncKnobs(); }
    const paint = brush === "hide" ? network.mean : channelsOf(color);
    const from = last || [y, x], steps = Math.max(1, Math.ceil(Math.hypot(y - from[0], x - from[1]) / (radius / 2)));
    for (let i = 1; i <= steps; i++) editor.dab(from[0] + (y - from[0]) * i / steps, from[1] + (x - from[1]) * i / steps, radius, paint);
    last = [y, x];
    editor.show();
  }
  function channelsOf(text) {
    const rgb = [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16) / 255);
    return network.channels === 1 ? [0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]] : rgb;
  }
  function blank() {
    stopCamera();
    const area = height * width;
    load(Float32Array.from({length: network.channels * area}, () => 0.96), "your drawing");
    more.open = true;
    tools.choose("paint"); setBrush("paint");
    canvas.element.scrollIntoView({block: "nearest"});
  }
  function load(picture, name) {
    editor.source = picture;
    editor.load(picture, name);
    sync();
  }
  function sync() { syncKnobs(); undo.disabled = !editor.undoable; }
  function syncKnobs() { for (const [name, knob] of Object.entries(knobs)) knob.set(editor.how[name]); }
  function fail(text) { told.textContent = text; told.hidden = false; }

  async function openFile(given) {
    stopCamera();
    try {
      const bitmap = await createImageBitmap(given, {imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none"});
      load(await network.input(bitmap), given.name || "your picture");
      told.hidden = true;
    } catch { fail(`${given.name || "This"} is no picture that this browser can read; try a JPEG or PNG file.`); }
  }
  async function takeSample(sample) {
    stopCamera();
    const image = new Image();
    image.src = sample.url;
    await image.decode();
    load(pixelsAsTheyAre(image), sample.name);
    told.hidden = true;
  }
  /** A sample was resized and cropped at build time. */
  function pixelsAsTheyAre(image) {
    const copy = Object.assign(document.createElement("canvas"), {width, height}), context = copy.getContext("2d");
    context.drawImage(image, 0, 0, width, height);
    const {data} = context.getImageData(0, 0, width, height), area = height * width;
    return Float32Array.from({length: network.channels * area}, (_, i) => data[4 * (i % area) + Math.floor(i / area)] / 255);
  }
  async function startCamera() {
    try {
      stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment", width: {ideal: 640}}, audio: false});
    } catch (error) {
      fail(error.name === "NotAllowedError" ? "The browser does not allow the camera here; allow it beside the address, or open a file." : "No camera was found; open a file instead.");
      return;
    }
    told.hidden = true;
    video.srcObject = stream;
    await video.play();
    camera.textContent = "Stop camera";
    camera.setAttribute("aria-pressed", "true");
    watch();
  }
  async function watch() {
    // One frame after the other, none before the network is through with the last.
    while (stream) {
      if (video.readyState >= 2) load(await network.input(video), "your camera");
      await new Promise((done) => { const stop = state.on("run", () => { stop(); done(); }); setTimeout(() => { stop(); done(); }, 400); });
      await new Promise(requestAnimationFrame);
    }
  }
  function stopCamera() {
    if (!stream) return;
    stream.getTracks().forEach((track) => track.stop());
    stream = null;
    camera.textContent = "Camera";
    camera.setAttribute("aria-pressed", "false");
  }

  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("dropping"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const given = [...event.dataTransfer.files].find((one) => one.type.startsWith("image/"));
    if (given) openFile(given); else fail("What was dropped is no picture file.");
  });
  addEventListener("paste", (event) => {
    const given = [...(event.clipboardData ? event.clipboardData.items : [])].find((one) => one.type.startsWith("image/"));
    if (given) openFile(given.getAsFile());
  });
  addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !/^(INPUT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); editor.undo(); sync(); }
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) stopCamera(); });

  state.on("picture", () => { paintPicture(canvas.canvas, state.picture, height, width); title.textContent = state.title; });
  state.on("run", () => {
    classes.update();
    ms.textContent = `All layers in ${Math.max(1, Math.round(state.run.ms))} ms, in this page`;
  });
  state.on("failed", () => fail(state.problem));
  state.small = () => canvas.canvas;
  undo.disabled = true;
  return {takeSample, load, openFile};
}
