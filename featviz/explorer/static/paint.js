// Numbers to colors on canvases: pictures, and signed maps between blue (below 0) and red (above).

const SHADES = 255;
const BUDGET = 8;  // milliseconds of a frame after which no more maps are painted
let ramp = null, image = null;

function mix(one, other, share) {
  return one.map((value, i) => value + share * (other[i] - value));
}

/** Colors of -1 ... 1 for the current theme: strongly below 0, zero is the paper, strongly above. */
function readRamp() {
  const dark = isDark();
  const zero = dark ? [29, 31, 34] : [244, 241, 234];
  const above = dark ? [[190, 92, 60], [255, 190, 150], [255, 240, 225]] : [[224, 140, 100], [168, 57, 26], [84, 20, 6]];
  const below = dark ? [[52, 104, 168], [130, 185, 245], [225, 240, 255]] : [[128, 170, 205], [38, 92, 150], [10, 36, 78]];
  ramp = new Uint32Array(2 * SHADES + 1);
  for (let i = -SHADES; i <= SHADES; i++) {
    const size = Math.abs(i) / SHADES;
    const [mid, strong, most] = i < 0 ? below : above;
    const [r, g, b] = size < 0.4 ? mix(zero, mid, size / 0.4)
      : size < 0.85 ? mix(mid, strong, (size - 0.4) / 0.45) : mix(strong, most, (size - 0.85) / 0.15);
    ramp[i + SHADES] = 0xff000000 | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r);
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Paint height x width values, -limit ... limit, one pixel each; `from` is the first value. */
function paintMap(canvas, values, height, width, limit, from = 0, count = height * width) {
  if (!ramp) readRamp();
  const {pixels, put} = blankImage(canvas, height, width);
  const scale = limit > 0 ? SHADES / limit : 0;
  for (let i = 0; i < count; i++) {
    pixels[i] = ramp[Math.round(clamp(values[from + i] * scale, -SHADES, SHADES)) + SHADES];
  }
  pixels.fill(0, count);
  put();
}

/** Paint a picture of planes (3 or 1, height, width) in 0 ... 1. */
function paintPicture(canvas, planes, height, width) {
  const {bytes, put} = blankImage(canvas, height, width);
  const area = height * width;
  const green = planes.length > area ? area : 0;
  for (let i = 0; i < area; i++) {
    bytes[4 * i] = 255 * planes[i] + 0.5;
    bytes[4 * i + 1] = 255 * planes[i + green] + 0.5;
    bytes[4 * i + 2] = 255 * planes[i + 2 * green] + 0.5;
    bytes[4 * i + 3] = 255;
  }
  put();
}

/** Paint a kernel or a perturbation: mid-gray is 0, the largest value reaches black or white. */
function paintAroundGray(canvas, planes, height, width, limit = largest(planes)) {
  const scale = limit > 0 ? 0.5 / limit : 0;
  paintPicture(canvas, Float32Array.from(planes, (v) => clamp(0.5 + scale * v, 0, 1)), height, width);
}

/** Pixels to be filled and put onto a canvas; equal sizes share them. */
function blankImage(canvas, height, width) {
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  const context = canvas.getContext("2d");
  if (!image || image.width !== width || image.height !== height) image = context.createImageData(width, height);
  const {data} = image;
  return {bytes: data, pixels: new Uint32Array(data.buffer), put: () => context.putImageData(image, 0, 0)};
}

/**
 * paintLater(canvas, paint) calls paint() in one of the next frames: of each canvas the newest,
 * once it is in view; at least one a frame, and more until 8 ms of the frame's work are over.
 */
const paintLater = (() => {
  const waiting = new Map(), seen = new WeakSet();
  const work = eachFrame((began) => {
    for (const [canvas, paint] of waiting) {
      if (!canvas.isConnected) waiting.delete(canvas);
      if (!canvas.isConnected || !seen.has(canvas)) continue;
      waiting.delete(canvas);
      paint();
      if (performance.now() - began >= BUDGET) { work(); return; }
    }
  }, {last: true});
  const watch = new IntersectionObserver((entries) => {
    for (const {target, isIntersecting} of entries) isIntersecting ? seen.add(target) : seen.delete(target);
    work();
  }, {rootMargin: "100px"});
  return (canvas, paint) => {
    waiting.set(canvas, paint);
    watch.observe(canvas);
    work();
  };
})();

function largest(values, from = 0, count = values.length - from) {
  let most = 0;
  for (let i = from; i < from + count; i++) most = Math.max(most, Math.abs(values[i]));
  return most;
}

/** A limit for a whole layer that a few extreme values do not set. */
function layerLimit(values) {
  const step = Math.max(1, Math.floor(values.length / 20000));
  const some = new Float32Array(Math.ceil(values.length / step)).map((_, i) => Math.abs(values[i * step])).sort();
  return some[Math.floor(0.998 * (some.length - 1))] || largest(values) || 1;
}

/** A canvas; the size, where it is known, keeps its place until it is painted. */
const pixelCanvas = (label, height, width) => h("canvas.pixels", {height, width, ...(label ? {role: "img", "aria-label": label} : {"aria-hidden": "true"})});

/**
 * A picture or map under frames: moved over by pointer and arrow keys.
 *
 * The coordinates are pixels of the picture, from -margin to its side plus margin. `onpoint(y, x)` gets
 * them while the pointer is down (or over it, with `hover`), `onmove(dy, dx)` the arrow keys.
 */
function board({label, height, width, margin = 0, hover = false, onpoint, onmove}) {
  const canvas = pixelCanvas();
  const tall = height + 2 * margin, wide = width + 2 * margin;
  const marks = svg("svg", {viewBox: `${-margin} ${-margin} ${wide} ${tall}`, "aria-hidden": "true", preserveAspectRatio: "none"});
  canvas.style.cssText = `left:${100 * margin / wide}%;top:${100 * margin / tall}%;width:${100 * width / wide}%;height:${100 * height / tall}%`;
  const touched = Boolean(onpoint || onmove);
  const element = h("div.board", {
    style: `aspect-ratio:${wide}/${tall}`,
    tabindex: touched ? 0 : null,
    role: touched ? "application" : "img",
    "aria-label": label,
  }, canvas, marks);
  const place = (event) => {
    const box = element.getBoundingClientRect();
    onpoint((event.clientY - box.top) / box.height * tall - margin, (event.clientX - box.left) / box.width * wide - margin, event);
  };
  if (onpoint) {
    element.classList.add("live");
    element.addEventListener("pointerdown", (event) => { element.setPointerCapture(event.pointerId); place(event); });
    element.addEventListener("pointermove", (event) => {
      if (event.buttons || (hover && event.pointerType === "mouse")) place(event);
    });
  }
  if (onmove) {
    element.addEventListener("keydown", (event) => {
      const by = arrow(event);
      if (!by) return;
      event.preventDefault();
      onmove(by[0] * (event.shiftKey ? 4 : 1), by[1] * (event.shiftKey ? 4 : 1));
    });
  }
  /** frames: [{y, x, height, width, kind}] in pixels of the picture. */
  function frame(frames) {
    marks.replaceChildren(...frames.flatMap(({y, x, height: tallness, width: wideness, kind = "main"}) => {
      const at = {x, y, width: wideness, height: tallness};
      return [svg("rect", {...at, class: `halo ${kind}`}), svg("rect", {...at, class: kind})];
    }));
  }
  return {element, canvas, frame};
}
