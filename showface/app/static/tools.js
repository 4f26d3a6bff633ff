/** The tools that draw the mask, and the marks over the photo: brush ring, unfinished areas, outlined faces. */

import { areaPath } from "./raster.js";
import { byId } from "./ui.js";

/** @typedef {import("./photos.js").Photo} Photo */
/** @typedef {"brush" | "eraser" | "rectangle" | "lasso" | "hand"} ToolName */

const SMALLEST = 0.001, LARGEST = 0.3; // of the brush, as fractions of the photo's longer side
const STEP = 4; // of the size slider, for a key

export class Tools {
  /**
   * @param {import("./view.js").View} view
   * @param {() => Photo | null} current
   * @param {() => void} onChange called when the mask or the tool changed
   */
  constructor(view, current, onChange) {
    this.view = view;
    this.current = current;
    this.onChange = onChange;
    /** @type {ToolName} */
    this.name = "brush";
    /** The unfinished step. @type {any} */
    this.step = null;
    /** Where the pointer hovers, in CSS pixels of the stage. @type {{x: number, y: number} | null} */
    this.hover = null;
    view.drawOver = (context) => this.drawMarks(context);
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.addEventListener("click", () => this.choose(/** @type {ToolName} */ (button.dataset.tool)));
    }
    byId("size").addEventListener("input", () => this.sizeChanged());
  }

  /** @param {ToolName} name */
  choose(name) {
    this.cancel();
    this.name = name;
    for (const button of document.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-pressed", String(button.dataset.tool === name));
    }
    byId("over").dataset.cursor = name;
    this.onChange();
    this.view.invalidate("over");
  }

  /** The brush's diameter in pixels of the photo. @returns {number} */
  get size() {
    const photo = this.current();
    if (!photo) return 1;
    const fraction = SMALLEST * (LARGEST / SMALLEST) ** (Number(byId("size").value) / 100);
    return Math.max(1, Math.round(Math.max(photo.width, photo.height) * fraction));
  }

  /** @param {-1 | 1} direction */
  changeSize(direction) {
    const slider = byId("size");
    slider.value = String(Number(slider.value) + direction * STEP);
    this.sizeChanged();
  }

  sizeChanged() {
    const text = `${this.size} px`;
    byId("size-text").textContent = text;
    byId("size").setAttribute("aria-valuetext", text);
    this.view.invalidate("over");
  }

  /**
   * Begin a step at a point of the stage.
   *
   * @param {{x: number, y: number}} at
   * @param {boolean} takesAway whether it erases, whatever the tool is
   */
  begin(at, takesAway) {
    const { x, y } = this.view.toPhoto(at.x, at.y);
    const erase = takesAway || this.name === "eraser";
    const mask = this.current().mask;
    if (this.name === "rectangle") this.step = { kind: "rectangle", erase, points: [x, y, x, y] };
    else if (this.name === "lasso") this.step = { kind: "lasso", erase, points: [x, y] };
    else {
      this.step = { kind: "stroke", erase, size: this.size, points: [x, y] };
      mask.preview(this.step, 0);
    }
    this.view.invalidate("mask", "over");
  }

  /** @param {{x: number, y: number}[]} places the points since the last call, on the stage */
  move(places) {
    if (!this.step) return;
    const { points, kind } = this.step;
    const known = points.length / 2;
    for (const place of places) {
      const { x, y } = this.view.toPhoto(place.x, place.y);
      if (kind === "rectangle") points.splice(2, 2, x, y);
      else if (Math.hypot(x - points.at(-2), y - points.at(-1)) * this.view.scale >= 0.5) points.push(x, y);
    }
    if (kind === "stroke") {
      this.current().mask.preview(this.step, known);
      this.view.invalidate("mask");
    }
    this.view.invalidate("over");
  }

  end() {
    const step = this.step;
    this.step = null;
    if (!step) return;
    const isStroke = step.kind === "stroke";
    if (isStroke || hasArea(step)) this.current().mask.add(step, isStroke);
    this.view.invalidate("mask", "over");
    this.onChange();
  }

  /** Forget the unfinished step. @returns {boolean} whether there was one */
  cancel() {
    if (!this.step) return false;
    this.step = null;
    this.current()?.mask.repaint();
    this.view.invalidate("mask", "over");
    return true;
  }

  /** @param {CanvasRenderingContext2D} context in CSS pixels of the stage */
  drawMarks(context) {
    const photo = this.current();
    if (!photo || photo.mode === "compare") return;
    const { scale, x, y } = this.view;
    if (photo.faces && byId("faces-show").checked) {
      for (const { box: [left, top, right, bottom] } of photo.faces) {
        context.beginPath();
        const sides = [(right - left) * scale, (bottom - top) * scale];
        context.roundRect(x + left * scale, y + top * scale, sides[0], sides[1], Math.min(10, Math.min(...sides) / 6));
        outline(context, "#ffffff", 1.5);
      }
    }
    if (this.step && this.step.kind !== "stroke") {
      const path = new Path2D();
      path.addPath(areaPath(this.step), new DOMMatrix([scale, 0, 0, scale, x, y]));
      context.fillStyle = this.step.erase ? "rgb(255 255 255 / 35%)" : "rgb(240 37 122 / 35%)";
      context.fill(path);
      outline(context, "#ffffff", 1.5, path);
    }
    const isRound = this.name === "brush" || this.name === "eraser";
    if (this.hover && isRound) {
      context.beginPath();
      context.arc(this.hover.x, this.hover.y, Math.max(1.5, (this.size * scale) / 2), 0, 2 * Math.PI);
      outline(context, "#ffffff", 1.5);
    }
  }
}

/** @param {{kind: string, points: number[]}} step @returns {boolean} */
function hasArea({ kind, points }) {
  if (kind === "lasso") return points.length >= 6;
  const [x0, y0, x1, y1] = points.map(Math.round);
  return x0 !== x1 && y0 !== y1;
}

/**
 * A light line with a dark rim, which is seen on any photo.
 *
 * @param {CanvasRenderingContext2D} context
 * @param {string} colour
 * @param {number} width
 * @param {Path2D} [path] by default the context's own path
 */
function outline(context, colour, width, path) {
  const stroke = () => (path ? context.stroke(path) : context.stroke());
  context.strokeStyle = "rgb(0 0 0 / 55%)";
  context.lineWidth = width + 2;
  stroke();
  context.strokeStyle = colour;
  context.lineWidth = width;
  stroke();
}
