/** Fill photos in the browser, with onnxruntime-web in a worker. Written beside the networks by `showface app --static`. */

/** @typedef {import("./engine.js").Engine} Engine */

const CONFIG = new URL("engine-config.json", import.meta.url);

/** @returns {Promise<Engine>} */
export async function createEngine() {
  const answer = await fetch(CONFIG);
  if (!answer.ok) throw new Error("The file engine-config.json is missing beside the page's files.");
  const config = await answer.json();
  const calls = new Calls(config);
  return {
    models: async () => config.models,
    faces: (photo, signal) => calls.send("faces", { photo }, signal),
    inpaint: (request) => inpaint(calls, request),
    privacy: "Your photo stays in this browser: it is filled on your own device.",
  };
}

/** @param {Calls} calls @param {import("./engine.js").Request} request @returns {Promise<import("./engine.js").Answer>} */
function inpaint(calls, { photo, mask, model: name, detail, faces, format, signal, onProgress }) {
  const { models } = calls.config;
  const model = name ? models.find((x) => x.name === name) : models[0];
  const request = { photo, mask, model: model.name, size: model.size, detail: detail ?? model.detail, faces, format };
  return calls.send("inpaint", request, signal, onProgress);
}

/** Let the page work offline from now on, where browsers allow it: over HTTPS, or from this machine. */
async function keepOffline() {
  if (!navigator.serviceWorker) return;
  try {
    await navigator.serviceWorker.register(new URL("../service-worker.js", CONFIG));
    await navigator.serviceWorker.ready;
  } catch (error) {
    console.warn("The page does not work offline:", error);
  }
}

/**
 * What a promise gives, unless a signal comes first. What the promise waits for goes on.
 *
 * @template T
 * @param {Promise<T>} promise
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>}
 */
function unlessAborted(promise, signal) {
  if (!signal) return promise;
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Calls to the worker, which answers them in turn. */
class Calls {
  constructor(config) {
    this.config = config;
    this.waiting = new Map(); // by number of the call
    this.last = 0;
    this.open = new Map(); // promises by model
    this.worker = null;
    this.offline = null; // a promise, once a model is loaded
  }

  /** Load a model. @param {string} model @returns {Promise<void>} */
  opened(model) {
    if (!this.open.has(model)) {
      const opening = this.post("open", { config: this.config, base: new URL(".", CONFIG).href, model });
      opening.then(
        () => (this.offline ??= keepOffline()), // now, since the browser has just loaded the large files
        () => this.open.delete(model), // so that the next call tries again
      );
      this.open.set(model, opening);
    }
    return this.open.get(model);
  }

  /** Call the worker once what it needs is loaded. */
  async send(kind, request, signal, onProgress) {
    signal?.throwIfAborted();
    onProgress?.("loading the network", 0);
    await unlessAborted(this.opened(request.model ?? this.config.models[0].name), signal);
    return this.post(kind, request, signal, onProgress);
  }

  post(kind, request, signal, onProgress) {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      const cancel = () => {
        this.#worker().postMessage({ id: 0, kind: "cancel", job: id });
        this.waiting.delete(id);
        reject(signal.reason);
      };
      signal?.addEventListener("abort", cancel, { once: true });
      const done = (settle) => (value) => {
        signal?.removeEventListener("abort", cancel);
        settle(value);
      };
      this.waiting.set(id, { resolve: done(resolve), reject: done(reject), onProgress });
      this.#worker().postMessage({ id, kind, ...request });
    });
  }

  #worker() {
    if (this.worker) return this.worker;
    this.worker = new Worker(new URL("onnx/worker.js", import.meta.url), { type: "module" });
    this.worker.onmessage = ({ data }) => this.#receive(data);
    this.worker.onerror = (event) => this.#fail(event.message || "The worker can't be started.");
    return this.worker;
  }

  #receive({ id, progress, result, error }) {
    const call = this.waiting.get(id);
    if (!call) return;
    if (progress) return call.onProgress?.(...progress);
    this.waiting.delete(id);
    if (error) call.reject(error.name === "AbortError" ? new DOMException(error.message, error.name) : new Error(error.message));
    else call.resolve(result);
  }

  #fail(message) {
    for (const call of this.waiting.values()) call.reject(new Error(message));
    this.waiting.clear();
    this.open.clear();
    this.worker = null;
  }
}
