// What is looked at, and one pass through the network at a time: the newest picture wins.

/**
 * The state of the page. Views listen; nothing else is shared between them. Passes are told at the
 * next frame, the newest only.
 *
 *     picture   planes (3, H, W) in 0 ... 1 that go into the network
 *     off       units switched off: {"conv5": [3, 12]}
 *     picked    the unit and cell that is followed: {layer, unit, y, x}
 *     run       of the last pass: {picture, values, logits, shares, off}, and ms of the first of this picture
 */
function makeState(network) {
  const listeners = {picture: new Set(), run: new Set(), pick: new Set(), off: new Set(), failed: new Set()};
  const state = {
    network, picture: null, title: "", run: null, off: {}, needed: new Set(), picked: firstPick(network),
    on(event, listener) { listeners[event].add(listener); return () => listeners[event].delete(listener); },
    setPicture(picture, title) {
      state.picture = picture;
      if (title !== undefined) state.title = title;
      tell("picture");
      ask();
    },
    pick(change) {
      Object.assign(state.picked, change);
      tell("pick");
    },
    switchUnits(layer, units) {
      if (units.length) state.off[layer] = units; else delete state.off[layer];
      tell("off");
      ask();
    },
    allOn() { state.off = {}; tell("off"); ask(); },
    /** Layers whose values the view on the page shows. */
    need(layers) {
      state.needed = new Set(layers);
      if (!state.run || layers.some((name) => !state.run.values[name])) ask();
    },
  };
  let busy = false, wanted = false;
  function tell(event) { for (const listener of [...listeners[event]]) listener(state); }
  const tellRun = eachFrame(() => tell("run"));
  async function ask() {
    wanted = true;
    if (busy || !state.picture) return;
    busy = true;
    while (wanted) {
      wanted = false;
      const picture = state.picture, off = structuredClone(state.off);
      try {
        const found = await network.forward(picture, {layers: [...state.needed, network.space], off});
        if (!found) continue;
        const {ms} = state.run && state.run.picture === picture ? state.run : found;
        state.run = {...found, ms, picture, off, shares: found.logits && softmax(found.logits)};
        tellRun();
      } catch (error) {
        state.problem = String(error.message || error);
        tell("failed");
      }
    }
    busy = false;
  }
  return state;
}

function firstPick(network) {
  const first = network.sums[0] || network.spatial[0];
  return {layer: first.name, unit: 0, y: first.shape[1] >> 1, x: first.shape[2] >> 1};
}

function softmax(logits) {
  let most = -Infinity;
  for (const value of logits) most = Math.max(most, value);
  const shares = Float64Array.from(logits, (value) => Math.exp(value - most));
  const sum = shares.reduce((a, b) => a + b, 0);
  return shares.map((value) => value / sum);
}

/** Indices of the largest values, the largest first. */
function topOf(values, count) {
  return Array.from(values, (_, i) => i).sort((a, b) => values[b] - values[a]).slice(0, count);
}
