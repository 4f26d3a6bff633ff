/** Where the photo lies on the stage, and the four canvases that show it: before, after, mask, and marks over them. */

import { byId } from "./ui.js";

/** @typedef {import("./photos.js").Picture} Picture */
/** @typedef {"before" | "after" | "mask" | "over"} LayerName */

const LAYERS = /** @type {LayerName[]} */ (["before", "after", "mask", "over"]);
const MAX_SCALE = 24; // CSS pixels per pixel of the photo
const MARGIN = 24; // CSS pixels around a photo that fits
const VISIBLE = 60; // CSS pixels of the photo that can't be moved off the stage
const PIXELS = 5; // CSS pixels of a pixel of an image that is shown as a square, without smoothing
const SETTLED = 160; // milliseconds after which a picture is drawn with the best quality

export class View {
  constructor() {
    this.stage = byId("stage");
    /** @type {Record<LayerName, CanvasRenderingContext2D>} */
    this.layers = Object.fromEntries(LAYERS.map((name) => [name, byId(name).getContext("2d")]));
    this.scale = 1; // CSS pixels per pixel of the photo
    this.x = 0; // CSS pixels from the stage's corner to the photo's
    this.y = 0;
    this.isFitted = true;
    this.stale = new Set();
    this.frame = 0;
    this.isMoving = false;
    this.settle = 0;
    /** @type {Picture | null} */
    this.before = null;
    /** @type {Picture | null} */
    this.after = null;
    /** @type {HTMLCanvasElement | null} */
    this.mask = null;
    /** Sharper parts of `before` and `after`. @type {Record<string, import("./detail.js").Tile | null>} */
    this.tiles = { before: null, after: null };
    /** Called when the photo has come to rest. */
    this.onSettle = () => {};
    /** Draws the marks, in CSS pixels of the stage. @type {(context: CanvasRenderingContext2D) => void} */
    this.drawOver = () => {};
    /** Called when the photo moved. */
    this.onMove = () => {};
    new ResizeObserver(() => this.resize()).observe(this.stage);
    this.resize();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    this.ratio = Math.min(2, window.devicePixelRatio || 1);
    const middle = this.toPhoto((this.width ?? width) / 2, (this.height ?? height) / 2);
    this.width = width;
    this.height = height;
    for (const { canvas } of Object.values(this.layers)) {
      canvas.width = Math.max(1, Math.round(width * this.ratio));
      canvas.height = Math.max(1, Math.round(height * this.ratio));
    }
    if (!this.before) return;
    if (this.isFitted) this.fit();
    else {
      this.x = width / 2 - middle.x * this.scale;
      this.y = height / 2 - middle.y * this.scale;
      this.moved();
    }
  }

  /**
   * Show a photo. A photo of another size is fitted to the stage.
   *
   * @param {Picture | null} before
   * @param {Picture | null} after
   * @param {HTMLCanvasElement | null} mask
   * @param {boolean} keep keep the zoom
   */
  show(before, after, mask, keep) {
    this.before = before;
    this.after = after;
    this.mask = mask;
    if (before && !keep) this.fit();
    else this.invalidate(...LAYERS);
  }

  /** @param {"before" | "after"} name @param {import("./detail.js").Tile | null} tile */
  setTile(name, tile) {
    if (tile === this.tiles[name]) return;
    this.tiles[name]?.bitmap.close();
    this.tiles[name] = tile;
    this.invalidate(name);
  }

  fitScale() {
    const { width, height } = this.before;
    const room = Math.min(this.width, this.height) < 420 ? MARGIN / 2 : MARGIN;
    const above = 2 * room + (this.height < 360 ? 0 : 84); // for the switch above and the zoom buttons below
    return Math.min((this.width - 2 * room) / width, (this.height - above) / height, MAX_SCALE / 2);
  }

