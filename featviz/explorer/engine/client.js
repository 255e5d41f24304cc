// The engine as the page sees it: promises over a Worker that is made from text in the page.
//
// Calls are done one after the other. A call is dropped (its promise gives null) when a later one
// with the same `slot` comes before it is done; without a slot its method is its slot, so that a
// slider never queues up. `slot: null` is never dropped.

class Engine {
  // data: the page's document; text: the weights, deflated, as the page has them; source: the worker's program.
  static async start(data, text = textOf("block-weights"), source = textOf("engine-worker")) {
    const engine = new Engine(data, source);
    Object.assign(engine, await engine.call("start", [data, text], null));
    return engine;
  }

  constructor(data, source) {
    this.data = data;
    this.address = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.worker = new Worker(this.address);
    this.waiting = []; // calls that are not yet given to the worker
    this.current = null;
    this.count = 0;
    this.worker.onmessage = ({ data }) => this.finish(data);
    this.worker.onerror = (event) => {
      for (const call of [this.current, ...this.waiting]) call?.reject(new Error(event.message));
      this.waiting = [];
      this.current = null;
    };
  }

  forward(pixels, options = {}) {
    return this.call("forward", [pixels, options], options.slot);
  }

  // target: {class}, {logit} or {layer, unit, y, x}; a number is a class.
  gradient(pixels, target, options = {}) {
    const aim = typeof target === "number" ? { class: target } : target;
    return this.call("gradient", [pixels, aim, options], options.slot);
  }

  perturb(pixels, options) {
    return this.call("perturb", [pixels, options], options.slot);
  }

  contributions(pixels, layer, unit, y = 0, x = 0, options = {}) {
    return this.call("contributions", [pixels, layer, unit, y, x, options], options.slot);
  }

  // The values of a stored tensor.
  tensor(index) {
    return this.call("tensor", [index], null);
  }

  // Milliseconds of each operation in the last run.
  times() {
    return this.call("times", [], null);
  }

  // The pixels (C H W in [0, 1]) of a file, a blob, an ImageBitmap, ImageData or canvas.
  inputOf(picture) {
    return pixelsOf(picture, this.data.input);
  }

  stop() {
    this.worker.terminate();
    URL.revokeObjectURL(this.address);
  }

  call(method, args, slot = method) {
    return new Promise((resolve, reject) => {
      const call = { id: ++this.count, method, args, slot, resolve, reject };
      if (slot !== null) {
        for (const old of this.waiting.filter((one) => one.slot === slot)) old.resolve(null);
        this.waiting = this.waiting.filter((one) => one.slot !== slot);
        if (this.current?.slot === slot) this.worker.postMessage({ cancel: this.current.id });
      }
      this.waiting.push(call);
      this.next();
    });
  }

  next() {
    if (this.current || !this.waiting.length) return;
    this.current = this.waiting.shift();
    const { id, method, args } = this.current;
    this.worker.postMessage({ id, method, args });
  }

  finish({ id, result, error }) {
    const call = this.current;
    if (call?.id !== id) return;
    this.current = null;
    if (error === undefined) call.resolve(result);
    else if (error === "cancelled") call.resolve(null);
    else call.reject(new Error(error));
    this.next();
  }
}

function textOf(id) {
  return document.getElementById(id).textContent;
}
