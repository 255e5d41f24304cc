// From a picture of any size to the network's pixels: resized and center-cropped as pillow does it,
// to the same 8-bit values. The canvas's own resizing has no antialiasing that can be relied on.

const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => {
    const a = -0.5, t = Math.abs(x);
    return t < 1 ? ((a + 2) * t - (a + 3)) * t * t + 1 : t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0;
  }],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

// A file, blob, ImageBitmap, ImageData, canvas or image as (channels, height, width) in [0, 1].
async function pixelsOf(picture, { size: [height, width], resize, channels, interpolation }) {
  const { data, width: wide, height: tall } = await decoded(picture, channels < 4);
  const planes = channels === 1 ? [gray(data)] : Array.from({ length: channels }, (_, c) => planeOf(data, c));
  const [rows, columns] = beforeCrop(tall, wide, resize, [height, width]);
  const top = halfEven((rows - height) / 2), left = halfEven((columns - width) / 2);
  const pixels = new Float32Array(channels * height * width);
  // Only the lines that the crop shows are made.
  const across = (plane, lines) => (columns === wide ? cut(plane, lines, wide, left, width)
    : resampled(plane, lines, wide, columns, left, width, interpolation));
  const down = (plane, lines) => transposed(rows === tall ? cut(transposed(plane, tall, lines), lines, tall, top, height)
    : resampled(transposed(plane, tall, lines), lines, tall, rows, top, height, interpolation), lines, height);
  // Pillow shrinks pictures of more than twice their width downwards first.
  const downFirst = tall > 2 * wide && rows < tall;
  planes.forEach((plane, c) => {
    const made = downFirst ? across(down(plane, wide), height) : down(across(plane, tall), width);
    made.forEach((value, i) => (pixels[c * height * width + i] = value / 255));
  });
  return pixels;
}

// Eight bits a channel; on white where the network takes no alpha.
async function decoded(picture, onWhite) {
  if (picture instanceof ImageData) return picture;
  const canvas = document.createElement("canvas");
  const bitmap = picture instanceof HTMLCanvasElement ? picture
    : await createImageBitmap(picture, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  canvas.width = bitmap.width;
  canvas.height = bitmap.height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (onWhite) {
    context.fillStyle = "white";
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

function planeOf(data, channel) {
  const plane = new Uint8Array(data.length / 4);
  for (let i = 0, at = channel; i < plane.length; i++, at += 4) plane[i] = data[at];
  return plane;
}

function gray(data) {
  return Uint8Array.from({ length: data.length / 4 }, (_, i) =>
    (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 0x8000) >> 16);
}

// Height and width to which a picture is resized: see `Preprocessing.before_crop`.
function beforeCrop(tall, wide, resize, [height, width]) {
  if (typeof resize !== "number") return resize;
  const short = Math.min(tall, wide);
  const need = Math.max((height * short) / tall, (width * short) / wide);
  const side = height === width ? resize : Math.max(resize, Math.ceil(need));
  return [tall, wide].map((one) => (one === short ? side : Math.floor((side * one) / short)));
}

function halfEven(x) {
  const low = Math.floor(x);
  return x - low === 0.5 ? low + (low & 1) : Math.round(x);
}

// Columns first ... first + count of a plane resized to `to` columns, rounded to 8 bits. Weights are
// whole numbers of 2^-22 as in pillow.
function resampled(plane, rows, from, to, first, count, interpolation) {
  const scale = from / to, found = new Uint8Array(rows * count);
  if (interpolation === "nearest") {
    // Added up as in pillow, which rounds at the borders of pixels.
    for (let j = 0, at = scale * 0.5; j < first + count; j++, at += scale)
      if (j >= first)
        for (let r = 0; r < rows; r++) found[r * count + j - first] = plane[r * from + Math.floor(at)];
    return found;
  }
  const [reach, filter] = FILTERS[interpolation];
  const wide = Math.max(1, scale), support = reach * wide, unit = 2 ** 22;
  for (let j = 0; j < count; j++) {
    const center = (first + j + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - support + 0.5));
    const end = Math.min(from, Math.trunc(center + support + 0.5));
    let weights = Float64Array.from({ length: end - start }, (_, i) => filter((start + i - center + 0.5) / wide));
    const sum = weights.reduce((a, b) => a + b, 0);
    weights = weights.map((w) => Math.trunc((w / sum) * unit + (w < 0 ? -0.5 : 0.5)));
    for (let r = 0; r < rows; r++) {
      let value = unit / 2;
      for (let i = 0, at = r * from + start; i < weights.length; i++) value += plane[at + i] * weights[i];
      found[r * count + j] = Math.min(255, Math.max(0, Math.floor(value / unit)));
    }
  }
  return found;
}

function cut(plane, rows, wide, first, count) {
  const found = new Uint8Array(rows * count);
  for (let r = 0; r < rows; r++) found.set(plane.subarray(r * wide + first, r * wide + first + count), r * count);
  return found;
}

function transposed(plane, rows, columns) {
  const found = new Uint8Array(rows * columns);
  for (let r = 0; r < rows; r++)
    for (let q = 0; q < columns; q++) found[q * rows + r] = plane[r * columns + q];
  return found;
}
