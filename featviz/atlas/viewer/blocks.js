// Reading the data of the page: the JSON element #data and the arrays in #block-NAME (base64).

const TYPES = { u8: Uint8Array, u16: Uint16Array, u32: Uint32Array };

function bytesOf(base64) {
  const text = atob(base64.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// The array of a block, null where there is none. Its text leaves the page, to free the memory.
function readBlock(name) {
  const holder = document.getElementById(`block-${name}`);
  if (!holder) return null;
  const bytes = bytesOf(holder.textContent);
  const kind = holder.dataset.kind;
  holder.remove();
  return new TYPES[kind](bytes.buffer);
}

// Pictures on JPEG sheets. `number` counts pictures; sheets fill column by column.
function makeStrip(name, grid) {
  const strip = { ...grid, name, bitmaps: new Array(grid.sheets).fill(null), ready: 0, failed: 0 };
  strip.sheetOf = (number) => Math.floor(number / grid.per_sheet);
  strip.xOf = (number) => Math.floor((number % grid.per_sheet) / grid.rows) * grid.pitch;
  strip.yOf = (number) => ((number % grid.per_sheet) % grid.rows) * grid.pitch;
  // Decodes all sheets away from the main thread; onSheet(strip, sheet) after each.
  strip.load = (onSheet) => {
    for (let sheet = 0; sheet < grid.sheets; sheet++) {
      const blob = new Blob([readBlock(`${name}-${sheet}`)], { type: "image/jpeg" });
      createImageBitmap(blob).then(
        (bitmap) => { strip.bitmaps[sheet] = bitmap; strip.ready++; onSheet(strip, sheet); },
        () => { strip.failed++; onSheet(strip, sheet); },
      );
    }
  };
  strip.done = () => strip.ready + strip.failed === grid.sheets;
  return strip;
}

// Paint a picture of a strip on a 2-D canvas; gray until its sheet is decoded.
function paintPicture(pen, strip, number, x, y, size) {
  const bitmap = strip.bitmaps[strip.sheetOf(number)];
  if (!bitmap) {
    pen.fillStyle = "rgba(128,128,128,.3)";
    pen.fillRect(x, y, size, size);
    return;
  }
  pen.drawImage(bitmap, strip.xOf(number), strip.yOf(number), strip.size, strip.size, x, y, size, size);
}

// The data as typed arrays over rows. Row numbers count the rows of the map.
function readAtlas() {
  const atlas = JSON.parse(document.getElementById("data").textContent);
  const { count, k } = atlas;
  const xy = readBlock("xy");
  atlas.neighbors = readBlock("neighbors");
  atlas.distances = readBlock("distances");
  atlas.keeps = readBlock("keeps");
  atlas.classOf = readBlock("class");
  atlas.places = { map: readBlock("map"), mosaic: readBlock("mosaic") };
  atlas.tint = readBlock("tint");
  atlas.thumbs = makeStrip("thumbs", atlas.thumbs);

  // Rows with a thumbnail, and for each row the number of its thumbnail or -1.
  atlas.pictured = readBlock("pictured") || Uint32Array.from({ length: count }, (_, row) => row);
  atlas.thumbOf = new Int32Array(count).fill(-1);
  atlas.pictured.forEach((row, number) => { atlas.thumbOf[row] = number; });

  atlas.xy = new Float32Array(2 * count);
  for (let i = 0; i < 2 * count; i++) atlas.xy[i] = xy[i] / 65535;

  atlas.keptBits = (row) => atlas.keeps[row];
  atlas.isKept = (row, i) => ((atlas.keeps[row] >> i) & 1) === 1;
  atlas.keptCount = (row) => {
    let found = 0;
    for (let bits = atlas.keeps[row]; bits; bits &= bits - 1) found++;
    return found;
  };
  atlas.nearOf = (row) => atlas.neighbors.subarray(row * k, row * k + k);
  atlas.farOf = (row, i) => atlas.distances[row * k + i] * atlas.distance_unit;

  // Names: the class, else the file. Paths are decoded when first needed.
  const pathBytes = readBlock("paths");
  let paths = null;
  const allPaths = () => {
    if (!paths) paths = new TextDecoder().decode(pathBytes).split("\0");
    return paths;
  };
  atlas.pathOf = (row) => allPaths()[row];
  atlas.className = (row) => (atlas.classOf ? atlas.classes[atlas.classOf[row]] || "" : "");
  atlas.nameOf = (row) => atlas.className(row) || atlas.pathOf(row).split("/").pop();
  let lowered = null;
  atlas.loweredPaths = () => {
    if (!lowered) lowered = allPaths().map((path) => path.toLowerCase());
    return lowered;
  };
  atlas.hrefOf = (row) => {
    if (!atlas.base) return null;
    const path = atlas.pathOf(row).split("/").map(encodeURIComponent).join("/");
    return path.startsWith("/") ? `file://${path}` : atlas.base + path;
  };
  atlas.classSizes = new Uint32Array(atlas.classes.length);
  if (atlas.classOf) for (const own of atlas.classOf) if (own < atlas.classSizes.length) atlas.classSizes[own]++;

  atlas.levels.forEach((level, number) => readLevel(atlas, level, `level${number}`));
  return atlas;
}

function readLevel(atlas, level, prefix) {
  const cells = level.cells;
  level.of = readBlock(`${prefix}-of`);
  level.place = readBlock(`${prefix}-place`);
  level.sample = readBlock(`${prefix}-sample`);
  level.within = readBlock(`${prefix}-within`);
  level.cosine = readBlock(`${prefix}-cosine`);
  level.nearest = readBlock(`${prefix}-nearest`);
  const raised = readBlock(`${prefix}-raised`);
  // Classes whose logits a cell's mean raises most, strongest first.
  level.raisedBy = (cell) => (raised ? Array.from(raised.subarray(3 * cell, 3 * cell + 3), (i) => level.raised[i]).filter(Boolean) : []);
  if (level.icons) level.icons = makeStrip(`${prefix}-icons`, level.icons);
  level.where = new Map();
  for (let cell = 0; cell < cells; cell++) {
    level.where.set(level.place[2 * cell + 1] * level.side + level.place[2 * cell], cell);
  }
  // Members of all cells in one array, those of a cell from starts[cell] to starts[cell + 1].
  level.starts = new Uint32Array(cells + 1);
  for (const cell of level.of) level.starts[cell + 1]++;
  level.most = 0;
  for (let cell = 0; cell < cells; cell++) {
    level.most = Math.max(level.most, level.starts[cell + 1]);
    level.starts[cell + 1] += level.starts[cell];
  }
  const next = level.starts.slice();
  level.members = new Uint32Array(atlas.count);
  level.of.forEach((cell, row) => { level.members[next[cell]++] = row; });
  level.membersOf = (cell) => level.members.subarray(level.starts[cell], level.starts[cell + 1]);
  level.sizeOf = (cell) => level.starts[cell + 1] - level.starts[cell];
}
