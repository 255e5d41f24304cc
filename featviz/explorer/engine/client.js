// The engine as the page sees it: promises over a Worker that is made from text in the page.
//
// Calls are done one after the other, but `forward` does not wait for other calls: the worker puts
// them off until it is done, so that a live picture goes on. A call is dropped (its promise gives null) when a later one
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
    this.current = new Map(); // the call that the worker does, of `forward` and of the others
    this.count = 0;
    this.card = null; // {name, faster: ratios} or {reason}, once the graphics card was tried
    this.tried = new Promise((told) => (this.told = told));
    this.worker.onmessage = ({ data }) => this.finish(data);
    this.worker.onerror = (event) => {
      for (const call of [...this.current.values(), ...this.waiting]) call.reject(new Error(event.message));
      this.waiting = [];
      this.current.clear();
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

  // What computes, in a sentence.
  computedBy() {
    const { name, faster, reason } = this.card ?? { reason: "not tried yet" };
    const most = `Computed on the processor by ${this.arithmetic === "VectorArithmetic" ? "WebAssembly" : "plain JavaScript"}`;
    if (reason) return `${most}, not by a graphics card: ${reason}.`;
    const card = `the graphics card \u201c${name}\u201d`;
    if (!faster.length) return `${most}: ${card} was not faster when this page measured both.`;
    return `${most}, except for ${faster.length} of the convolutions and matrices, which are computed by ${card}: it was ${faster[0].toFixed(1)} times as fast for the heaviest when this page measured both.`;
  }

  stop() {
    this.worker.terminate();
    URL.revokeObjectURL(this.address);
  }

  call(method, args, slot = method) {
    return new Promise((resolve, reject) => {
      const call = { id: ++this.count, method, args, slot, resolve, reject, live: method === "forward" };
      if (slot !== null) {
        for (const old of this.waiting.filter((one) => one.slot === slot)) old.resolve(null);
        this.waiting = this.waiting.filter((one) => one.slot !== slot);
        for (const one of this.current.values())
          if (one.slot === slot) this.worker.postMessage({ cancel: one.id });
      }
      this.waiting.push(call);
      this.next();
    });
  }

  next() {
    for (const live of [true, false]) {
      const at = this.waiting.findIndex((call) => call.live === live);
      if (at < 0 || this.current.has(live)) continue;
      const [call] = this.waiting.splice(at, 1);
      this.current.set(live, call);
      this.worker.postMessage({ id: call.id, method: call.method, args: call.args });
    }
  }

  finish({ id, result, error, card }) {
    if (card) this.told((this.card = card));
    const call = [...this.current.values()].find((one) => one.id === id);
    if (!call) return;
    this.current.delete(call.live);
    if (error === undefined) call.resolve(result);
    else if (error === "cancelled") call.resolve(null);
    else call.reject(new Error(error));
    this.next();
  }
}

function textOf(id) {
  return document.getElementById(id).textContent;
}
