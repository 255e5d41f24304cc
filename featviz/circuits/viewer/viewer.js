// Draws the graph of #data, lets it be moved, and describes the selected unit beside it.
"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const data = read("data"), pages = read("unit-pages");
  const stage = document.getElementById("stage"), svg = document.getElementById("graph");
  const panel = document.getElementById("panel");
  const { node: side, map: small } = data;
  const nodes = new Map(data.nodes.map((one) => [one.name, one]));
  const into = (name) => data.edges.filter((edge) => edge.unit === name);
  const outOf = (name) => data.edges.filter((edge) => edge.input === name);
  const layerOf = (name) => name.slice(0, name.lastIndexOf(":"));

  const draw = (tag, words = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(words)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const make = (tag, words = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), words);
    element.append(...children);
    return element;
  };
  const signed = (value) => {
    const text = Math.abs(value).toPrecision(2);
    return (value < 0 ? "−" : "+") + (text.includes("e") ? Number(text).toString() : text);
  };
  const percent = (share) => `${(100 * share).toFixed(Math.abs(share) < .1 ? 1 : 0)}%`;
  const sign = (edge) => edge.contribution > 0 ? "raises" : "lowers";

  // ---- maps of weights: white at 0, red above, blue below
  const ends = { one: () => data.scale, layer: (edge) => data.scales[layerOf(edge.unit)] };
  const red = [178, 24, 43], blue = [33, 102, 172];
  const color = (value) => {
    const [far, at] = [value > 0 ? red : blue, Math.min(1, Math.abs(value))];
    return far.map((part) => Math.round(247 + (part - 247) * at));
  };
  const picture = (edge, end) => {
    const rows = edge.weights, canvas = make("canvas", { width: rows[0].length, height: rows.length });
    const pen = canvas.getContext("2d");
    rows.forEach((row, y) => row.forEach((value, x) => {
      pen.fillStyle = `rgb(${color(value / end).join(",")})`;
      pen.fillRect(x, y, 1, 1);
    }));
    return canvas.toDataURL();
  };
  const paint = () => {
    const end = ends[document.getElementById("scale").value];
    for (const edge of data.edges) {
      edge.picture = picture(edge, end(edge));
      edge.image.setAttribute("href", edge.picture);
    }
    if (selected) describe(selected);
  };

  // ---- the graph
  const world = draw("g");
  const drawEdge = (edge) => {
    const to = nodes.get(edge.input), [x, y] = edge.at;
    const top = y + small / 2 + 12, bottom = to.y - side / 2, middle = (top + bottom) / 2;
    edge.line = draw("path", {
      class: `edge ${sign(edge)}`, "stroke-width": .6 + 4 * edge.strength,
      d: `M${x},${top} C${x},${middle} ${to.x},${middle} ${to.x},${bottom}`,
    });
    edge.image = draw("image", {
      class: "pixelated", x: x - small / 2, y: y - small / 2, width: small, height: small,
    });
    const frame = draw("rect", { x: x - small / 2, y: y - small / 2, width: small, height: small });
    const number = draw("text", { x, y: y + small / 2 + 9 }, signed(edge.contribution));
    edge.map = draw("g", { class: "map" }, edge.image, frame, number,
      draw("title", {}, `${nodes.get(edge.input).label} ${sign(edge)} ${nodes.get(edge.unit).label}`));
    world.append(edge.line, edge.map);
  };
  const inWords = (one) => {
    const list = (edges, key) => edges.map((e) => `${nodes.get(e[key]).label} ${signed(e.contribution)}`).join(", ");
    const made = list(into(one.name), "input"), feeds = list(outOf(one.name), "unit");
    return [one.label, made && `built from ${made}`, feeds && `feeds ${feeds}`].filter(Boolean).join("; ");
  };
  const drawNode = (one) => {
    const corner = { x: one.x - side / 2, y: one.y - side / 2, width: side, height: side };
    one.group = draw("g", {
      class: `node${one.name === data.unit ? " middle" : ""}`, role: "button", tabindex: "-1",
      "aria-label": inWords(one), "aria-pressed": "false",
    });
    if (one.picture) {
      one.group.append(draw("image", { ...corner, href: one.picture, class: one.pixelated ? "pixelated" : "" }));
    }
    const label = one.label.length > 18 ? `${one.label.slice(0, 17)}…` : one.label;
    const frame = draw("rect", { ...corner, ...(one.picture ? { style: "fill: none" } : {}) });
    one.group.append(frame,
      draw("text", { x: one.x, y: one.y + side / 2 + 13 }, label),
      draw("text", { class: "number", x: one.x, y: one.y + side / 2 + 25 }, one.number),
      draw("title", {}, one.label));
    one.group.addEventListener("click", () => { if (!moved) select(one.name); });
    one.group.addEventListener("dblclick", () => open(one.name));
    one.group.addEventListener("focus", () => { if (one.group.matches(":focus-visible")) reveal(one); });
    world.append(one.group);
  };

  // ---- selection
  let selected = null;
  const row = (edge, other) => {
    const one = nodes.get(other), image = one.picture
      ? make("img", { src: one.picture, alt: "", className: one.pixelated ? "pixelated" : "" }) : make("span");
    const through = edge.between.length ? `through ${edge.between.join(", ")}` : "directly";
    const facts = `mean ${signed(edge.mean)}, spread ${edge.spread.toPrecision(2)}, share ${percent(edge.share)}, ${through}`;
    const words = make("span", {}, make("b", { textContent: one.label }),
      make("span", { className: sign(edge), textContent: `${sign(edge)} by ${signed(edge.contribution)} ` }),
      make("span", { className: "small", textContent: facts }));
    const weights = make("img", {
      src: edge.picture, className: "pixelated",
      alt: `${edge.weights.length} by ${edge.weights[0].length} weights, sum ${signed(edge.weights.flat().reduce((a, b) => a + b, 0))}`,
    });
    const button = make("button", { type: "button", onclick: () => { select(other); reveal(nodes.get(other)); } },
      image, weights, words);
    return make("li", {}, button);
  };
  const chapter = (title, edges, key) => edges.length
    ? [make("h3", { textContent: title }), make("ul", {}, ...edges.map((edge) => row(edge, edge[key])))] : [];
  const page = (name) => pages[name.split(" + ")[0]];
  const open = (name) => { if (page(name)) window.open(page(name), "_top"); };
  const describe = (name) => {
    const one = nodes.get(name);
    const image = one.picture ? [make("img", { src: one.picture, alt: `Picture of ${one.label}`, className: one.pixelated ? "pixelated" : "" })] : [];
    const link = page(name) ? [make("a", { className: "open", href: page(name), target: "_top", textContent: "Its page" })] : [];
    const title = make("div", {}, make("h2", { textContent: one.label }),
      ...(one.label === name ? [] : [make("p", { textContent: name })]), ...link);
    const sentences = [...one.words, ...(name === data.unit ? data.words : [])];
    panel.replaceChildren(make("div", { className: "of" }, ...image, title),
      ...sentences.map((textContent) => make("p", { textContent })),
      ...chapter("Built from", into(name), "input"), ...chapter("Feeds", outOf(name), "unit"),
      make("p", { className: "small", textContent: data.help }));
    panel.scrollTop = 0;
  };
  const mark = (name) => {
    const near = new Set([name, ...into(name).map((e) => e.input), ...outOf(name).map((e) => e.unit)]);
    svg.classList.toggle("chosen", name !== null);
    for (const one of data.nodes) {
      one.group.classList.toggle("selected", one.name === name);
      one.group.classList.toggle("dim", !near.has(one.name));
      one.group.setAttribute("aria-pressed", String(one.name === name));
      one.group.setAttribute("tabindex", one.name === (name ?? data.unit) ? "0" : "-1");
    }
    for (const edge of data.edges) {
      const own = edge.unit === name || edge.input === name;
      edge.line.classList.toggle("dim", !own);
      edge.map.classList.toggle("dim", !own);
    }
  };
  const select = (name) => {
    selected = name;
    mark(name);
    describe(name);
  };
  const clear = () => {
    mark(null);
    selected = data.unit;
    describe(data.unit);
  };

  // ---- moving: pointers, wheel, buttons
  const view = { x: 0, y: 0, k: 1 };
  const show = () => world.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.k})`);
  const zoom = (factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) => {
    const k = Math.min(6, Math.max(.08, view.k * factor));
    view.x = x - (x - view.x) * k / view.k;
    view.y = y - (y - view.y) * k / view.k;
    view.k = k;
    show();
  };
  const center = (one, k) => {
    view.k = k;
    view.x = stage.clientWidth / 2 - one.x * k;
    view.y = stage.clientHeight / 2 - one.y * k;
    show();
  };
  const fitting = () => Math.min(1.5, stage.clientWidth / data.width, stage.clientHeight / data.height);
  const fit = () => center({ x: data.width / 2, y: data.height / 2 }, fitting());
  const reveal = (one) => {
    const x = view.x + one.x * view.k, y = view.y + one.y * view.k, edge = side * view.k;
    if (x < edge || y < edge || x > stage.clientWidth - edge || y > stage.clientHeight - edge) center(one, view.k);
  };
  const fingers = new Map();
  let moved = false;
  const middle = () => {
    const all = [...fingers.values()], n = all.length;
    const x = all.reduce((sum, p) => sum + p.x, 0) / n, y = all.reduce((sum, p) => sum + p.y, 0) / n;
    return { x, y, reach: n > 1 ? Math.hypot(all[0].x - all[1].x, all[0].y - all[1].y) : 0 };
  };
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  svg.addEventListener("pointerdown", (event) => {
    if (!fingers.size) moved = false;
    fingers.set(event.pointerId, at(event));
  });
  addEventListener("pointermove", (event) => {
    if (!fingers.has(event.pointerId)) return;
    const before = middle();
    fingers.set(event.pointerId, at(event));
    const now = middle();
    if (!moved && Math.hypot(now.x - before.x, now.y - before.y) < 3 && now.reach === before.reach) {
      fingers.set(event.pointerId, { x: at(event).x - (now.x - before.x), y: at(event).y - (now.y - before.y) });
      return;
    }
    moved = true;
    svg.classList.add("moving");
    view.x += now.x - before.x;
    view.y += now.y - before.y;
    if (before.reach && now.reach) zoom(now.reach / before.reach, now.x, now.y);
    show();
  });
  const lift = (event) => {
    fingers.delete(event.pointerId);
    if (!fingers.size) svg.classList.remove("moving");
  };
  addEventListener("pointerup", lift);
  addEventListener("pointercancel", lift);
  svg.addEventListener("click", (event) => { if (event.target === svg && !moved) clear(); });
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, y } = at(event);
    zoom(Math.exp(-Math.max(-80, Math.min(80, event.deltaY)) / 300), x, y);
  }, { passive: false });
  document.getElementById("in").onclick = () => zoom(1.3);
  document.getElementById("out").onclick = () => zoom(1 / 1.3);
  document.getElementById("fit").onclick = fit;
  document.getElementById("scale").onchange = paint;

  // ---- keys
  const strongest = (edges, key) => {
    const best = [...edges].sort((a, b) => b.strength - a.strength)[0];
    return best && best[key];
  };
  const beside = (name, step) => {
    const own = nodes.get(name);
    const level = data.nodes.filter((one) => one.y === own.y).sort((a, b) => a.x - b.x);
    return level[level.indexOf(own) + step]?.name;
  };
  const moves = {
    ArrowUp: (name) => strongest(outOf(name), "unit"),
    ArrowDown: (name) => strongest(into(name), "input"),
    ArrowLeft: (name) => beside(name, -1),
    ArrowRight: (name) => beside(name, 1),
  };
  const keys = { "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: fit, Escape: clear };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const here = data.nodes.find((one) => one.group === document.activeElement);
    if (here && event.key in moves) {
      const name = moves[event.key](here.name);
      if (name) {
        for (const one of data.nodes) one.group.setAttribute("tabindex", one.name === name ? "0" : "-1");
        nodes.get(name).group.focus();
        reveal(nodes.get(name));
      }
    } else if (here && (event.key === "Enter" || event.key === " ")) select(here.name);
    else if (event.key === "o") open(here ? here.name : selected);
    else if (Object.hasOwn(keys, event.key)) keys[event.key]();
    else return;
    event.preventDefault();
  });

  data.edges.forEach(drawEdge);
  data.nodes.forEach(drawNode);
  for (const { y, text } of data.rows) world.append(draw("text", { class: "row", x: 6, y: y - side / 2 - 4 }, text));
  svg.append(world);
  const begin = () => {
    const asked = decodeURIComponent(location.hash.slice(1));
    if (nodes.has(asked)) {
      select(asked);
      center(nodes.get(asked), Math.max(fitting(), .8));
    } else {
      clear();
      if (fitting() < .35) center(nodes.get(data.unit), .5);
      else fit();
    }
  };
  paint();
  begin();
  addEventListener("hashchange", begin);
  addEventListener("resize", () => { if (view.k < fitting()) fit(); });
})();
