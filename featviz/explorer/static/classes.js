// The classes of the picture with their probabilities, live.

function topClasses(state, {count = 5, before = null} = {}) {
  const list = h("ol.classes", {"aria-label": "The most probable classes"});
  const told = speaker();
  const rows = Array.from({length: count}, () => {
    const name = h("span.name"), bar = h("i"), old = h("em"), share = h("b");
    return {row: h("li", {}, name, h("span.bar", {}, bar, old), share), name, bar, old, share};
  });
  list.append(...rows.map(({row}) => row));
  function update() {
    if (!state.run) return;
    const {shares} = state.run, reference = before && before();
    const order = topOf(shares, Math.min(count, shares.length));
    rows.forEach((entry, i) => {
      const index = order[i];
      entry.row.hidden = index === undefined;
      if (index === undefined) return;
      entry.name.textContent = state.network.classes[index];
      entry.name.title = state.network.classes[index];
      entry.bar.style.width = `${100 * shares[index]}%`;
      entry.share.textContent = percent(shares[index]);
      entry.old.hidden = !reference;
      if (reference) entry.old.style.left = `${100 * reference[index]}%`;
    });
    told.say(order.slice(0, 3).map((i) => `${state.network.classes[i]} ${percent(shares[i])}`).join(", "));
  }
  return {element: h("div", {}, list, told.element), update};
}
