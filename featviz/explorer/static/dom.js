// Elements, numbers in words, and timing: what every view needs.

/** h("button.small", {type: "button", onclick: go}, "Go") is an element. */
function h(name, given, ...children) {
  const [tag, ...classes] = name.split(".");
  const element = document.createElement(tag || "div");
  if (classes.length) element.className = classes.join(" ");
  for (const [key, value] of Object.entries(given || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") element.style.cssText = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(name, given, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(given || {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const whole = (value) => Math.round(value).toLocaleString("en");
const percent = (value) => value >= 0.9995 ? "100%" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)}%`;

/** Three significant digits, with a real minus sign. */
function short(value) {
  if (!Number.isFinite(value)) return "not a number";
  const size = Math.abs(value);
  const text = size >= 100 ? size.toFixed(0) : size >= 10 ? size.toFixed(1) : size.toFixed(2);
  return (value < 0 && Number(text) !== 0 ? "\u2212" : "") + text;
}

const plural = (count, one, many) => `${whole(count)} ${count === 1 ? one : many || one + "s"}`;

const still = matchMedia("(prefers-reduced-motion: reduce)");

/** A group of buttons of which one is pressed. choose(key) presses one without a call. */
function choice(label, options, pressed, onpick) {
  const buttons = new Map(options.map(([key, text, title]) => [key,
    h("button", {type: "button", title, "aria-pressed": String(key === pressed),
      onclick: () => { choose(key); onpick(key); }}, text)]));
  const element = h("div.choice", {role: "group", "aria-label": label}, [...buttons.values()]);
  function choose(key) {
    for (const [other, button] of buttons) button.setAttribute("aria-pressed", String(other === key));
  }
  return {element, choose};
}

/** A slider with its name and its value in words. */
function slider(label, {min, max, step = 1, value, text = String, oninput}) {
  const shown = h("output", {}, text(value));
  const input = h("input", {type: "range", min, max, step, "aria-label": label, "aria-valuetext": text(value),
    oninput: () => { set(Number(input.value)); oninput(Number(input.value)); }});
  input.value = value;
  function set(next) {
    input.value = next;
    shown.textContent = text(next);
    input.setAttribute("aria-valuetext", text(next));
  }
  return {element: h("label.slider", {}, h("span", {}, label), input, shown), input, set};
}

/** Calls `work` at the next frame, once however often it was asked for; `last`: after all other work. */
const eachFrame = (() => {
  let first = new Set(), later = new Set(), asked = 0;
  function frame() {
    const works = [...first, ...later], began = performance.now();
    first = new Set(); later = new Set(); asked = 0;
    for (const work of works) work(began);
  }
  return (work, {last = false} = {}) => () => {
    (last ? later : first).add(work);
    asked ||= requestAnimationFrame(frame);
  };
})();

/** Arrow keys as (dy, dx); null for other keys. */
function arrow(event) {
  return {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key] || null;
}

/** A text that screen readers speak when it changes; it waits until the changes stop. */
function speaker() {
  const element = h("p.unseen", {role: "status"});
  let waiting = 0;
  return {element, say(text) {
    clearTimeout(waiting);
    waiting = setTimeout(() => { element.textContent = text; }, 600);
  }};
}
