// Positions. World coordinates: each view is 1 wide, y points downwards.

// The views of rows: "points" as t-SNE placed them, "map" and "mosaic" with a place of its own for
// each. `at` has the centers of all rows; `unit` is the side of a place (0: there are none), and
// `box` is the rectangle around all.
function makeViews(atlas) {
  const views = { points: { name: "points", at: atlas.xy, unit: 0, box: boxAround(atlas.xy), find: null } };
  for (const name of Object.keys(atlas.views)) {
    const { columns, rows } = atlas.views[name];
    const places = atlas.places[name];
    const at = new Float32Array(places.length);
    const holder = new Int32Array(columns * rows).fill(-1);
    for (let row = 0; row < atlas.count; row++) {
      const column = places[2 * row], line = places[2 * row + 1];
      at[2 * row] = (column + 0.5) / columns;
      at[2 * row + 1] = (line + 0.5) / columns;
      holder[line * columns + column] = row;
    }
    views[name] = {
      name, at, unit: 1 / columns, box: { x: 0, y: 0, width: 1, height: rows / columns },
      find(x, y) {
        const column = Math.floor(x * columns), line = Math.floor(y * columns);
        if (column < 0 || line < 0 || column >= columns || line >= rows) return -1;
        return holder[line * columns + column];
      },
    };
  }
  return views;
}

// The smallest rectangle around points (x, y, x, y ...).
function boxAround(at) {
  let left = Infinity, top = Infinity, right = -Infinity, bottom = -Infinity;
  for (let i = 0; i < at.length; i += 2) {
    left = Math.min(left, at[i]); right = Math.max(right, at[i]);
    top = Math.min(top, at[i + 1]); bottom = Math.max(bottom, at[i + 1]);
  }
  return { x: left, y: top, width: Math.max(right - left, 1e-6), height: Math.max(bottom - top, 1e-6) };
}

// A static grid over points (x, y, x, y ...), to find those near a position.
function makeGrid(at) {
  const count = at.length / 2;
  const side = Math.max(1, Math.min(1024, Math.round(Math.sqrt(count / 2))));
  const { x: left, y: top, width, height } = boxAround(at);
  const extent = Math.max(width, height) * (1 + 1e-6);
  const bin = (value, from) => Math.max(0, Math.min(side - 1, Math.floor(((value - from) / extent) * side)));
  const starts = new Uint32Array(side * side + 1);
  const binOf = new Uint32Array(count);
  for (let i = 0; i < count; i++) {
    binOf[i] = bin(at[2 * i + 1], top) * side + bin(at[2 * i], left);
    starts[binOf[i] + 1]++;
  }
  for (let b = 0; b < side * side; b++) starts[b + 1] += starts[b];
  const next = starts.slice();
  const rows = new Uint32Array(count);
  for (let i = 0; i < count; i++) rows[next[binOf[i]]++] = i;
  return {
    // Calls visit(row) for every point in a square around (x, y), and for some beyond it.
    around(x, y, reach, visit) {
      const c0 = bin(x - reach, left), c1 = bin(x + reach, left);
      for (let line = bin(y - reach, top); line <= bin(y + reach, top); line++) {
        for (let i = starts[line * side + c0]; i < starts[line * side + c1 + 1]; i++) visit(rows[i]);
      }
    },
  };
}

// The rows of a large map in square tiles, those of a tile in a scattered order, so that the first of
// them are an even sample: only visible tiles are drawn, and while the map moves only so many rows.
function makeTiles(at, side = 64) {
  const count = at.length / 2;
  const { x: left, y: top, width, height } = boxAround(at);
  const across = (width * (1 + 1e-6)) / side, down = (height * (1 + 1e-6)) / side;
  const column = (x) => Math.max(0, Math.min(side - 1, Math.floor((x - left) / across)));
  const line = (y) => Math.max(0, Math.min(side - 1, Math.floor((y - top) / down)));
  const tileOf = (row) => line(at[2 * row + 1]) * side + column(at[2 * row]);
  const starts = new Uint32Array(side * side + 1);
  for (let row = 0; row < count; row++) starts[tileOf(row) + 1]++;
  for (let tile = 0; tile < side * side; tile++) starts[tile + 1] += starts[tile];
  const next = starts.slice(), rows = new Uint32Array(count);
  const gcd = (a, b) => (b ? gcd(b, a % b) : a);
  let step = Math.max(1, Math.round(0.618 * count));
  while (gcd(step, count) > 1) step++;
  for (let i = 0, row = 0; i < count; i++, row = (row + step) % count) rows[next[tileOf(row)]++] = row;
  return {
    rows,
    // Where in `rows` those within a rectangle are, and some around it: [first, behind the last] ...
    // Of more than `most` rows an even sample.
    ranges(x0, y0, x1, y1, most) {
      const c0 = column(x0), c1 = column(x1), l0 = line(y0), l1 = line(y1);
      let seen = 0;
      for (let l = l0; l <= l1; l++) seen += starts[l * side + c1 + 1] - starts[l * side + c0];
      const found = [];
      if (seen <= most) {
        for (let l = l0; l <= l1; l++) found.push([starts[l * side + c0], starts[l * side + c1 + 1]]);
        return found;
      }
      for (let l = l0; l <= l1; l++) {
        for (let tile = l * side + c0; tile <= l * side + c1; tile++) {
          const first = starts[tile], some = Math.ceil(((starts[tile + 1] - first) * most) / seen);
          if (some) found.push([first, first + some]);
        }
      }
      return found;
    },
  };
}

