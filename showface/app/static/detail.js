/**
 * Sharp pixels for large photos. The copies on the screen are reduced, so when such a photo is zoomed in, the part of it
 * that is seen is decoded again at full size.
 */

/** @typedef {import("./view.js").View} View */
/** @typedef {import("./photos.js").Photo} Photo */
/** @typedef {{bitmap: ImageBitmap, of: import("./photos.js").Picture, left: number, top: number, width: number, height: number}} Tile in pixels of the photo */

const ENOUGH = 1.2; // a copy may be enlarged this much

export class Detail {
  /**
   * @param {View} view
   * @param {() => Photo | null} current
   */
  constructor(view, current) {
    this.view = view;
    this.current = current;
    this.number = 0;
    view.onSettle = () => this.update();
  }

  /** Decode what is seen now, if the copies are too coarse for it. */
  async update() {
    const { view } = this;
    const photo = this.current();
    const number = ++this.number;
    if (!photo?.picture || photo.picture !== view.before) return;
    const isCoarse = view.scale * view.ratio > ENOUGH * photo.picture.scale && photo.picture.scale < 1;
    if (!isCoarse) {
      view.setTile("before", null);
      view.setTile("after", null);
      return;
    }
    await this.load("before", photo.file, photo.picture, number);
    if (photo.result?.picture && photo.mode === "compare") {
      await this.load("after", photo.result.blob, photo.result.picture, number);
    }
  }

  /**
   * @param {"before" | "after"} name
   * @param {Blob} blob
   * @param {import("./photos.js").Picture} picture
   * @param {number} number of the update, which a newer one makes void
   */
  async load(name, blob, picture, number) {
    const { view } = this;
    const from = view.toPhoto(0, 0), to = view.toPhoto(view.width, view.height);
    const left = Math.max(0, Math.floor(from.x)), right = Math.min(picture.width, Math.ceil(to.x));
    const top = Math.max(0, Math.floor(from.y)), bottom = Math.min(picture.height, Math.ceil(to.y));
    const width = right - left, height = bottom - top;
    if (number !== this.number || width < 1 || height < 1) return;
    const known = view.tiles[name];
    const pixels = Math.min(1, view.scale * view.ratio); // of the tile, per pixel of the photo
    const isKnown =
      known?.of === picture && known.left <= left && known.top <= top && known.left + known.width >= right &&
      known.top + known.height >= bottom && known.bitmap.width >= 0.99 * known.width * pixels;
    if (isKnown) return;
    try {
      const bitmap = await createImageBitmap(blob, left, top, width, height, {
        imageOrientation: "from-image",
        resizeWidth: Math.max(1, Math.round(width * pixels)),
        resizeHeight: Math.max(1, Math.round(height * pixels)),
        resizeQuality: "high",
      });
      if (number === this.number) view.setTile(name, { bitmap, of: picture, left, top, width, height });
      else bitmap.close();
    } catch {
      // The copy on the screen stays.
    }
  }
}
