// Light and dark, keys, and the large view of figures. Without it every page still reads and every
// figure still opens as a file.
"use strict";
(() => {
  const root = document.documentElement;
  const make = (tag, words = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), words);
    element.append(...children);
    return element;
  };
  const remember = (key, value) => {
    try { localStorage.setItem(key, value); } catch { /* private windows have no memory */ }
  };

  // ---- light and dark
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const switchTheme = () => {
    root.dataset.theme = dark() ? "light" : "dark";
    remember("featviz-theme", root.dataset.theme);
  };

  // ---- the large view
  const zooms = [...document.querySelectorAll("a.zoom")];
  const markWide = () => zooms.forEach((link) =>
    link.classList.toggle("swipes", link.scrollWidth > link.clientWidth + 8));
  addEventListener("load", markWide);
  addEventListener("resize", markWide);
  let viewer, stage, picture, words, at = 0;
  const build = () => {
    picture = make("img", { alt: "" });
    stage = make("div", { className: "stage" }, picture);
    words = make("div", { className: "words" });
    const button = (text, label, action) =>
      make("button", { type: "button", textContent: text, title: label, ariaLabel: label, onclick: action });
    const buttons = make("div", { className: "buttons" });
    if (zooms.length > 1) {
      buttons.append(button("←", "Figure before", () => show(at - 1)), button("→", "Next figure", () => show(at + 1)));
    }
    buttons.append(button("Close", "Close (Esc)", () => viewer.close()));
    viewer = make("dialog", { className: "viewer", ariaLabel: "Figure" },
      stage, make("div", { className: "bar" }, words, buttons));
    stage.addEventListener("click", (event) => {
      if (event.target === picture) stage.classList.toggle("actual");
      else viewer.close();
    });
    viewer.addEventListener("close", () => { picture.removeAttribute("src"); zooms[at].focus(); });
    document.body.append(viewer);
  };
  const show = (index) => {
    if (!viewer) build();
    at = (index + zooms.length) % zooms.length;
    const link = zooms[at];
    const small = link.querySelector("img");
    stage.classList.remove("actual");
    picture.className = small.className;
    const width = small.naturalWidth || Number(small.getAttribute("width")) || 600;
    picture.classList.toggle("grown", width < 900 || /\.svg$/i.test(link.pathname));
    picture.style.setProperty("--actual", `${Math.max(width, Math.min(4 * width, 1600))}px`);
    picture.alt = small.alt;
    picture.src = link.href;
    const caption = link.parentElement.querySelector("figcaption");
    words.replaceChildren(...(caption ? [...caption.cloneNode(true).childNodes] : []));
    words.append(make("div", {}, make("a", { href: link.href, textContent: "The file" })));
    if (!viewer.open) viewer.showModal();
  };
  zooms.forEach((link, index) => link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(index);
  }));

  // ---- help
  const keys = [
    ["?", "these keys"], ["t", "light or dark"], ["h", "overview"], ["u", "units"],
    ["← →", "page before, next page; in the large view, figure"], ["k j", "the same"],
    ["Enter", "open the figure that has the focus"], ["z", "in the large view: as large as it is"],
    ["Esc", "close"],
  ];
  let help;
  const showHelp = () => {
    if (!help) {
      const list = make("dl");
      for (const [key, meaning] of keys) {
        const marks = key.split(" ").flatMap((k) => [make("kbd", { textContent: k }), " "]);
        list.append(make("dt", {}, ...marks), make("dd", { textContent: meaning }));
      }
      help = make("dialog", { className: "help", ariaLabel: "Keyboard shortcuts" },
        make("h2", { textContent: "Keys" }), list,
        make("button", { type: "button", textContent: "Close", onclick: () => help.close() }));
      help.addEventListener("click", (event) => { if (event.target === help) help.close(); });
      document.body.append(help);
    }
    help.showModal();
  };

  // ---- keys
  const go = (selector) => {
    const target = document.querySelector(selector);
    if (target) location.href = target.href;
  };
  const actions = {
    "?": showHelp,
    t: switchTheme,
    h: () => go('a[data-key="home"]'),
    u: () => go('a[data-key="units"]'),
    ArrowLeft: () => go('link[rel="prev"]'),
    k: () => go('link[rel="prev"]'),
    ArrowRight: () => go('link[rel="next"]'),
    j: () => go('link[rel="next"]'),
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const tag = event.target.tagName;
    if (tag === "INPUT" || tag === "TEXTAREA" || tag === "SELECT") return;
    if (viewer?.open) {
      const steps = { ArrowLeft: -1, k: -1, ArrowRight: 1, j: 1 };
      if (event.key in steps) { event.preventDefault(); show(at + steps[event.key]); }
      if (event.key === "z") stage.classList.toggle("actual");
      return;
    }
    if (help?.open) return;
    const scrolls = event.key.startsWith("Arrow") && event.target.closest?.(".scroll, .swipes, pre");
    if (scrolls || !Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  });

  // ---- buttons
  const tools = {
    theme: switchTheme,
    help: showHelp,
    copy: async (button) => {
      const text = button.parentElement.querySelector("code").textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(button.parentElement.querySelector("code"));
        button.textContent = "Press Ctrl+C";
      }
    },
  };
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => tools[button.dataset.tool](button));
    button.hidden = false;
  }
  document.querySelector(".tools").hidden = false;
})();
