/** Square crops of a photo, which may be turned. The same as showface/crops.py. */

import { planes } from "./fill.js";
import { cut, reduce, roundHalfEven } from "./image.js";
import { averageBlocks, bicubicAt, bilinearAt, toPlanes } from "./sampling.js";

/** @typedef {import("./image.js").Picture} Picture */
/** @typedef {import("./fill.js").Planes} Planes */
/** @typedef {{width: number, height: number, data: Uint8Array}} Hole 1 = fill this pixel */
/** @typedef {{image: Planes, hole: Float32Array}} View image in [-1, 1] */

const RAMP = 0.12; // width of the border in which a crop's weight falls to zero, as a fraction of its side
const THIN = 4; // a hole is thin if no square with this fraction of its side fits into it
const KNOWN = 0.999; // a resampled pixel is known if no part of it is in the hole, up to rounding
const TEMPLATE = [[0.3775, 0.4744], [0.6226, 0.4701], [0.5062, 0.618], [0.3948, 0.7231], [0.6082, 0.7226]];
const CORNERS = [[0, 0], [1, 0], [0, 1], [1, 1]];

export class Crop {
  /** A square with this upper left corner; (dx, dy) leads to the upper right one. In pixels of the photo. */
  constructor(x, y, dx, dy, isFace = false) {
    Object.assign(this, { x, y, dx, dy, isFace });
    this.side = Math.hypot(dx, dy);
    this.square = dx * dx + dy * dy;
  }

  /** Equal crops have equal keys. */
  get key() {
    return [this.x, this.y, this.dx, this.dy].join(" ");
  }

  toPhoto(u, v) {
    return [this.x + u * this.dx - v * this.dy, this.y + u * this.dy + v * this.dx];
  }

  toUnit(px, py) {
    const x = px - this.x, y = py - this.y;
    return [(x * this.dx + y * this.dy) / this.square, (y * this.dx - x * this.dy) / this.square];
  }

  /** The part of a photo of this size that the crop and a margin cover: left, top, right, bottom. */
  bounds(width, height, margin = 4) {
    const corners = CORNERS.map(([u, v]) => this.toPhoto(u, v));
    const [xs, ys] = [corners.map((c) => c[0]), corners.map((c) => c[1])];
    return [
      Math.max(Math.floor(Math.min(...xs)) - margin, 0),
      Math.max(Math.floor(Math.min(...ys)) - margin, 0),
      Math.min(Math.ceil(Math.max(...xs)) + margin, width),
      Math.min(Math.ceil(Math.max(...ys)) + margin, height),
    ];
  }

  covers(width, height) {
    return [[0, 0], [width, 0], [0, height], [width, height]].every(([x, y]) =>
      this.toUnit(x, y).every((t) => t > -1e-6 && t < 1 + 1e-6),
    );
  }

  /** The largest distance between corners, as a fraction of the other crop's side. */
  distance(other) {
    const apart = CORNERS.map(([u, v]) => {
      const [a, b] = [this.toPhoto(u, v), other.toPhoto(u, v)];
      return Math.hypot(a[0] - b[0], a[1] - b[1]);
    });
    return Math.max(...apart) / other.side;
  }

  widened(factor) {
    const t = (1 - factor) / 2;
    const [x, y] = this.toPhoto(t, t);
    return new Crop(x, y, factor * this.dx, factor * this.dy);
  }

  scaled(factor) {
    return new Crop(factor * this.x, factor * this.y, factor * this.dx, factor * this.dy, this.isFace);
  }

  /** The crop in which five points [[x, y]] of a face lie as near as possible to TEMPLATE. */
  static ofFace(points) {
    const mean = (list, axis) => list.reduce((sum, p) => sum + p[axis], 0) / list.length;
    const [fx, fy, tx, ty] = [mean(points, 0), mean(points, 1), mean(TEMPLATE, 0), mean(TEMPLATE, 1)];
    let re = 0, im = 0, norm = 0;
    points.forEach(([x, y], i) => {
      const [a, b, c, d] = [TEMPLATE[i][0] - tx, TEMPLATE[i][1] - ty, x - fx, y - fy];
      re += a * c + b * d;
      im += a * d - b * c;
      norm += a * a + b * b;
    });
    const [dx, dy] = [re / norm, im / norm];
    return new Crop(fx - (dx * tx - dy * ty), fy - (dx * ty + dy * tx), dx, dy, true);
  }

