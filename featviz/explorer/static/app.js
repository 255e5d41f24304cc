// The page: reads what the build put into it, starts the network, and shows one step at a time.

function openBlocks() {
  const addresses = new Map();
  const bytes = (name) => bytesOf(textOf(`block-${name}`));
  return {
    inflated: (name) => inflated(bytes(name)),
    floats: (name) => new Float32Array(bytes(name).buffer),
    url(name, type) {
      if (!addresses.has(name)) addresses.set(name, URL.createObjectURL(new Blob([bytes(name)], {type})));
      return addresses.get(name);
    },
  };
}

async function openPage() {
  const data = JSON.parse(textOf("data")), blocks = openBlocks();
  data.links = {...data.links, ...JSON.parse(textOf("site")), units: JSON.parse(textOf("unit-pages"))};
  const main = document.querySelector("main"), aside = document.querySelector("#picture");
  themeButton(document.querySelector("#theme"), () => { ramp = null; if (page) page.repaint(); });
  let page = null, state;
  try {
    const engine = await Engine.start(data);
    const network = await openNetwork(data, engine);
    state = makeState(network);
    Object.assign(state, {
      data, engine, space: await openSpace(data.gathered || {}, blocks), units: openUnits(data.gathered || {}, blocks),
      growth: await openGrowth(data, network),
      samples: ((data.gathered || {}).samples || []).map(({name, block}) => ({name, url: blocks.url(block, "image/jpeg")})),
    });
  } catch (error) {
    main.replaceChildren(h("h1", {}, "The network did not start"), h("p", {}, `${error.message || error}. This page needs a browser of 2023 or later.`));
    throw error;
  }
  const panel = picturePanel(aside, state);
  state.take = async (row) => {
    const {space} = state, sample = state.samples.find((one) => one.name === space.names[row]);
    if (sample) { await panel.takeSample(sample); return; }
    const canvas = document.createElement("canvas");
    await space.sheet.ready;
    space.sheet.draw(canvas, row);
    await Promise.resolve();
    panel.load(await state.network.input(canvas), space.names[row]);
  };
  page = makePages(main, document.querySelector("#steps"), state);
  const [sample] = state.samples;
  if (sample) await panel.takeSample(sample);
  else panel.load(Float32Array.from({length: state.network.channels * state.network.size[0] * state.network.size[1]}, () => 0.96), "an empty picture");
  page.open();
  const stop = state.on("run", () => { stop(); document.documentElement.dataset.ready = ""; });
}

/** Kernels of the first layer at the moments that the build kept: {steps, top1, weights(i)}. */
async function openGrowth(data, network) {
  const kept = (data.snapshots || []).filter(({tensors}) => network.first && network.first.weight in tensors);
  if (kept.length < 2) return null;
  const weights = await Promise.all(kept.map(({tensors}) => network.tensor(tensors[network.first.weight])));
  return {steps: kept.map(({step}) => step), top1: kept.map(({top1}) => top1), weights: (i) => weights[i]};
}

function makePages(main, steps, state) {
  const story = storySteps(state);
  let shown = null, view = null, number = null;
  const links = story.map((step, i) => {
    const link = h("a", {href: `#${step.id}`}, h("span.dot", {"aria-hidden": "true"}, String(i + 1)), h("span", {}, step.short));
    steps.append(h("li", {}, link));
    return link;
  });
  function read() {
    const [id, depth] = location.hash.slice(1).split("/");
    return {at: Math.max(0, story.findIndex((step) => step.id === id)), full: depth === "all"};
  }
  function open() {
    const {at, full} = read(), step = story[at];
    if (view) view.close();
    const first = !shown;
    shown = {at, full};
    links.forEach((link, i) => (i === at ? link.setAttribute("aria-current", "step") : link.removeAttribute("aria-current")));
    links[at].scrollIntoView({block: "nearest", inline: "center"});
    const area = h("div.view"), heading = h("h1", {tabindex: -1}, step.title);
    number = h("p.number", {"aria-live": "polite"});
    const before = story[at - 1], after = story[at + 1];
    main.replaceChildren(h("article.step", {class: full ? "step all" : "step"},
      h("header", {}, h("p.ordinal", {}, `Step ${at + 1} of ${story.length}`), heading,
        h("p.why", {}, step.why), full || !step.gloss ? null : h("p.gloss", {}, step.gloss)),
      full ? h("p.touch", {}, h("a", {href: `#${step.id}`}, "\u2190 Back to the story")) : h("p.touch", {}, step.touch),
      area, number,
      h("details.trust", {open: full}, h("summary", {}, "How far to trust this"), step.trust().map((text) => h("p", {}, text)), drift()),
      h("nav.turn", {"aria-label": "Steps"},
        before ? h("a.before", {href: `#${before.id}`}, h("span", {}, "Before"), before.title) : h("span"),
        full ? null : h("a.deeper", {href: `#${step.id}/all`}, "Go deeper"),
        after ? h("a.after", {href: `#${after.id}`}, h("span", {}, "Next"), after.title) : ends())));
    view = step.view(area, state, {full, ...step.options});
    state.need(view.needs);
    retell();
    document.title = `${step.title} \u00b7 ${state.network.name}`;
    if (!first) { heading.focus({preventScroll: true}); scrollTo(0, 0); }
  }
  function ends() {
    const {gallery} = state.data.links || {};
    return gallery ? h("a.after", {href: gallery}, h("span", {}, "More"), "All results in the gallery") : h("span");
  }
  function drift() {
    const {gathered} = state.data, by = h("p", {}, state.engine.computedBy());
    state.engine.tried.then(() => { by.textContent = state.engine.computedBy(); });
    return gathered && gathered.drift ? [h("p", {}, gathered.drift), by] : by;
  }
  function retell() {
    if (!view) return;
    const [value, text] = view.number();
    number.replaceChildren(h("b", {}, value), " ", text);
  }
  state.retell = retell;
  for (const event of ["run", "pick", "off"]) state.on(event, () => requestAnimationFrame(retell));
  addEventListener("hashchange", open);
  return {open, repaint: () => view && view.repaint()};
}

function themeButton(button, changed) {
  const kept = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const show = () => button.setAttribute("aria-label", isDark() ? "Light colors" : "Dark colors");
  if (kept()) document.documentElement.dataset.theme = kept();
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem("theme", theme); } catch { /* not kept */ }
    show(); changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { show(); changed(); });
  show();
}

openPage();
