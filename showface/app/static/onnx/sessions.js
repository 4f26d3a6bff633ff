/** The networks, run by onnxruntime-web: on the GPU where the browser has WebGPU, else by WebAssembly on the CPU. */

/** @typedef {import("./fill.js").Planes} Planes */
/** @typedef {{gpu: boolean, files: Record<string, string>}} Config where the networks and onnxruntime-web lie */

const MODULE = { cpu: "ort.js", gpu: "ort-webgpu.js" };
const THREADS = 4; // more gain little

export class Sessions {
  /** @param {URL} base the folder of the page's files @param {Config} config */
  constructor(base, config) {
    Object.assign(this, { base, config });
    this.open = new Map(); // promises by name
    this.runtime = null;
  }

  /** Load onnxruntime-web and a network. @param {string} name a key of the configuration's files */
  session(name) {
    if (!this.open.has(name)) {
      const opening = this.#load(name);
      opening.catch(() => this.open.delete(name)); // so that the next call tries again
      this.open.set(name, opening);
    }
    return this.open.get(name);
  }

  async #load(name) {
    this.runtime ??= this.#start();
    const [{ ort, provider }, bytes] = await Promise.all([this.runtime, this.#fetch(this.config.files[name])]);
    const options = { graphOptimizationLevel: "all", logSeverityLevel: 3 };
    let session = await this.#create(ort, bytes, { ...options, executionProviders: [provider] });
    session ??= await this.#create(ort, bytes, { ...options, executionProviders: ["wasm"] });
    if (!session) throw new Error("This browser can't run the networks: it needs WebAssembly with SIMD.");
    return { ort, session };
  }

  async #create(ort, bytes, options) {
    try {
      return await ort.InferenceSession.create(bytes, options);
    } catch (error) {
      console.warn("onnxruntime-web:", error);
      return null;
    }
  }

  async #start() {
    const kind = this.config.gpu && (await hasGpu()) ? "gpu" : "cpu";
    const ort = await import(new URL(`ort/${MODULE[kind]}`, this.base).href);
    const name = kind === "gpu" ? "ort-wasm-webgpu" : "ort-wasm";
    const at = (suffix) => new URL(`ort/${name}${suffix}`, this.base).href;
    ort.env.wasm.wasmPaths = { mjs: at(".js"), wasm: at(".wasm") };
    // Threads need a page that is isolated from other origins, by the headers COOP and COEP.
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency ?? 1) : 1;
    return { ort, provider: kind === "gpu" ? "webgpu" : "wasm" };
  }

  async #fetch(path) {
    const answer = await fetch(new URL(path, this.base));
    if (!answer.ok) throw new Error(`The network ${path} can't be loaded (${answer.status}).`);
    return new Uint8Array(await answer.arrayBuffer());
  }

  /**
   * Fill a crop.
   *
   * @param {string} name
   * @param {import("./crops.js").View} view
   * @param {number | null} detail 0 = smooth to 1 = sharp, for a network with this input
   * @returns {Promise<Planes>} in [0, 255]
   */
  async fill(name, { image, hole }, detail) {
    const { ort, session } = await this.session(name);
    const sides = [image.height, image.width];
    const inputs = {
      image: new ort.Tensor("float32", image.data, [1, 3, ...sides]),
      hole: new ort.Tensor("float32", hole, [1, 1, ...sides]),
    };
    if (session.inputNames.includes("detail")) inputs.detail = new ort.Tensor("float32", [detail], []);
    const { filled } = await session.run(inputs);
    return { ...image, data: Float32Array.from(filled.data, (x) => (x + 1) * 127.5) };
  }

  /** The rows of the face detector's network. @param {Planes} pictures @returns {Promise<Float32Array>} */
  async detect({ height, width, data }) {
    const { ort, session } = await this.session("faces");
    const { rows } = await session.run({ pictures: new ort.Tensor("float32", data, [1, 3, height, width]) });
    return rows.data;
  }
}

async function hasGpu() {
  // The variant of onnxruntime-web for WebGPU needs promises in WebAssembly.
  if (!navigator.gpu || !("Suspending" in WebAssembly)) return false;
  try {
    return Boolean(await navigator.gpu.requestAdapter());
  } catch {
    return false;
  }
}