  fit() {
    if (!this.before) return;
    this.scale = Math.max(0.001, this.fitScale());
    this.x = (this.width - this.before.width * this.scale) / 2;
    this.y = (this.height - this.before.height * this.scale) / 2;
    this.moved();
    this.isFitted = true;
  }

  /**
   * @param {number} factor
   * @param {number} x the point of the stage that stays where it is; by default the middle
   * @param {number} y
   */
  zoom(factor, x = this.width / 2, y = this.height / 2) {
    if (!this.before) return;
    const lowest = Math.min(1, this.fitScale()) / 2;
    const scale = Math.min(MAX_SCALE, Math.max(lowest, this.scale * factor));
    this.x = x - ((x - this.x) * scale) / this.scale;
    this.y = y - ((y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.moved();
  }

  /** @param {number} dx @param {number} dy */
  pan(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.moved();
  }

  moved() {
    if (!this.before) return;
    this.isFitted = false;
    const { width, height } = this.before;
    this.x = Math.min(this.width - VISIBLE, Math.max(VISIBLE - width * this.scale, this.x));
    this.y = Math.min(this.height - VISIBLE, Math.max(VISIBLE - height * this.scale, this.y));
    this.isMoving = true;
    clearTimeout(this.settle);
    this.settle = window.setTimeout(() => {
      this.isMoving = false;
      this.invalidate("before", "after");
      this.onSettle();
    }, SETTLED);
    this.invalidate(...LAYERS);
    this.onMove();
  }

  /**
   * From CSS pixels of the stage to pixels of the photo.
   *
   * @param {number} x
   * @param {number} y
   */
  toPhoto(x, y) {
    return { x: (x - this.x) / this.scale, y: (y - this.y) / this.scale };
  }

  /** Draw layers again in the next frame. @param {...LayerName} names */
  invalidate(...names) {
    for (const name of names) this.stale.add(name);
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const stale = [...this.stale];
      this.stale.clear();
      for (const name of stale) this.draw(name);
    });
  }

  /** @param {LayerName} name */
  draw(name) {
    const context = this.layers[name];
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, context.canvas.width, context.canvas.height);
    if (!this.before) return;
    if (name === "over") {
      context.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      this.drawOver(context);
      return;
    }
    const image = name === "mask" ? this.mask : this[name]?.canvas;
    if (image) this.drawImage(context, image, name);
    const tile = this.tiles[name];
    if (!tile || tile.of !== this[name]) return;
    const scale = this.ratio * this.scale;
    context.setTransform(scale, 0, 0, scale, this.ratio * this.x, this.ratio * this.y);
    context.imageSmoothingEnabled = this.scale < PIXELS;
    context.drawImage(tile.bitmap, tile.left, tile.top, tile.width, tile.height);
  }

  /**
   * Draw the part of an image that is on the stage.
   *
   * @param {CanvasRenderingContext2D} context
   * @param {HTMLCanvasElement} image
   * @param {LayerName} name
   */
  drawImage(context, image, name) {
    const { width, height } = this.before;
    const across = image.width / width, down = image.height / height; // pixels of the image per pixel of the photo
    const from = this.toPhoto(0, 0), to = this.toPhoto(this.width, this.height);
    const left = Math.max(0, Math.floor(from.x * across)), right = Math.min(image.width, Math.ceil(to.x * across));
    const top = Math.max(0, Math.floor(from.y * down)), bottom = Math.min(image.height, Math.ceil(to.y * down));
    if (right <= left || bottom <= top) return;
    context.setTransform(this.ratio, 0, 0, this.ratio, this.ratio * this.x, this.ratio * this.y);
    context.imageSmoothingEnabled = this.scale / across < PIXELS;
    context.imageSmoothingQuality = this.isMoving || name === "mask" ? "low" : "high";
    const stepX = this.scale / across, stepY = this.scale / down;
    context.drawImage(
      image, left, top, right - left, bottom - top,
      left * stepX, top * stepY, (right - left) * stepX, (bottom - top) * stepY,
    );
  }
}
