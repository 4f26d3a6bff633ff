/** The photos that are open. Each has its own mask, history and result. */

import { Mask } from "./mask.js";

export const LONGEST = 2048; // pixels of the longer side of the copy on the screen
const MAX_PIXELS = 200e6;
const KEPT = 3; // so many photos keep their decoded copies; the others are decoded again when they are chosen
const TYPES = { "image/jpeg": "JPEG", "image/png": "PNG", "image/webp": "WebP", "image/avif": "AVIF", "image/gif": "GIF", "image/bmp": "BMP" };

/** @typedef {{canvas: HTMLCanvasElement, width: number, height: number, scale: number}} Picture a copy for the screen */
/** @typedef {{isDone: boolean, before: Download | null}} Download whether a result was downloaded, and the one it was made from */
/** @typedef {import("./engine.js").Answer & {picture: Picture | null, mask: Blob, maskKey: number, download: Download, model: string, detail: number | null, usedFaces: boolean, same: import("./engine.js").Answer | null}} Result */

export class Photo {
  /**
   * @param {File} file
   * @param {Picture} picture
   */
  constructor(file, picture) {
    this.file = file;
    this.width = picture.width;
    this.height = picture.height;
    /** @type {Picture | null} */
    this.picture = picture;
    this.mask = new Mask(picture.width, picture.height, picture.scale);
    this.thumb = thumbnail(picture);
    /** @type {import("./engine.js").Face[] | null} null until they have been looked for */
    this.faces = null;
    this.facesError = "";
    /** The search for faces that goes on. @type {AbortController | null} */
    this.search = null;
    /** @type {Result | null} */
    this.result = null;
    /** @type {{controller: AbortController, stage: string, fraction: number, began: number} | null} */
    this.run = null;
    /** @type {"edit" | "compare"} */
    this.mode = "edit";
    /** The key of the mask that was exported. @type {number | null} */
    this.exported = null;
    /** Of the result that this photo is, after "Go on from the result". @type {Download | null} */
    this.download = null;
  }

  /** Whether it has a mask or a result that was not downloaded, so that it would be lost. @returns {boolean} */
  get isUnsaved() {
    const { mask, result } = this;
    const isUsed = result?.download.isDone && result.maskKey === mask.key;
    const isMaskLost = !mask.isBlank && !mask.isFromFile && !isUsed && mask.key !== this.exported;
    return isMaskLost || [this.download, result?.download].some((download) => download?.isDone === false);
  }

  /** Note that the result was downloaded, and with it what earlier results had. */
  noteDownload() {
    for (let download = this.result.download; download; download = download.before) download.isDone = true;
  }

  /** "JPEG" and so on, or "" for a format without a name. @returns {string} */
  get format() {
    return TYPES[this.file.type] ?? "";
  }

  /** The file's name without its ending. @returns {string} */
  get stem() {
    return this.file.name.replace(/\.[^.]*$/, "") || "photo";
  }

  /** Decode what `release` gave up. */
  async prepare() {
    this.picture ??= await decode(this.file);
    if (this.result) this.result.picture ??= await decode(this.result.blob);
  }

  /** Stop the search for faces. It begins again when the photo is shown again. */
  stopSearch() {
    this.search?.abort();
    this.search = null;
  }

  release() {
    this.picture = null;
    if (this.result) this.result.picture = null;
    this.mask.release();
  }
}

/**
 * @param {File} file
 * @returns {Promise<Photo>}
 */
export async function openPhoto(file) {
  return new Photo(file, await decode(file));
}

/**
 * Decode an image upright, and reduce it for the screen.
 *
 * @param {Blob} blob
 * @returns {Promise<Picture>}
 */
export async function decode(blob) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { imageOrientation: "from-image" });
  } catch {
    const name = blob instanceof File ? blob.name : "this image";
    throw new Error(`This browser can't show ${name}. JPEG, PNG and WebP always work.`);
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    bitmap.close();
    throw new Error(`The photo has ${Math.round((width * height) / 1e6)} million pixels; at most 200 million are read.`);
  }
  const scale = Math.min(1, LONGEST / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  return { canvas, width, height, scale };
}

/**
 * A small square picture from the middle of a photo.
 *
 * @param {Picture} picture
 * @returns {HTMLCanvasElement}
 */
function thumbnail({ canvas }) {
  const side = Math.min(canvas.width, canvas.height);
  const small = document.createElement("canvas");
  small.width = small.height = 128;
  const context = small.getContext("2d");
  context.imageSmoothingQuality = "high";
  // Faces are rather in the upper part of a tall photo.
  const top = (canvas.height - side) / 3;
  context.drawImage(canvas, (canvas.width - side) / 2, top, side, side, 0, 0, 128, 128);
  return small;
}

/** The photos in a row, and which one is shown. */
export class Photos {
  constructor() {
    /** @type {Photo[]} */
    this.all = [];
    /** @type {Photo | null} */
    this.current = null;
    /** The one that is being prepared to be shown, or is shown. @type {Photo | null} */
    this.wanted = null;
    /** @type {Photo[]} the ones with decoded copies, the last used one first */
    this.recent = [];
  }

  /**
   * @param {Photo} photo
   * @param {Photo | null} after the photo that it comes after; by default the last
   */
  add(photo, after = null) {
    const at = after ? this.all.indexOf(after) + 1 : this.all.length;
    this.all.splice(at, 0, photo);
    this.recent.push(photo);
    this.trim();
  }

  /**
   * @param {Photo} photo
   * @param {() => void} onLeave called just before the switch, while the photo shown until then is still the current one
   * @returns {Promise<boolean>} false if another one was chosen meanwhile
   */
  async choose(photo, onLeave) {
    this.wanted = photo;
    await photo.prepare();
    if (this.wanted !== photo || !this.all.includes(photo)) return false;
    onLeave();
    if (this.current !== photo) this.current?.stopSearch();
    this.current = photo;
    this.recent = [photo, ...this.recent.filter((other) => other !== photo)];
    this.trim();
    return true;
  }

  /**
   * Close a photo.
   *
   * @param {Photo} photo
   * @returns {Photo | null} the one to show next, if the photo was shown
   */
  remove(photo) {
    photo.run?.controller.abort();
    photo.stopSearch();
    const at = this.all.indexOf(photo);
    this.all.splice(at, 1);
    this.recent = this.recent.filter((other) => other !== photo);
    if (this.current !== photo) return null;
    this.current = null;
    return this.all[Math.min(at, this.all.length - 1)] ?? null;
  }

  trim() {
    for (const photo of this.recent.splice(KEPT)) photo.release();
  }
}
