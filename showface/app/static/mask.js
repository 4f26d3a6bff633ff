/** The mask of one photo: its steps, undo and redo, the canvas for the screen, and the PNG of full size. */

import { packBits } from "./png.js";
import { drawStep, drawSteps, drawStroke, readMask } from "./raster.js";

/** @typedef {import("./raster.js").Step} Step */

const SNAPSHOT_EVERY = 12; // steps
const MAX_SNAPSHOTS = 5;
let lastId = 0;
let lastNumber = 0;

export class Mask {
  /**
   * @param {number} width of the photo
   * @param {number} height of the photo
   * @param {number} scale pixels of the canvas per pixel of the photo
   */
  constructor(width, height, scale) {
    this.number = ++lastNumber;
    this.width = width;
    this.height = height;
    this.scale = scale;
    /** @type {Step[]} */
    this.steps = [];
    /** How many of the steps are done; the rest can be redone. */
    this.done = 0;
    /** @type {{done: number, canvas: HTMLCanvasElement}[]} */
    this.snapshots = [];
    /** @type {CanvasRenderingContext2D | null} */
    this.context = null;
    /** @type {{key: number, blob: Blob, count: number} | null} */
    this.full = null;
  }

  /** Names the state: equal keys mean equal masks. @returns {number} */
  get key() {
    return this.done ? this.steps[this.done - 1].id : 0;
  }

  get canUndo() {
    return this.done > 0;
  }

  get canRedo() {
    return this.done < this.steps.length;
  }

  /** Whether nothing was ever painted since the last "clear". @returns {boolean} */
  get isBlank() {
    return !this.done || this.steps[this.done - 1].kind === "clear";
  }

  /** Whether nothing was changed since it was imported. @returns {boolean} */
  get isFromFile() {
    return this.done > 0 && this.steps[this.done - 1].kind === "bits";
  }

  /** The canvas for the screen. @returns {HTMLCanvasElement} */
  get canvas() {
    if (!this.context) {
      const canvas = document.createElement("canvas");
      canvas.width = Math.max(1, Math.round(this.width * this.scale));
      canvas.height = Math.max(1, Math.round(this.height * this.scale));
      this.context = canvas.getContext("2d");
      this.repaint();
    }
    return this.context.canvas;
  }

  /** Give back the memory for the screen. The steps stay, and the canvas is drawn again when it is asked for. */
  release() {
    this.context = null;
    this.snapshots = [];
  }

  /**
   * Draw a part of a stroke that is not finished yet.
   *
   * @param {{erase: boolean, size: number, points: number[]}} stroke
   * @param {number} from the index of the first new point
   */
  preview(stroke, from) {
    void this.canvas;
    drawStroke(this.context, stroke, from, this.scale);
  }

  /**
   * Do a new step. What was undone before is forgotten.
   *
   * @param {Omit<Step, "id">} step
   * @param {boolean} isDrawn whether `preview` has drawn it already
   */
  add(step, isDrawn = false) {
    void this.canvas;
    const previous = this.steps[this.done - 1];
    this.steps.length = this.done;
    this.snapshots = this.snapshots.filter((snapshot) => snapshot.done <= this.done);
    this.steps.push(/** @type {Step} */ ({ ...step, id: ++lastId }));
    this.done++;
    if (step.kind === "grow" && previous?.kind === "grow") this.repaint();
    else if (!isDrawn) drawStep(this.context, this.steps[this.done - 1], this.scale);
    const isSlow = step.kind === "bits" || step.kind === "grow";
    const latest = this.snapshots[this.snapshots.length - 1]?.done ?? 0;
    if (isSlow || this.done - latest >= SNAPSHOT_EVERY) this.keepSnapshot();
  }

  undo() {
    if (!this.canUndo) return;
    this.done--;
    this.repaint();
  }

  redo() {
    if (!this.canRedo) return;
    this.done++;
    this.repaint();
  }

