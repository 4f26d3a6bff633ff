/** The row of thumbnails of the photos that are open. */

import { byId } from "./ui.js";

/** @typedef {import("./photos.js").Photo} Photo */

const STATES = { running: "being filled", done: "filled", masked: "has a mask", new: "not filled yet" };

export class Strip {
  /**
   * @param {(photo: Photo) => void} onChoose
   * @param {(photo: Photo) => void} onRemove
   */
  constructor(onChoose, onRemove) {
    this.list = byId("thumbs");
    this.onChoose = onChoose;
    this.onRemove = onRemove;
    /** @type {Map<Photo, {item: HTMLElement, button: HTMLElement}>} */
    this.entries = new Map();
  }

  /**
   * Show these photos.
   *
   * @param {Photo[]} photos
   * @param {Photo | null} current
   */
  update(photos, current) {
    for (const [photo, { item }] of this.entries) {
      if (photos.includes(photo)) continue;
      item.remove();
      this.entries.delete(photo);
    }
    photos.forEach((photo, at) => {
      const entry = this.entries.get(photo) ?? this.create(photo);
      if (this.list.children[at] !== entry.item) this.list.insertBefore(entry.item, this.list.children[at] ?? null);
      const state = photo.run ? "running" : photo.result ? "done" : photo.mask.isBlank ? "new" : "masked";
      entry.item.dataset.state = state;
      entry.button.setAttribute("aria-label", `${photo.file.name}, ${STATES[state]}`);
      entry.button.title = photo.file.name;
      if (photo === current) entry.button.setAttribute("aria-current", "true");
      else entry.button.removeAttribute("aria-current");
    });
    document.body.toggleAttribute("data-many", photos.length > 1);
  }

  /** @param {Photo} photo */
  create(photo) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "thumb";
    photo.thumb.setAttribute("aria-hidden", "true");
    button.append(photo.thumb);
    button.addEventListener("click", () => this.onChoose(photo));
    const close = document.createElement("button");
    close.type = "button";
    close.className = "thumb-close";
    close.textContent = "×";
    close.setAttribute("aria-label", `Close ${photo.file.name}`);
    close.title = "Close";
    close.addEventListener("click", () => this.onRemove(photo));
    item.append(button, close);
    const entry = { item, button };
    this.entries.set(photo, entry);
    return entry;
  }
}