  /** An upright square of this side, with the centre of a box. */
  static around(left, top, right, bottom, side) {
    return new Crop((left + right - side) / 2, (top + bottom - side) / 2, side, 0);
  }
}

/** A crop resampled for the model. @param {Hole} hole @param {Picture} filled @returns {View} */
export function readCrop(crop, hole, filled, size) {
  const cover = { ...hole, channels: 1, data: hole.data.map((x) => x * 255) };
  const { part, at } = reduced(crop, cover, size);
  const corrupted = new Float32Array(size * size).fill(1);
  if (!part.data.length) return { image: planes(3, size, size), hole: corrupted };
  const known = toPlanes({ ...part, data: part.data.map((x) => Number(x === 0)) });
  const value = new Float64Array(1);
  for (let i = 0; i < size * size; i++) {
    const [u, v] = [((i % size) + 0.5) / size, (Math.floor(i / size) + 0.5) / size];
    const [x, y] = crop.toPhoto(u, v);
    if (x < 0 || y < 0 || x > hole.width || y > hole.height) continue;
    const [px, py] = at(u, v);
    bilinearAt(known, px, py, value);
    corrupted[i] = Number(value[0] < KNOWN);
  }
  const image = resample(crop, filled, size);
  for (let i = 0; i < image.data.length; i++) image.data[i] = image.data[i] / 127.5 - 1;
  return { image, hole: corrupted };
}

/** A crop of a picture in other pixels, in [0, 255]. @param {Picture} picture @returns {Planes} */
export function resample(crop, picture, size) {
  const { part, at } = reduced(crop, picture, size);
  const out = planes(3, size, size);
  if (!part.data.length) return out;
  const from = toPlanes(part);
  const value = new Float64Array(3);
  for (let i = 0; i < size * size; i++) {
    const [px, py] = at(((i % size) + 0.5) / size, (Math.floor(i / size) + 0.5) / size);
    bicubicAt(from, px, py, value);
    for (let c = 0; c < 3; c++) out.data[c * size * size + i] = Math.min(255, Math.max(0, value[c]));
  }
  return out;
}

/** The part of a picture that a crop covers, reduced; and where points of the unit square lie in it. */
function reduced(crop, picture, size) {
  const [left, top, right, bottom] = crop.bounds(picture.width, picture.height);
  let part = cut(picture, left, top, right, bottom);
  const factor = Math.max(1, Math.trunc(crop.side / size));
  if (factor > 1 && part.data.length) part = reduce(part, factor);
  const at = (u, v) => {
    const [x, y] = crop.toPhoto(u, v);
    return [(x - left) / factor, (y - top) / factor];
  };
  return { part, at };
}

/**
 * The fills of several crops at points of the photo, blended where crops overlap. Faces count more, but not at the
 * points with a 1 in `local`, where they hardly count at all.
 *
 * @param {Crop[]} crops
 * @param {Planes[]} fills
 * @param {Float64Array} xs
 * @param {Float64Array} ys
 * @param {Uint8Array} [local]
 * @returns {Float32Array} three colours a point
 */
export function blendFills(crops, fills, xs, ys, local) {
  const total = new Float32Array(3 * xs.length), weight = new Float32Array(xs.length);
  const value = new Float64Array(3);
  crops.forEach((crop, k) => {
    const factor = Math.max(1, roundHalfEven(fills[k].width / crop.side));
    const small = factor > 1 ? averageBlocks(fills[k], factor) : fills[k];
    const scale = fills[k].width / factor;
    for (let i = 0; i < xs.length; i++) {
      const [u, v] = crop.toUnit(xs[i], ys[i]);
      if (!(u > 0 && u < 1 && v > 0 && v < 1)) continue;
      bicubicAt(small, u * scale, v * scale, value);
      let here = Math.min(1, Math.min(u, v, 1 - u, 1 - v) / RAMP);
      if (crop.isFace) here = local?.[i] ? 0 : here * (1 + 99 * here * here);
      here += 1e-4;
      for (let c = 0; c < 3; c++) total[3 * i + c] += value[c] * here;
      weight[i] += here;
    }
  });
  for (let i = 0; i < xs.length; i++) {
    for (let c = 0; c < 3; c++) total[3 * i + c] /= Math.max(weight[i], 1e-9);
  }
  return total;
}