// The spacing of pictures at which each row is shown as one: the largest distance d (world units,
// the larger of |dx| and |dy|) at which no row that comes earlier is nearer than d. Rows are added
// in `order` at each of a decreasing series of distances, and rows once added stay: so pictures
// only appear, never vanish, on zooming in.
function spacings(at, order, { most = 0.5, least = 2e-4, step = 2 ** -0.125 } = {}) {
  const found = new Float32Array(order.length).fill(least);
  const bits = Math.max(8, Math.ceil(Math.log2(4 * order.length + 1)));
  const mask = 2 ** bits - 1;
  const keys = new Float64Array(mask + 1);
  const holders = new Int32Array(mask + 1);
  let outside = Array.from(order, (_, i) => i); // places in `order`
  const inside = [];
  for (let d = most; d > least && outside.length; d *= step) {
    keys.fill(-1);
    const width = Math.ceil(1 / d) + 3;
    const slot = (key) => {
      let place = (Math.imul(key | 0, 2654435769) >>> (32 - bits)) & mask;
      while (keys[place] !== -1 && keys[place] !== key) place = (place + 1) & mask;
      return place;
    };
    const cellOf = (row) => [Math.floor(at[2 * row] / d) + 1, Math.floor(at[2 * row + 1] / d) + 1];
    // Points that are at least d apart are in different cells of side d.
    const enter = (i) => {
      const [column, line] = cellOf(order[i]);
      const key = line * width + column, place = slot(key);
      keys[place] = key;
      holders[place] = order[i];
    };
    inside.forEach(enter);
    const left = [];
    for (const i of outside) {
      const row = order[i];
      const [column, line] = cellOf(row);
      let free = true;
      for (let dy = -1; dy <= 1 && free; dy++) {
        for (let dx = -1; dx <= 1 && free; dx++) {
          const key = (line + dy) * width + column + dx, place = slot(key);
          if (keys[place] !== key) continue;
          const other = holders[place];
          free = Math.abs(at[2 * other] - at[2 * row]) >= d || Math.abs(at[2 * other + 1] - at[2 * row + 1]) >= d;
        }
      }
      if (free) { found[i] = d; inside.push(i); enter(i); } else left.push(i);
    }
    outside = left;
  }
  return found; // in the order of `order`
}

// Rows with a thumbnail by importance: samples of the coarse cells first, then of finer ones, then
// rows whose neighbors the map keeps. With `matches` (1 for each such row) only these.
function byImportance(atlas, matches) {
  const rank = new Float32Array(atlas.count);
  for (let row = 0; row < atlas.count; row++) rank[row] = 100 - atlas.keptCount(row) / atlas.k;
  for (let number = atlas.levels.length - 1; number >= 0; number--) {
    for (const row of atlas.levels[number].sample) rank[row] = number;
  }
  const able = Array.from(atlas.pictured).filter((row) => !matches || matches[row]);
  return able.sort((a, b) => rank[a] - rank[b] || a - b);
}

// Calls visit(number, x, y, size, own, alpha) for every visible picture of a group: its number in
// the group's strip (ascending), its center relative to the canvas's and its side in pixels of the
// canvas, and the offset of its color in the group's `rgba`. See scene.js for groups.
function eachPicture(group, camera, ratio, canvas, visit) {
  const { numbers, rows, from, to, t, grow, shown, alpha } = group;
  const scale = camera.scale * ratio, whole = group.size * ratio;
  const right = canvas.width / 2 + whole / 2, bottom = canvas.height / 2 + whole / 2;
  for (let i = 0; i < rows.length; i++) {
    const come = shown ? shown[i] : 1;
    if (!come) continue;
    const row = rows[i];
    let x = from[2 * row], y = from[2 * row + 1];
    if (t) { x += (to[2 * row] - x) * t; y += (to[2 * row + 1] - y) * t; }
    x = (x - camera.x) * scale;
    y = (y - camera.y) * scale;
    if (x < -right || x > right || y < -bottom || y > bottom) continue;
    visit(numbers ? numbers[i] : i, x, y, whole * (grow ? grow[row] : 1) * (0.7 + 0.3 * come), 4 * row, alpha * come);
  }
}

// Rows at which the names of classes are drawn: {row, own: the class}, compact classes first. A row
// may have its class's name if a third of its true neighbors are of its class and near it on the
// map, and nearly as many as of any other row of its class. Of these it is the one whose picture
// appears first on zooming in.
function makeLabels(atlas, spacing) {
  if (!atlas.classOf) return [];
  const beside = new Uint8Array(atlas.count), most = new Uint8Array(atlas.classes.length);
  for (let row = 0; row < atlas.count; row++) {
    const own = atlas.classOf[row];
    if (own >= atlas.classes.length) continue;
    atlas.nearOf(row).forEach((other, i) => { if (atlas.classOf[other] === own && atlas.isKept(row, i)) beside[row]++; });
    most[own] = Math.max(most[own], beside[row]);
  }
  const first = new Map();
  for (let row = 0; row < atlas.count; row++) {
    const own = atlas.classOf[row];
    if (beside[row] < atlas.k / 3 || beside[row] < 0.6 * most[own]) continue;
    const number = atlas.thumbOf[row], far = number < 0 ? 0 : spacing[number];
    if (!first.has(own) || first.get(own).far < far) first.set(own, { row, own, far });
  }
  return [...first.values()].sort((a, b) => most[b.own] - most[a.own] || b.far - a.far || a.own - b.own);
}
