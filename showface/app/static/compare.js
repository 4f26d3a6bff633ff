/** Before and after, with a line between them that is dragged or moved by the arrow keys. */

import { byId } from "./ui.js";

export class Compare {
  /** @param {import("./view.js").View} view */
  constructor(view) {
    this.view = view;
    this.box = byId("compare");
    this.slider = byId("split");
    this.handle = byId("handle");
    /** Where the line lies, as a fraction of the photo's width. */
    this.split = 0.5;
    this.slider.addEventListener("input", () => this.followSlider());
  }

  followSlider() {
    this.split = Number(this.slider.value) / 100;
    this.place();
  }

  /** Move the line as a key moves the slider. @param {-1 | 1} direction */
  step(direction) {
    this.slider.value = String(Number(this.slider.value) + direction);
    this.followSlider();
  }

  /** @returns {boolean} */
  get isShown() {
    return !this.box.hidden;
  }

  /** @param {boolean} isShown */
  show(isShown) {
    this.box.hidden = !isShown;
    byId("after").hidden = !isShown;
    byId("mask").hidden = isShown;
    this.place();
  }

  /** @param {number} x of the line, in CSS pixels of the stage */
  moveTo(x) {
    const { view } = this;
    if (!view.before) return;
    this.split = Math.min(1, Math.max(0, (x - view.x) / (view.before.width * view.scale)));
    this.slider.value = String(100 * this.split);
    this.place();
  }

  /** Put the line, its box and the upper picture where they belong. Called again when the photo moves. */
  place() {
    const { view } = this;
    if (!view.before || !this.isShown) return;
    const width = view.before.width * view.scale, height = view.before.height * view.scale;
    const left = Math.max(0, view.x), right = Math.min(view.width, view.x + width);
    const top = Math.max(0, view.y), bottom = Math.min(view.height, view.y + height);
    const line = Math.min(right, Math.max(left, view.x + this.split * width));
    Object.assign(this.box.style, {
      left: `${left}px`,
      top: `${top}px`,
      width: `${right - left}px`,
      height: `${bottom - top}px`,
    });
    this.handle.style.left = `${line - left}px`;
    byId("after").style.clipPath = `inset(0 0 0 ${line}px)`;
    this.slider.setAttribute("aria-valuetext", `${Math.round(100 * this.split)}% before`);
  }
}
