/** Mouse, pen and fingers on the stage: one draws (or moves the comparison's line), two fingers zoom and move. */

import { byId } from "./ui.js";

const WHEEL = 0.0015; // zoom a pixel of the wheel, as a power of e

/** @typedef {{x: number, y: number}} Point in CSS pixels of the stage */

export class Pointers {
  /**
   * @param {import("./view.js").View} view
   * @param {import("./tools.js").Tools} tools
   * @param {import("./compare.js").Compare} compare
   * @param {() => import("./photos.js").Photo | null} current
   */
  constructor(view, tools, compare, current) {
    this.view = view;
    this.tools = tools;
    this.compare = compare;
    this.current = current;
    this.canvas = byId("over");
    this.isSpaceDown = false;
    /** @type {Map<number, Point>} */
    this.down = new Map();
    /** @type {"" | "draw" | "pan" | "compare" | "pinch" | "over"} "over" waits until all fingers are up */
    this.action = "";
    /** @type {Point} */
    this.last = { x: 0, y: 0 };
    this.spread = 1;
    const listen = (name, handler) => this.canvas.addEventListener(name, handler);
    listen("pointerdown", (event) => this.press(event));
    listen("pointermove", (event) => this.move(event));
    listen("pointerup", (event) => this.lift(event));
    listen("pointercancel", (event) => this.lift(event, true));
    listen("pointerleave", () => this.hover(null));
    listen("blur", () => this.canvas.removeAttribute("data-pointer"));
    listen("contextmenu", (event) => event.preventDefault());
    this.canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  /** @param {MouseEvent} event @returns {Point} */
  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  /** @param {PointerEvent} event */
  press(event) {
    const photo = this.current();
    if (!photo || event.button > 1) return;
    event.preventDefault();
    this.canvas.toggleAttribute("data-pointer", true); // no ring around the focus while one draws
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.down.set(event.pointerId, this.place(event));
    if (this.down.size === 2) {
      this.tools.cancel();
      this.action = "pinch";
      this.hover(null);
      this.startPinch();
    } else if (this.down.size === 1) {
      this.last = this.place(event);
      if (event.button === 1 || this.isSpaceDown || this.tools.name === "hand") this.action = "pan";
      else if (photo.mode === "compare") {
        this.action = "compare";
        this.compare.moveTo(this.last.x);
      } else {
        this.action = "draw";
        this.tools.begin(this.last, event.altKey);
      }
      this.hover(event.pointerType === "touch" ? null : this.last);
    }
  }

  /** @param {PointerEvent} event */
  move(event) {
    const at = this.place(event);
    if (!this.down.has(event.pointerId)) {
      if (event.pointerType !== "touch") this.hover(at);
      return;
    }
    this.down.set(event.pointerId, at);
    if (this.action === "pinch") this.pinch();
    else if (this.action === "pan") {
      this.view.pan(at.x - this.last.x, at.y - this.last.y);
      this.last = at;
    } else if (this.action === "compare") this.compare.moveTo(at.x);
    else if (this.action === "draw") {
      const events = event.getCoalescedEvents?.() ?? [];
      if (event.pointerType !== "touch") this.tools.hover = at;
      this.tools.move(events.length ? events.map((part) => this.place(part)) : [at]);
    }
  }

  /** @param {PointerEvent} event @param {boolean} isCancelled */
  lift(event, isCancelled = false) {
    if (!this.down.delete(event.pointerId)) return;
    if (this.action === "draw") {
      if (isCancelled) this.tools.cancel();
      else this.tools.end();
    }
    this.action = this.down.size ? "over" : "";
  }

  startPinch() {
    const [a, b] = this.down.values();
    this.last = { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 };
    this.spread = Math.max(1, Math.hypot(a.x - b.x, a.y - b.y));
  }

  pinch() {
    const { last, spread } = this;
    this.startPinch();
    this.view.zoom(this.spread / spread, last.x, last.y);
    this.view.pan(this.last.x - last.x, this.last.y - last.y);
  }

  /** @param {WheelEvent} event */
  wheel(event) {
    event.preventDefault();
    const { x, y } = this.place(event);
    const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 32 : 1);
    // A pinch on a touchpad comes as a wheel with ctrlKey and small steps.
    const power = -pixels * WHEEL * (event.ctrlKey ? 6 : 1);
    this.view.zoom(Math.exp(Math.max(-0.7, Math.min(0.7, power))), x, y);
  }

  /** @param {Point | null} at */
  hover(at) {
    this.tools.hover = at;
    this.view.invalidate("over");
  }
}
