// How it is fooled: a change too small to see, along gradients that are computed in this page.

const UNIT = 255;  // eps is given in steps of 1/255
const LARGEST = 16;
const FOUND_AT = 3;  // the size at which ten gradients are followed

function fooledView(root, state, {full}) {
  const {network} = state;
  const [height, width] = network.size;
  let eps = 0.5, target = null, chosen = null, steps = 10, direction = null, changed = null, result = null, enough = null, asked = 0;
  const original = board({label: "Your picture", height, width}), changedBoard = board({label: "Your picture with the change", height, width});
  const change = pixelCanvas("The change, amplified");
  const amplified = h("figcaption");
  const dial = slider("Largest change of a pixel", {min: 0, max: LARGEST, step: 0.25, value: eps, text: (v) => `${v} of 255`, oninput: (v) => { eps = v; apply(); }});
  const list = answers(), verdict = h("p.verdict", {role: "status"});
  const pick = full ? h("select", {"aria-label": "Class toward which the picture is changed", onchange: () => { chosen = pick.value === "" ? null : Number(pick.value); restart(); }},
    h("option", {value: ""}, "the second most probable class"), network.classes.map((name, i) => h("option", {value: i}, name))) : null;
  const effort = full ? choice("Steps", [["1", "One gradient"], ["10", "Ten gradients"]], "10", (key) => { steps = Number(key); restart(); }) : null;
  root.append(
    full ? h("div.row", {}, h("label.named", {}, "Toward ", pick), effort.element) : "",
    h("div.row", {}, dial.element),
    h("div.trio", {},
      h("figure", {}, original.element, h("figcaption", {}, "your picture")), h("span.sign", {"aria-label": "plus"}, "+"),
      h("figure", {}, change, amplified), h("span.sign", {"aria-label": "gives"}, "="),
      h("figure", {}, changedBoard.element, h("figcaption", {}, "what goes in"))),
    verdict, list.element);

  function answers() {
    const element = h("div.split.answers");
    const one = (title, shares) => h("div", {}, h("h4", {}, title), h("ol.classes", {}, topOf(shares, full ? 5 : 3).map((i) => h("li", {},
      h("span.name", {title: network.classes[i]}, network.classes[i]), h("span.bar", {}, h("i", {style: `width:${100 * shares[i]}%`})), h("b", {}, percent(shares[i]))))));
    return {element, update(first, second) { element.replaceChildren(one("Answer before", first), one("Answer now", second)); }};
  }
  async function restart() {
    // The direction in which the wanted class becomes more probable.
    const run = state.run, mine = ++asked;
    if (!run) return;
    const order = topOf(run.logits, 2);
    target = chosen !== null && chosen !== order[0] ? chosen : order[1];
    enough = null;
    for (const one of [original, changedBoard]) paintPicture(one.canvas, run.picture, height, width);
    const found = await directionToward(run.picture, target);
    if (!found || mine !== asked || !root.isConnected) return;
    direction = found;
    await apply();
    if (mine === asked) await findSmallest(run.picture, order[0], mine);
  }
  /** How much each pixel is moved, in -1 ... 1 of the largest change: one gradient's sign, or ten gradients one after the other. */
  async function directionToward(picture, label) {
    if (steps === 1) {
      const gradient = await network.gradient(picture, label);
      return gradient && gradient.map((value) => -Math.sign(value));
    }
    const size = FOUND_AT / UNIT;
    const found = await network.perturb(picture, {eps: size, steps, label, towards: true, off: {}});
    return found && found.pixels.map((value, i) => (value - picture[i]) / size);
  }
  const moved = (picture, by, size) => picture.map((value, i) => clamp(value + size / UNIT * by[i], 0, 1));
  let running = false, again = false;
  async function apply() {
    if (running) { again = true; return; }
    running = true;
    do {
      again = false;
      if (!direction || !state.run) break;
      const picture = state.run.picture, next = moved(picture, direction, eps);
      const found = await network.forward(next, {slot: "changed"});
      if (!found || !root.isConnected ) continue;
      changed = next;
      result = softmax(found.logits);
      draw(picture);
    } while (again && root.isConnected);
    running = false;
  }
  async function findSmallest(picture, from, mine) {
    // By halves, along this direction.
    let low = 0, high = LARGEST;
    const flips = async (size) => {
      const found = await network.forward(moved(picture, direction, size), {slot: "smallest"});
      return found && topOf(found.logits, 1)[0] !== from;
    };
    if (await flips(high)) {
      while (high - low > 0.25) {
        if (mine !== asked || !root.isConnected) return;
        const middle = (low + high) / 2;
        if (await flips(middle)) high = middle; else low = middle;
      }
      enough = Math.ceil(high * 4) / 4;
    } else enough = Infinity;
    if (mine === asked && state.retell) state.retell();
  }
  function draw(picture) {
    paintPicture(original.canvas, picture, height, width);
    paintPicture(changedBoard.canvas, changed, height, width);
    const difference = changed.map((value, i) => value - picture[i]);
    const size = largest(difference);
    paintAroundGray(change, difference, height, width, size || 1);
    amplified.textContent = size ? `the change, ${Math.round(0.5 / size)} times as strong as it is` : "the change: none yet";
    list.update(state.run.shares, result);
    const [was] = topOf(state.run.shares, 1), [now] = topOf(result, 1);
    verdict.replaceChildren(...(was === now ? ["The answer is still ", h("b", {}, network.classes[was]), "."] : ["The answer is now ", h("b", {}, network.classes[now]), ` instead of ${network.classes[was]}.`]));
    verdict.classList.toggle("fails", was !== now);
  }
  const stop = [state.on("run", restart)];
  restart();
  return {
    needs: [],
    number: () => enough === null ? ["\u2026", "looking for the smallest change that is enough"]
      : enough === Infinity ? [`more than ${LARGEST} of 255`, "would be needed along this direction: this picture resists"]
        : [`${enough} of 255`, "is enough along this direction: no pixel changes by more, of 255 steps from black to full color"],
    repaint: () => { if (changed && state.run) draw(state.run.picture); },
    close() { asked++; stop.forEach((one) => one()); },
  };
}
