// The panel: about the map, or about the picture or the square under the pointer.

function element(tag, { text, className, ...properties } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  Object.assign(made, properties);
  made.append(...children.filter(Boolean));
  return made;
}

const percent = (share) => `${share < 0.0005 ? Number((100 * share).toPrecision(1))
  : (100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
const counted = (count) => count.toLocaleString("en-US");
const plural = (count, one, many = `${one}s`) => `${counted(count)} ${count === 1 ? one : many}`;

// atlas: see readAtlas. does: {pick(row), find(text), colorOf(class) -> CSS color or null}.
function makePanel(box, atlas, does) {
  function thumbnail(strip, number, pixels) {
    const made = element("canvas", { width: pixels, height: pixels });
    const pen = made.getContext("2d");
    pen.imageSmoothingQuality = "high";
    paintPicture(pen, strip, number, 0, 0, pixels);
    return made;
  }

  function pictureOf(row, pixels) {
    if (atlas.thumbOf[row] >= 0) return thumbnail(atlas.thumbs, atlas.thumbOf[row], pixels);
    const made = element("span", { className: "blank", title: "this page has no thumbnail of it" });
    made.style.setProperty("--own", does.colorOf(atlas.classOf ? atlas.classOf[row] : -1) || "var(--line)");
    return made;
  }

  function swatch(number) {
    const color = does.colorOf(number);
    if (!color) return null;
    const made = element("i", { className: "swatch" });
    made.style.background = color;
    return made;
  }

  function pictureList(rows, extra) {
    const list = element("ol", { className: "near" });
    rows.forEach((row, i) => {
      const { text, far } = extra ? extra(i) : {};
      const name = atlas.nameOf(row);
      const button = element(
        "button", { type: "button", title: `${name} (${atlas.pathOf(row)})` },
        pictureOf(row, 112), text && element("b", { text }), element("span", { text: name }),
      );
      button.addEventListener("click", () => does.pick(row));
      list.append(element("li", { className: far ? "far" : "" }, button));
    });
    return list;
  }

  // One bar a row: shares to be compared.
  function bars(lines, className = "bars") {
    return element("div", { className }, ...lines.map(({ name, share, number }) => {
      const bar = element("i");
      bar.style.width = `${Math.max(0.5, 100 * share)}%`;
      if (number !== undefined) bar.style.background = does.colorOf(number) || "";
      return element(
        "div", {}, element("span", { text: name, title: name }), element("em", {}, bar),
        element("b", { text: percent(share) }),
      );
    }));
  }

  function describeMap() {
    const { count, whole, layer, model, dim, k } = atlas;
    const some = count < whole ? `${counted(count)} of ${plural(whole, "picture")}` : plural(count, "picture");
    box.append(
      element("h2", { text: "About this map" }),
      element("p", {
        text: `${some}, arranged by their activations in ${layer} of ${model}, ${counted(dim)} numbers each. `
          + "Pictures that are near each other are similar to the network. Distances between clusters, "
          + "and their sizes, mean little.",
      }),
      element("h3", { text: `Of the ${k} nearest in ${layer}, near on` }),
      bars(atlas.recall),
      element("p", { className: "hint", text: "Point at a picture to see its true neighbors; click to select it." }),
    );
  }

  function describeRow(row) {
    const { k } = atlas;
    const kept = atlas.keptCount(row);
    const href = atlas.hrefOf(row);
    const path = atlas.pathOf(row);
    const beads = element("span", { className: "beads", role: "img", ariaLabel: `${kept} of ${k}` });
    for (let i = 0; i < k; i++) beads.append(element("i", { className: atlas.isKept(row, i) ? "on" : "" }));
    const own = atlas.classOf ? atlas.classOf[row] : -1;
    const known = own >= 0 && own < atlas.classes.length;
    const title = element("h2", {}, swatch(own), element("span", { text: atlas.nameOf(row) }));
    const line = !known ? null : atlas.classSizes[own] === 1
      ? element("p", { className: "path", text: "the only one of its class" })
      : element("button", {
        type: "button", className: "link", text: `${plural(atlas.classSizes[own], "picture")} of this class`,
        onclick: () => does.find(`class:${atlas.classes[own]}`),
      });
    const place = href
      ? element("a", { href, target: "_blank", rel: "noopener", text: path, title: "Open the picture, if it is still there" })
      : element("span", { text: path });
    box.append(
      element(
        "div", { className: "big" }, element("figure", {}, pictureOf(row, 224)),
        element("div", {}, title, line, element("p", { className: "path" }, place)),
      ),
      element("h3", { text: `Nearest in ${atlas.layer}, by ${atlas.distance}` }),
      element("p", { className: "keeps" }, beads, element("span", { text: `${kept} of ${k} are near on the map` })),
      pictureList(Array.from(atlas.nearOf(row)), (i) => ({
        text: atlas.farOf(row, i).toFixed(2), far: !atlas.isKept(row, i),
      })),
    );
  }

  function describeCell(level, cell) {
    const rows = Array.from(level.membersOf(cell));
    const big = element("div", { className: "big" });
    const add = (picture, text) => big.append(element("figure", {}, picture, element("figcaption", { text })));
    add(pictureOf(level.sample[cell], 224), "most typical picture");
    if (level.icons) {
      const other = level.nearest && level.nearest[cell] !== cell ? "; nearer to the mean of another square" : "";
      add(thumbnail(level.icons, cell, 224), `synthetic; cosine to the mean ${(level.cosine[cell] / 65535).toFixed(2)}${other}`);
    }
    const sizes = new Map();
    if (atlas.classOf) for (const row of rows) sizes.set(atlas.classOf[row], (sizes.get(atlas.classOf[row]) || 0) + 1);
    const ranked = [...sizes].filter(([own]) => own < atlas.classes.length)
      .sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    const title = ranked.length
      ? ranked.slice(0, 3).map(([own]) => atlas.classes[own]).join(", ")
      : `Square ${level.place[2 * cell] + 1}, ${level.place[2 * cell + 1] + 1}`;
    box.append(
      big, element("h2", { text: title }),
      element("p", {
        text: `${plural(rows.length, "picture")} in this square of ${level.side} × ${level.side}; `
          + `cosine to their mean ${(level.within[cell] / 65535).toFixed(2)}.`,
      }),
    );
    const raised = level.raisedBy(cell);
    if (raised.length) box.append(element("p", { text: `The mean raises most the logits of ${raised.join(", ")}.` }));
    if (ranked.length > 1 && ranked[0][1] > 1) {
      box.append(
        element("h3", { text: `Classes (${ranked.length})` }),
        bars(ranked.slice(0, 5).map(([own, size]) => ({
          name: atlas.classes[own], share: size / rows.length, number: own,
        }))),
      );
    }
    const most = 20; // spread evenly over the square's pictures
    const some = rows.length <= most ? rows : Array.from({ length: most }, (_, i) => rows[Math.floor((i * rows.length) / most)]);
    box.append(
      element("h3", { text: rows.length > most ? `${most} of them` : "All of them" }), pictureList(some),
    );
  }

  return {
    show(thing) {
      box.replaceChildren();
      if (!thing) describeMap();
      else if (thing.level) describeCell(thing.level, thing.cell);
      else describeRow(thing.row);
    },
    // The list of all classes with their colors; a click finds the class on the map.
    legend(list) {
      const order = atlas.classes.map((_, own) => own);
      list.replaceChildren(...order.map((own) => {
        const name = atlas.classes[own];
        const button = element(
          "button", { type: "button", title: `Find ${name} on the map` }, swatch(own),
          element("span", { text: name }), element("small", { text: counted(atlas.classSizes[own]) }),
        );
        button.addEventListener("click", () => does.find(`class:${name}`));
        return element("li", {}, button);
      }));
    },
  };
}
