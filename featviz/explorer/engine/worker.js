// The worker: takes {id, method, args} or {cancel: id}, answers {id, result} or {id, error};
// {card}: what has become of the graphics card, once it was tried.

let network = null;
const cancelled = new Set();

let running = 0; // calls of `forward`, for which other calls wait

// Lets messages in, at most every 20 ms; throws where the call was cancelled meanwhile.
function pauses(id, method) {
  let last = performance.now();
  return async () => {
    if (performance.now() - last > 20) {
      do await new Promise((resolve) => setTimeout(resolve));
      while (running && method !== "forward" && !cancelled.has(id));
      last = performance.now();
    }
    if (cancelled.delete(id)) throw new Error("cancelled");
  };
}

const METHODS = {
  async start(pause, data, text) {
    network = new Network(data, await inflated(bytesOf(text)), arithmetic);
    await network.prepare();
    // behind the first picture
    setTimeout(async () => {
      await network.prepareBackward(pauses(null));
      self.postMessage({ card: await moveToCard(network, data.gpu, pauses(null)) });
    }, 500);
    return { arithmetic: network.memory.arithmetic.constructor.name };
  },
  forward: (pause, pixels, options) => network.forward(pixels, options, pause),
  gradient: (pause, pixels, target, options) => network.gradient(pixels, target, options, pause),
  perturb: (pause, pixels, options) => network.perturb(pixels, options, pause),
  contributions: (pause, ...args) => network.contributions(...args, pause),
  tensor: (pause, index) => network.tensors.floats(index),
  times: () => network.last.times,
};

self.onmessage = async ({ data: { id, method, args, cancel } }) => {
  if (cancel !== undefined) {
    cancelled.add(cancel);
    return;
  }
  if (method === "forward") running++;
  try {
    self.postMessage({ id, result: await METHODS[method](pauses(id, method), ...args) });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
  if (method === "forward") running--;
  cancelled.delete(id);
};