  /** Draw the canvas again, from the nearest snapshot on. */
  repaint() {
    if (!this.context) return;
    const { width, height } = this.context.canvas;
    // Growing twice is joined into one step, so a snapshot between the two is of no use.
    const isUsable = ({ done }) =>
      done <= this.done && !(this.steps[done]?.kind === "grow" && this.steps[done - 1]?.kind === "grow" && done < this.done);
    const snapshot = this.snapshots.filter(isUsable).pop();
    this.context.clearRect(0, 0, width, height);
    if (snapshot) this.context.drawImage(snapshot.canvas, 0, 0);
    drawSteps(this.context, this.steps.slice(snapshot?.done ?? 0, this.done), this.scale);
  }

  /** The hole's share of the photo, 0 to 1, as far as the canvas for the screen tells. @returns {number} */
  share() {
    if (this.isBlank) return 0;
    if (this.full?.key === this.key) return this.full.count / (this.width * this.height);
    const small = document.createElement("canvas");
    const factor = Math.min(1, 512 / Math.max(this.canvas.width, this.canvas.height));
    small.width = Math.max(1, Math.round(this.canvas.width * factor));
    small.height = Math.max(1, Math.round(this.canvas.height * factor));
    const context = small.getContext("2d", { willReadFrequently: true });
    context.drawImage(this.canvas, 0, 0, small.width, small.height);
    const mask = readMask(context);
    return mask.reduce((sum, value) => sum + value, 0) / mask.length;
  }

  /**
   * The mask at the photo's full size.
   *
   * @returns {Promise<{key: number, blob: Blob, count: number}>} a PNG, white = hole, and the number of white pixels
   */
  async toPng() {
    const key = this.key;
    if (this.full?.key === key) return this.full;
    const steps = this.steps.slice(0, this.done);
    const { blob, count } = await inWorker({ width: this.width, height: this.height, steps });
    const full = { key, blob, count };
    if (this.key === key) this.full = full;
    return full;
  }

  keepSnapshot() {
    const canvas = document.createElement("canvas");
    canvas.width = this.canvas.width;
    canvas.height = this.canvas.height;
    canvas.getContext("2d").drawImage(this.canvas, 0, 0);
    this.snapshots.push({ done: this.done, canvas });
    if (this.snapshots.length > MAX_SNAPSHOTS) this.snapshots.shift();
  }
}

/**
 * Read a mask file for a photo of this size: white is the hole, grey is cut at one half, transparent is known.
 *
 * @param {Blob} file
 * @param {number} width
 * @param {number} height
 * @returns {Promise<Omit<Step, "id">>}
 */
export async function readMaskFile(file, width, height) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    throw new Error("This file is not an image that the browser can read.");
  }
  if (bitmap.width !== width || bitmap.height !== height) {
    throw new Error(
      `The mask is ${bitmap.width} × ${bitmap.height} pixels, and the photo ${width} × ${height}: ` +
        "a mask needs the photo's size.",
    );
  }
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const mask = new Uint8Array(width * height);
  for (let i = 0, at = 0; i < mask.length; i++, at += 4) {
    // The weights of luma as Pillow has them (ITU-R 601).
    mask[i] = data[at] * 299 + data[at + 1] * 587 + data[at + 2] * 114 >= 127500 ? 1 : 0;
  }
  return { kind: "bits", bits: packBits(mask, width, height), width, height };
}

/** @type {Worker | null} */
let worker = null;
/** @type {Map<number, {resolve: (value: any) => void, reject: (error: Error) => void}>} */
const waiting = new Map();
let lastJob = 0;

/**
 * @param {{width: number, height: number, steps: Step[]}} job
 * @returns {Promise<{blob: Blob, count: number}>}
 */
function inWorker(job) {
  if (!worker) {
    worker = new Worker(new URL("mask-worker.js", import.meta.url), { type: "module" });
    worker.onmessage = ({ data }) => {
      const { resolve, reject } = waiting.get(data.id);
      waiting.delete(data.id);
      if (data.error) reject(new Error(`The mask could not be drawn at the photo's size: ${data.error}`));
      else resolve(data);
    };
    worker.onerror = () => {
      for (const { reject } of waiting.values()) reject(new Error("The mask could not be drawn at the photo's size."));
      waiting.clear();
      worker = null;
    };
  }
  const id = ++lastJob;
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject });
    worker.postMessage({ ...job, id });
  });
}