/**
 * Boxes [left, top, right, bottom] around the pieces of a hole, cut at empty rows or columns of at least `gap` pixels. A
 * box longer than `thinSide` in which the hole is thin everywhere is cut across its longer side.
 *
 * @param {Hole} hole
 * @param {number} gap
 * @param {number} thinSide
 * @returns {number[][]}
 */
export function splitBoxes(hole, gap, thinSide) {
  const found = [];
  const waiting = [[0, 0, hole.width, hole.height]];
  while (waiting.length) {
    let [left, top, right, bottom] = waiting.pop();
    const across = new Uint8Array(right - left), down = new Uint8Array(bottom - top);
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        if (hole.data[y * hole.width + x]) across[x - left] = down[y - top] = 1;
      }
    }
    if (!across.includes(1)) continue;
    const [x0, x1, y0, y1] = [across.indexOf(1), across.lastIndexOf(1) + 1, down.indexOf(1), down.lastIndexOf(1) + 1];
    [left, top, right, bottom] = [left + x0, top + y0, left + x1, top + y1];
    const cuts = [widestGap(across.subarray(x0, x1)), widestGap(down.subarray(y0, y1))];
    let axis = cuts[1].length > cuts[0].length ? 1 : 0;
    let at = (axis ? top : left) + cuts[axis].at;
    if (cuts[axis].length < gap) {
      axis = bottom - top > right - left ? 1 : 0;
      const [first, last] = axis ? [top, bottom - 1] : [left, right - 1];
      const side = last - first + 1;
      if (side <= thinSide || holdsSquare(hole, [left, top, right, bottom], Math.floor(side / THIN))) {
        found.push([left, top, right, bottom]);
        continue;
      }
      // Cut at the multiple of the highest power of two. So most boxes stay when the hole changes elsewhere.
      const bits = 31 - Math.clz32(first ^ last);
      at = (last >> bits) << bits;
    }
    if (axis === 0) waiting.push([left, top, at, bottom], [at, top, right, bottom]);
    else waiting.push([left, top, right, at], [left, at, right, bottom]);
  }
  return found.sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2] || a[3] - b[3]);
}

function holdsSquare(hole, box, side) {
  return squares(cut({ ...hole, channels: 1 }, ...box), side).includes(1);
}

/**
 * The pixels of a hole that are in a square of `side` pixels in the hole, or near one.
 *
 * Near is a quarter of the side: the rim of a round hole, where no square fits, belongs to it.
 *
 * @param {Hole} hole
 * @param {number} side
 * @returns {Uint8Array} 1 for these pixels
 */
export function widePart(hole, side) {
  const near = Math.floor(side / 4);
  const corners = { ...hole, data: squares(hole, side) };
  const sums = boxSums(corners, side + 2 * near, side - 1 + near);
  return Uint8Array.from(sums, (sum, i) => Number(sum > 0 && hole.data[i]));
}

/** Where a square of `side` pixels fits into a hole: a 1 at its upper left corner. @returns {Uint8Array} */
function squares(hole, side) {
  return Uint8Array.from(boxSums(hole, side), (sum) => Number(sum === side * side));
}

/** The sums of squares of an image, which begin `before` pixels above and left of each pixel. @returns {Int32Array} */
function boxSums({ width, height, data }, side, before = 0) {
  // sums[y][x]: of all above and to the left.
  const sums = new Int32Array((width + 1) * (height + 1));
  const at = (x, y) => y * (width + 1) + x;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      sums[at(x + 1, y + 1)] = data[y * width + x] + sums[at(x, y + 1)] + sums[at(x + 1, y)] - sums[at(x, y)];
    }
  }
  const boxes = new Int32Array(width * height);
  for (let y = 0; y < height; y++) {
    const [top, bottom] = [Math.max(y - before, 0), Math.min(y - before + side, height)];
    for (let x = 0; x < width; x++) {
      const [left, right] = [Math.max(x - before, 0), Math.min(x - before + side, width)];
      const [below, above] = [sums[at(right, bottom)] - sums[at(left, bottom)], sums[at(right, top)] - sums[at(left, top)]];
      boxes[y * width + x] = below - above;
    }
  }
  return boxes;
}

function widestGap(line) {
  let [at, length, last] = [0, 0, 0];
  for (let i = 1; i < line.length; i++) {
    if (!line[i]) continue;
    const gap = i - last - 1;
    if (gap > length) [at, length] = [last + 1 + Math.floor(gap / 2), gap];
    last = i;
  }
  return { at, length };
}
