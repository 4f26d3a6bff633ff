/**
 * Draw the operations of a mask on a canvas. The page does it on a small canvas for the screen, and a worker on one of
 * the photo's full size for the mask that goes up. The hole is what is opaque.
 */

import { dilate } from "./dilate.js";

/**
 * One step of a mask. Coordinates and lengths are pixels of the upright photo.
 *
 * @typedef {{id: number} & (
 *   {kind: "stroke", erase: boolean, size: number, points: number[]} |
 *   {kind: "rectangle", erase: boolean, points: number[]} |
 *   {kind: "lasso", erase: boolean, points: number[]} |
 *   {kind: "invert"} | {kind: "clear"} | {kind: "grow", by: number} |
 *   {kind: "bits", bits: Uint8Array, width: number, height: number}
 * )} Step `points` is x, y, x, y, ...; `bits` replaces the mask by one packed as in png.js
 */

/** @typedef {CanvasRenderingContext2D | OffscreenCanvasRenderingContext2D} Context */

export const COLOUR = "#f0257a";

/**
 * Draw steps one after the other.
 *
 * @param {Context} context
 * @param {Step[]} steps
 * @param {number} scale canvas pixels per pixel of the photo
 */
export function drawSteps(context, steps, scale) {
  for (const step of joined(steps)) drawStep(context, step, scale);
}

/**
 * Steps in which growing several times in a row is growing once, as far. Otherwise many small steps, each below one
 * pixel of a small canvas, would be lost there.
 *
 * @param {Step[]} steps
 * @returns {Step[]}
 */
function joined(steps) {
  /** @type {Step[]} */
  const out = [];
  for (const step of steps) {
    const last = out[out.length - 1];
    if (step.kind === "grow" && last?.kind === "grow") out[out.length - 1] = { ...last, by: last.by + step.by };
    else out.push(step);
  }
  return out;
}

/**
 * @param {Context} context
 * @param {Step} step
 * @param {number} scale
 */
export function drawStep(context, step, scale) {
  const { width, height } = context.canvas;
  if (step.kind === "stroke") drawStroke(context, step, 0, scale);
  else if (step.kind === "rectangle" || step.kind === "lasso") drawArea(context, step, scale);
  else if (step.kind === "clear") context.clearRect(0, 0, width, height);
  else if (step.kind === "invert") {
    // "xor" with an opaque colour leaves 1 - alpha.
    withState(context, "xor", 1, () => context.fillRect(0, 0, width, height));
  } else if (step.kind === "grow") {
    const mask = readMask(context);
    dilate(mask, width, height, step.by * scale);
    writeMask(context, mask);
  } else if (step.kind === "bits") drawBits(context, step);
}

/**
 * Draw a stroke from one of its points on.
 *
 * @param {Context} context
 * @param {{erase: boolean, size: number, points: number[]}} stroke
 * @param {number} from the index of the first point that is new
 * @param {number} scale
 */
export function drawStroke(context, stroke, from, scale) {
  const { points, size, erase } = stroke;
  withState(context, erase ? "destination-out" : "source-over", scale, () => {
    context.lineWidth = size;
    context.lineCap = context.lineJoin = "round";
    if (from === 0) {
      context.beginPath();
      context.arc(points[0], points[1], size / 2, 0, 2 * Math.PI);
      context.fill();
    }
    const first = Math.max(0, from - 1);
    if (points.length < 2 * first + 4) return;
    context.beginPath();
    context.moveTo(points[2 * first], points[2 * first + 1]);
    for (let i = 2 * first + 2; i < points.length; i += 2) context.lineTo(points[i], points[i + 1]);
    context.stroke();
  });
}

/**
 * @param {Context} context
 * @param {{kind: string, erase: boolean, points: number[]}} step
 * @param {number} scale
 */
function drawArea(context, step, scale) {
  withState(context, step.erase ? "destination-out" : "source-over", scale, () => {
    context.fill(areaPath(step));
  });
}

/**
 * The outline of a rectangle or a lasso.
 *
 * @param {{kind: string, points: number[]}} step
 * @returns {Path2D}
 */
export function areaPath({ kind, points }) {
  const path = new Path2D();
  if (kind === "rectangle") {
    // The rectangle's sides lie between pixels, so that it has no soft edge.
    const [x0, y0, x1, y1] = points.map(Math.round);
    path.rect(Math.min(x0, x1), Math.min(y0, y1), Math.abs(x1 - x0), Math.abs(y1 - y0));
    return path;
  }
  path.moveTo(points[0], points[1]);
  for (let i = 2; i < points.length; i += 2) path.lineTo(points[i], points[i + 1]);
  path.closePath();
  return path;
}

/**
 * @param {Context} context
 * @param {GlobalCompositeOperation} composite
 * @param {number} scale
 * @param {() => void} draw
 */
function withState(context, composite, scale, draw) {
  context.save();
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.globalCompositeOperation = composite;
  context.fillStyle = context.strokeStyle = COLOUR;
  draw();
  context.restore();
}

/**
 * The mask on a canvas as 0 and 1, cut at half of full opacity.
 *
 * @param {Context} context
 * @returns {Uint8Array}
 */
export function readMask(context) {
  const { width, height } = context.canvas;
  const { data } = context.getImageData(0, 0, width, height);
  const mask = new Uint8Array(width * height);
  for (let i = 0, at = 3; i < mask.length; i++, at += 4) mask[i] = data[at] >> 7;
  return mask;
}

/**
 * @param {Context} context
 * @param {Uint8Array} mask 0 and 1
 */
function writeMask(context, mask) {
  const { width, height } = context.canvas;
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const opaque = colourWord();
  for (let i = 0; i < mask.length; i++) if (mask[i]) pixels[i] = opaque;
  context.putImageData(image, 0, 0);
}

/**
 * Replace the mask by an imported one. On a smaller canvas, the nearest pixels are taken.
 *
 * @param {Context} context
 * @param {{bits: Uint8Array, width: number, height: number}} step
 */
function drawBits(context, { bits, width, height }) {
  const { width: columns, height: rows } = context.canvas;
  const stride = (width + 7) >> 3;
  const mask = new Uint8Array(columns * rows);
  for (let y = 0, at = 0; y < rows; y++) {
    const line = Math.floor(((y + 0.5) * height) / rows) * stride;
    for (let x = 0; x < columns; x++, at++) {
      const from = Math.floor(((x + 0.5) * width) / columns);
      mask[at] = (bits[line + (from >> 3)] >> (7 - (from & 7))) & 1;
    }
  }
  writeMask(context, mask);
}

/** COLOUR as a pixel of ImageData, in this machine's order of bytes. @returns {number} */
function colourWord() {
  const channel = (at) => parseInt(COLOUR.slice(at, at + 2), 16);
  return new Uint32Array(new Uint8ClampedArray([channel(1), channel(3), channel(5), 255]).buffer)[0];
}
