// A picture is numbers: a few pixels large, with the three numbers of each.

function pixelsView(root, state, {full}) {
  const {network} = state;
  const [height, width] = network.size, planes = network.channels;
  const side = full ? 8 : 6;
  let at = [Math.round(height * 0.42), Math.round(width * 0.42)];
  const picture = board({label: `Your picture. Drag the frame of ${side} by ${side} pixels, or move it with the arrow keys.`, height, width, hover: true,
    onpoint: (y, x) => move(Math.round(y - side / 2), Math.round(x - side / 2)), onmove: (dy, dx) => move(at[0] + dy, at[1] + dx)});
  const cells = Array.from({length: side * side}, () => h("td", {}, Array.from({length: planes}, () => h("span"))));
  const table = h("table.numbers-of-pixels", {"aria-label": `${side} by ${side} pixels, ${network.channelNames.join(", ")}, 0 to 255`},
    h("tbody", {}, Array.from({length: side}, (_, y) => h("tr", {}, cells.slice(y * side, (y + 1) * side)))));
  root.append(h("div.split.even", {}, h("figure", {}, picture.element, h("figcaption", {}, "your picture, as the network gets it")),
    h("figure", {}, table, h("figcaption", {}, planes === 3 ? "the pixels in the frame: red, green and blue, from 0 to 255" : "the pixels in the frame, from 0 to 255"))));
  function move(y, x) {
    at = [clamp(y, 0, height - side), clamp(x, 0, width - side)];
    draw();
  }
  const draw = eachFrame(() => {
    if (!state.picture || !root.isConnected) return;
    at = [clamp(at[0], 0, height - side), clamp(at[1], 0, width - side)];
    paintPicture(picture.canvas, state.picture, height, width);
    picture.frame([{y: at[0], x: at[1], height: side, width: side}]);
    cells.forEach((cell, i) => {
      const y = at[0] + Math.floor(i / side), x = at[1] + i % side;
      const values = Array.from({length: planes}, (_, c) => Math.round(255 * state.picture[(c * height + y) * width + x]));
      const [r, g, b] = planes === 3 ? values : [values[0], values[0], values[0]];
      cell.style.backgroundColor = `rgb(${r} ${g} ${b})`;
      cell.style.color = 0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#111" : "#fff";
      values.forEach((value, c) => { cell.children[c].textContent = value; });
    });
  });
  const stop = state.on("picture", draw);
  draw();
  return {
    needs: [],
    number: () => [whole(planes * height * width), `numbers: ${height} rows of ${width} pixels, ${planes === 3 ? "three numbers each" : "one number each"}`],
    repaint: draw, close: stop,
  };
}
