// What units look for: synthetic pictures and top patches; and what happens when they are switched off.

/** What the build took from result folders: {"conv5": [{unit, made, patches, name}]}. */
function openUnits(data, blocks) {
  const layers = data.units || {};
  const url = (name) => name === null || name === undefined ? null : blocks.url(name, "image/jpeg");
  return {
    layers: Object.keys(layers),
    of: (layer) => layers[layer] || [],
    find: (layer, unit) => (layers[layer] || []).find((one) => one.unit === unit) || null,
    picture: (one) => url(one.made),
    patches: (one) => url(one.patches),
  };
}

function unitsView(root, state, {full}) {
  const {network, units} = state;
  const known = [...network.switchable, network.find(network.logits)].filter(Boolean);
  const offered = known.filter(({name}) => (full && name !== network.logits) || !units.layers.length || units.of(name).length);
  const pictured = offered.filter(({name, op}) => op === "conv" && units.of(name).some((one) => one.made));
  let layer = (state.picked.byHand && offered.find(({name}) => name === state.picked.layer)) || pictured[pictured.length - 1] || offered[0];
  let unit = state.picked.layer === layer.name && state.picked.byHand ? state.picked.unit : firstUnit();
  let before = null, of = null;  // probabilities with all units on, and of which picture
  const tabs = choice("Layer", offered.map(({name}) => [name, name]), layer.name, (name) => {
    layer = network.find(name);
    unit = firstUnit();
    show();
  });
  function firstUnit() { return units.of(layer.name).length ? units.of(layer.name)[0].unit : 0; }
  const tiles = h("div.unit-tiles", {role: "group", "aria-label": "Units"});
  const card = h("div.unit-card"), effect = h("div");
  const classes = topClasses(state, {before: () => before});
  const all = h("button", {type: "button", onclick: () => state.allOn()}, "Switch all on again");
  const strongest = full ? h("button", {type: "button", onclick: () => switchStrongest(10)}, "Switch off the ten strongest") : null;
  const list = h("p.quiet", {role: "status"});
  effect.append(h("h3", {}, "The classes with these units off"), classes.element, h("div.row", {}, strongest, all), list);
  root.append(h("div.row", {}, tabs.element), tiles, h("div.split", {}, card, effect));

  const meaned = (values, of, index) => {
    // A unit's activation: the largest of its map.
    if (of.shape.length === 1) return values[index];
    const area = of.shape[1] * of.shape[2];
    let most = -Infinity;
    for (let i = index * area; i < (index + 1) * area; i++) most = Math.max(most, values[i]);
    return most;
  };
  const isOff = (index) => (state.off[layer.name] || []).includes(index);
  function toggle(index) {
    const now = new Set(state.off[layer.name] || []);
    if (!now.delete(index)) now.add(index);
    state.switchUnits(layer.name, [...now]);
  }
  function switchStrongest(count) {
    const values = state.run && state.run.values[layer.name];
    if (!values) return;
    const order = topOf(Array.from({length: layer.shape[0]}, (_, i) => (isOff(i) ? -Infinity : meaned(values, layer, i))), count);
    state.switchUnits(layer.name, [...new Set([...(state.off[layer.name] || []), ...order])]);
  }
  function show() {
    tabs.choose(layer.name);
    const known = full ? [] : units.of(layer.name);
    const shown = known.length ? known.map((one) => one.unit) : Array.from({length: Math.min(layer.shape[0], full ? 1000 : 48)}, (_, i) => i);
    tiles.replaceChildren(...shown.map((index) => {
      const one = units.find(layer.name, index), made = one && units.picture(one);
      return h("button.unit", {type: "button", "data-unit": index, "aria-label": `Unit ${index}`, onclick: () => { unit = index; update(); }},
        made ? h("img", {src: made, alt: "", loading: "lazy"}) : one && units.patches(one) ? h("img.first", {src: units.patches(one), alt: "", loading: "lazy"}) : String(index));
    }));
    state.need(needs());
    update();
  }
  function update() {
    for (const tile of tiles.children) {
      const index = Number(tile.dataset.unit);
      tile.setAttribute("aria-pressed", String(index === unit));
      tile.classList.toggle("off", isOff(index));
    }
    drawCard();
    classes.update();
    const off = Object.entries(state.off).map(([name, indices]) => `${plural(indices.length, "unit")} of ${name}`);
    all.hidden = !off.length;
    list.textContent = off.length ? `Off: ${off.join(", ")}. The thin mark on each bar is the probability with all units on.` : "All units are on.";
  }
  function drawCard() {
    const one = units.find(layer.name, unit), values = state.run && state.run.values[layer.name];
    const parts = [];
    if (one && one.made !== null && one.made !== undefined) parts.push(h("figure.made", {}, h("img", {src: units.picture(one), alt: `Picture made to excite ${layer.name}:${unit}`}), h("figcaption", {}, "a picture made so that this unit answers strongly")));
    if (one && one.patches !== null && one.patches !== undefined) parts.push(h("figure", {}, h("img", {src: units.patches(one), alt: `Pieces of pictures that excite ${layer.name}:${unit} most`}), h("figcaption", {}, one.patch_text || "the pieces of all pictures that excite it most")));
    if (layer.shape.length === 3) {
      const canvas = pixelCanvas(`Map of ${layer.name}:${unit} for your picture`), [, rows, columns] = layer.shape;
      if (values) paintMap(canvas, values, rows, columns, layerLimit(values), unit * rows * columns);
      parts.push(h("figure.here", {}, canvas, h("figcaption", {}, "where it answers in your picture")));
    }
    const strength = values ? meaned(values, layer, unit) : 0;
    const off = isOff(unit);
    card.replaceChildren(h("h3", {}, `${layer.name}:${unit}`, layer.name === network.logits ? h("span.quiet", {}, ` ${network.classes[unit]}`) : null),
      h("div.unit-pictures", {}, parts),
      h("div.row", {}, layer.name === network.logits ? null : h("button.primary", {type: "button", "aria-pressed": String(off), onclick: () => toggle(unit)}, off ? "Switch it on" : "Switch it off"),
        h("span.quiet", {}, off ? "It is off: the layers after it get zeros." : `On your picture it answers ${short(strength)}.`)));
  }
  const needs = () => [layer.name];
  async function refresh() {
    if (!Object.keys(state.off).length) before = null;
    else if (of !== state.picture) {
      const picture = state.picture;
      const found = await network.forward(picture, {slot: "all on"});
      if (!found) return;
      of = picture; before = softmax(found.logits);
    }
    if (root.isConnected) update();
  }
  const stop = [state.on("run", () => { if (!Object.keys(state.run.off).length) { before = null; of = null; } refresh(); update(); }), state.on("off", update)];
  show();
  return {
    get needs() { return needs(); },
    number: () => {
      const off = Object.values(state.off).reduce((sum, one) => sum + one.length, 0);
      if (!before || !state.run) return [whole(layer.shape[0]), `units in ${layer.name}, each with a pattern of its own`];
      const [best] = topOf(before, 1);
      return [`${percent(before[best])} \u2192 ${percent(state.run.shares[best])}`, `is what ${plural(off, "unit")} switched off ${off === 1 ? "does" : "do"} to \u201c${network.classes[best]}\u201d`];
    },
    repaint: update,
    close() { stop.forEach((one) => one()); },
  };
}
