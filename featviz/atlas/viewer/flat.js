// Drawing without WebGL2, on a 2-D canvas: the same frames as gl.js, the same look.
//
// Dots and very small pictures are written into an array of pixels, 200,000 of them in a few
// hundredths of a second; the canvas itself would take as long for a thousand pictures. Larger
// pictures are copied from the sheets; shrunk pictures from halved copies of the sheets.

const PHASES = 4; // positions of a dot within a pixel
const SMALL = 20; // pixels up to which a picture is written pixel by pixel

function makeFlatRenderer(canvas, atlas, views, redraw) {
  const pen = canvas.getContext("2d", { alpha: false });
  let image = null, words = null;
  const halves = new Map(); // "strip/sheet" -> copies of half, a quarter ... of the size
  const arrays = new Map(); // "strip/sheet/times" -> the pixels of such a copy

  // How much of each pixel a dot covers, 0 to 256, for all its places within a pixel.
  function stamps(size, square) {
    const side = Math.ceil(size) + 2, middle = side / 2;
    const made = [];
    for (let py = 0; py < PHASES; py++) {
      for (let px = 0; px < PHASES; px++) {
        const cover = new Uint16Array(side * side);
        for (let y = 0; y < side; y++) {
          for (let x = 0; x < side; x++) {
            const dx = Math.abs(x + 0.5 - middle - (px + 0.5) / PHASES + 0.5);
            const dy = Math.abs(y + 0.5 - middle - (py + 0.5) / PHASES + 0.5);
            const away = square ? Math.max(dx, dy) : Math.hypot(dx, dy);
            cover[y * side + x] = 256 * Math.max(0, Math.min(1, size / 2 - away + 0.5));
          }
        }
        made.push(cover);
      }
    }
    return { side, made };
  }

  function clear(frame) {
    const { width, height } = canvas;
    if (!image || image.width !== width || image.height !== height) {
      image = new ImageData(width, height);
      words = new Uint32Array(image.data.buffer);
    }
    const [r, g, b] = frame.ground;
    words.fill(0xff000000 | (b << 16) | (g << 8) | r);
  }

  function writeDots(frame, ratio) {
    const { width, height } = canvas;
    const { from, to, t, dots, rgba } = frame.rows;
    const { side, made } = stamps(Math.max(1, dots.size * ratio), dots.square);
    const scale = frame.camera.scale * ratio;
    const left = width / 2 - frame.camera.x * scale - side / 2 + 0.5;
    const top = height / 2 - frame.camera.y * scale - side / 2 + 0.5;
    const a = from.at, z = to.at, pixels = image.data;
    const ranges = dots.ranges || [[0, atlas.count]], order = dots.ranges ? atlas.tiles.rows : null;
    for (const [first, behind] of ranges) for (let place = first; place < behind; place++) {
      const row = order ? order[place] : place;
      if (dots.bareOnly && atlas.thumbOf[row] >= 0) continue;
      let x = a[2 * row], y = a[2 * row + 1];
      if (t > 0) { x += (z[2 * row] - x) * t; y += (z[2 * row + 1] - y) * t; }
      x = x * scale + left;
      y = y * scale + top;
      const x0 = Math.floor(x), y0 = Math.floor(y);
      if (x0 < -side || y0 < -side || x0 >= width || y0 >= height) continue;
      const stamp = made[Math.floor((y - y0) * PHASES) * PHASES + Math.floor((x - x0) * PHASES)];
      const own = 4 * row, alpha = (rgba[own + 3] / 255) * dots.alpha;
      for (let j = Math.max(0, -y0); j < side && y0 + j < height; j++) {
        for (let i = Math.max(0, -x0); i < side && x0 + i < width; i++) {
          const cover = stamp[j * side + i];
          if (!cover) continue;
          const share = cover * alpha, pixel = 4 * ((y0 + j) * width + x0 + i);
          pixels[pixel] += ((rgba[own] - pixels[pixel]) * share) >> 8;
          pixels[pixel + 1] += ((rgba[own + 1] - pixels[pixel + 1]) * share) >> 8;
          pixels[pixel + 2] += ((rgba[own + 2] - pixels[pixel + 2]) * share) >> 8;
        }
      }
    }
  }

  // How often to halve a sheet so that its pictures are less than `most` times as large as wanted.
  function halvings(strip, size, most) {
    let times = 0;
    while (strip.size / 2 ** times > most * size && (strip.pitch >> times) % 2 === 0) times++;
    return times;
  }

  // The sheet of a picture, halved so often, and its scale. Null until it is decoded.
  function source(strip, sheet, times) {
    const bitmap = strip.bitmaps[sheet];
    if (!bitmap || !times) return [bitmap, 1];
    const key = `${strip.name}/${sheet}`;
    if (!halves.has(key)) halves.set(key, [bitmap]);
    const made = halves.get(key);
    while (made.length <= times) {
      const last = made[made.length - 1];
      const half = document.createElement("canvas");
      half.width = last.width / 2;
      half.height = last.height / 2;
      const brush = half.getContext("2d");
      brush.imageSmoothingQuality = "high";
      brush.drawImage(last, 0, 0, half.width, half.height);
      made.push(half);
    }
    return [made[times], 2 ** -times];
  }

  function pixelsOf(strip, sheet, times) {
    const key = `${strip.name}/${sheet}/${times}`;
    if (!arrays.has(key)) {
      const [copy] = source(strip, sheet, times);
      if (!copy) return null;
      const board = document.createElement("canvas");
      board.width = copy.width;
      board.height = copy.height;
      const brush = board.getContext("2d", { willReadFrequently: true });
      brush.drawImage(copy, 0, 0);
      const { data } = brush.getImageData(0, 0, copy.width, copy.height);
      arrays.set(key, { words: new Uint32Array(data.buffer), width: copy.width });
    }
    return arrays.get(key);
  }

  // Small pictures into the array of pixels, each pixel from the nearest of a copy of like size.
  function writePictures(group, frame, ratio) {
    const { strip, rgba } = group;
    const { width, height } = canvas;
    const thick = group.frame * ratio;
    const times = halvings(strip, group.size * ratio, 1.5), side = strip.size / 2 ** times;
    let sheet = -1, copy = null;
    eachPicture(group, frame.camera, ratio, canvas, (number, x, y, size, own, alpha) => {
      if (strip.sheetOf(number) !== sheet) {
        sheet = strip.sheetOf(number);
        copy = pixelsOf(strip, sheet, times);
      }
      if (!copy) return;
      const share = (alpha * rgba[own + 3] * 256) / 255;
      const left = width / 2 + x - size / 2, right = left + size;
      const top = height / 2 + y - size / 2, bottom = top + size;
      const u0 = strip.xOf(number) / 2 ** times, v0 = strip.yOf(number) / 2 ** times;
      const step = side / size, last = side - 1;
      const edge = 0xff000000 | (rgba[own + 2] << 16) | (rgba[own + 1] << 8) | rgba[own];
      const behind = Math.min(width, Math.ceil(right)), below = Math.min(height, Math.ceil(bottom));
      for (let j = Math.max(0, Math.floor(top)); j < below; j++) {
        const v = Math.max(0, Math.min(last, Math.floor((j + 0.5 - top) * step)));
        const line = (v0 + v) * copy.width + u0;
        const high = Math.min(j + 1, bottom) - Math.max(j, top); // how much of the pixel it covers
        const framed = j + 0.5 - top < thick || bottom - j - 0.5 < thick;
        for (let i = Math.max(0, Math.floor(left)); i < behind; i++) {
          const u = Math.max(0, Math.min(last, Math.floor((i + 0.5 - left) * step)));
          const seen = framed || i + 0.5 - left < thick || right - i - 0.5 < thick ? edge : copy.words[line + u];
          const part = share * high * (Math.min(i + 1, right) - Math.max(i, left));
          const at = j * width + i;
          words[at] = part >= 255 ? seen : mixed(words[at], seen, part);
        }
      }
    });
  }

  function mixed(under, seen, share) { // two colors, `share` of 256 parts from the second
    const channel = (shift) => {
      const a = (under >> shift) & 255;
      return (a + ((((seen >> shift) & 255) - a) * share) / 256) << shift;
    };
    return 0xff000000 | channel(16) | channel(8) | channel(0);
  }

  function drawPictures(group, frame, ratio) {
    const { strip, rgba } = group;
    const thick = group.frame * ratio, times = halvings(strip, group.size * ratio, 2);
    eachPicture(group, frame.camera, ratio, canvas, (number, x, y, size, own, alpha) => {
      const shown = alpha * (rgba[own + 3] / 255);
      const [sheet, scale] = source(strip, strip.sheetOf(number), times);
      if (!sheet || !shown) return;
      if (pen.globalAlpha !== shown) pen.globalAlpha = shown;
      const left = canvas.width / 2 + x - size / 2, top = canvas.height / 2 + y - size / 2;
      if (thick) {
        pen.fillStyle = `rgb(${rgba[own]},${rgba[own + 1]},${rgba[own + 2]})`;
        pen.fillRect(left, top, size, size);
      }
      // As in gl.js a frame covers the edge of the picture.
      const cut = (thick / size) * strip.size, side = (strip.size - 2 * cut) * scale;
      pen.drawImage(
        sheet, (strip.xOf(number) + cut) * scale, (strip.yOf(number) + cut) * scale, side, side,
        left + thick, top + thick, size - 2 * thick, size - 2 * thick,
      );
    });
  }

  function render(frame, ratio) {
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.globalAlpha = 1;
    pen.imageSmoothingEnabled = true;
    pen.imageSmoothingQuality = "medium";
    const small = frame.pictures.filter((group) => group.size * ratio <= SMALL);
    if (small.length || (frame.rows && frame.rows.dots)) {
      clear(frame);
      if (frame.rows && frame.rows.dots) writeDots(frame, ratio);
      for (const group of small) writePictures(group, frame, ratio);
      pen.putImageData(image, 0, 0);
    } else {
      pen.fillStyle = `rgb(${frame.ground.join(",")})`;
      pen.fillRect(0, 0, canvas.width, canvas.height);
    }
    for (const group of frame.pictures) if (!small.includes(group)) drawPictures(group, frame, ratio);
    pen.globalAlpha = 1;
  }

  return {
    name: "canvas", render,
    sheetReady() { redraw(); },
    settled: () => true,
    finish() { pen.getImageData(0, 0, 1, 1); },
    about: () => "2-D canvas",
    loseContext: () => null,
  };
}
