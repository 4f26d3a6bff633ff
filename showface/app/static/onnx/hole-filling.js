/** Fill the hole of a photo: faces where they are, in aligned crops, and what lies beside them. As showface/hole_filling.py. */

import { Crop, blendFills, readCrop, splitBoxes, widePart } from "./crops.js";
import { PATCH, enlargeFill } from "./enlargement.js";
import { planes, pushPullFill } from "./fill.js";
import { cut, reduce, roundHalfEven, toByte } from "./image.js";
import { bilinearAt, toPlanes } from "./sampling.js";

/** @typedef {import("./image.js").Picture} Picture */
/** @typedef {import("./crops.js").Hole} Hole */
/** @typedef {import("./fill.js").Planes} Planes */
/** @typedef {{rows: Int32Array, columns: Int32Array, xs: Float64Array, ys: Float64Array}} Points */
/** @typedef {(photo: Picture) => Promise<number[][][]>} FindFaces five points a face */

const CONTEXT = 1.75; // side of a crop around a piece of a hole, in sides of the piece
// In a face this many times as large as the model's images, parts of the hole that are thinner than this fraction of the
// face are filled as beside faces.
const LARGE_FACE = 1.25;
const THIN_IN_FACE = 0.0625;
const ROUGH = 640; // longer side in pixels of the rough fill
const ALIGNED = 0.2; // a crop whose corners are nearer to the photo's than this fraction of its side is the photo
const MAX_SCALE = 4; // the detail of larger faces is enlarged
const MEMBRANE = 768; // longer side in pixels at which colours are matched
const LOOKS = 2; // how often faces are looked for
const STAGES = [["filling", 0], ["filling faces", 0.4], ["filling faces again", 0.7]];

/**
 * @param {(view: import("./crops.js").View) => Promise<Planes>} model gives the filled crop, in [0, 255]
 * @param {Picture} photo RGB
 * @param {Hole} hole not empty
 * @param {FindFaces[]} findFaces the next way is tried if those before found no face that the hole touches
 * @param {number} size side of the crops that the model fills
 * @param {(stage: string, fraction: number) => Promise<void>} progress what it throws ends the work
 * @returns {Promise<{image: Picture, crops: Crop[]}>} the photo, filled
 */
export async function fillHole(model, photo, hole, findFaces, size, progress) {
  const points = pointsOf(hole, (i) => hole.data[i]);
  let filled = roughFill(photo, hole);
  let faces = [];
  let crops, images, local;
  const known = new Map();
  for (let look = 0; look <= LOOKS; look++) {
    await progress(...STAGES[look]);
    local = thinInFaces(faces, hole, size);
    crops = [...faces, ...cropsBeside(faces, hole, points, local, size)];
    for (const crop of crops) {
      if (!known.has(crop.key)) known.set(crop.key, await model(readCrop(crop, hole, filled, size)));
    }
    images = crops.map((crop) => known.get(crop.key));
    let found = faces;
    if (findFaces.length && look < LOOKS) {
      await progress(look ? "finding faces again" : "finding faces", STAGES[look][1] + 0.2);
      filled = matchColours(crops, images, photo, hole, points, local);
      const again = await facesAt(filled, hole, findFaces);
      if (again.length) found = again;
    }
    if (found.length === faces.length && found.every((crop, i) => crop.key === faces[i].key)) break;
    faces = found;
  }
  await progress("adding detail", 0.9);
  const sharp = crops.map((crop, i) => atPhotoSize(crop, images[i], hole, filled));
  return { image: matchColours(crops, sharp, photo, hole, points, local), crops };
}

/** The pixels that `chosen` accepts, row by row. @returns {Points} */
function pointsOf({ width, data }, chosen) {
  const found = [];
  for (let i = 0; i < data.length; i++) if (chosen(i)) found.push(i);
  const rows = Int32Array.from(found, (i) => Math.floor(i / width));
  const columns = Int32Array.from(found, (i) => i % width);
  return { rows, columns, xs: Float64Array.from(columns, (x) => x + 0.5), ys: Float64Array.from(rows, (y) => y + 0.5) };
}

/** The photo with a smooth fill, made at a small size. @returns {Picture} */
export function roughFill(photo, hole) {
  const { width, height } = hole;
  const factor = Math.ceil(Math.max(width, height) / ROUGH);
  let cover = { width, height, channels: 1, data: hole.data.map((x) => x * 255) };
  if (factor > 1) cover = reduce(cover, factor);
  const rough = pushPullFill(
    toPlanes(factor > 1 ? reduce(photo, factor) : photo),
    cover.data.map((x) => Number(x > 0)),
  );
  const filled = { ...photo, data: Uint8Array.from(photo.data) };
  const value = new Float64Array(3);
  for (let i = 0; i < hole.data.length; i++) {
    if (!hole.data[i]) continue;
    bilinearAt(rough, ((i % width) + 0.5) / factor, (Math.floor(i / width) + 0.5) / factor, value);
    for (let c = 0; c < 3; c++) filled.data[3 * i + c] = toByte(value[c]);
  }
  return filled;
}

/** The crops of the faces that the hole touches, found in one of these ways. */
async function facesAt(photo, hole, findFaces) {
  for (const find of findFaces) {
    const found = touched(cropsOf(await find(photo), photo.width, photo.height), hole);
    if (found.length) return found;
  }
  return [];
}

/** The crops of faces. A photo that is such a crop already, or nearly, is taken as it is. */
export function cropsOf(faces, width, height) {
  const whole = new Crop(0, 0, width, 0, true);
  const crops = faces
    .map((points) => Crop.ofFace(points))
    .map((crop) => (width === height && crop.distance(whole) < ALIGNED ? whole : crop));
  // What looks like a face in the middle of a larger one is none.
  return crops.filter((crop) => {
    const middle = crop.toPhoto(0.5, 0.55);
    return !crops.some((other) => {
      const [u, v] = other.toUnit(...middle);
      return other.side > crop.side && Math.max(Math.abs(u - 0.5), Math.abs(v - 0.55)) < 0.25;
    });
  });
}

/** The crops in which the hole has a pixel. */
function touched(crops, hole) {
  return crops.filter((crop) => {
    const [left, top, right, bottom] = crop.bounds(hole.width, hole.height, 0);
    for (let y = top; y < bottom; y++) {
      for (let x = left; x < right; x++) {
        if (!hole.data[y * hole.width + x]) continue;
        if (crop.toUnit(x + 0.5, y + 0.5).every((t) => t > 0 && t < 1)) return true;
      }
    }
    return false;
  });
}

/** The pixels of the hole in large faces where it is thin: a 1 for each. @returns {Uint8Array} */
function thinInFaces(faces, hole, size) {
  const { width, height } = hole;
  const thin = new Uint8Array(width * height);
  for (const face of faces) {
    if (face.side <= LARGE_FACE * size) continue;
    const across = roundHalfEven(THIN_IN_FACE * face.side);
    const [left, top, right, bottom] = face.bounds(width, height, across);
    const part = cut({ ...hole, channels: 1 }, left, top, right, bottom);
    const wide = widePart(part, across);
    part.data.forEach((inHole, i) => {
      const at = (top + Math.floor(i / part.width)) * width + left + (i % part.width);
      if (inHole && !wide[i]) thin[at] = 1;
    });
  }
  return thin;
}

/** Crops around the pieces of the hole that no face covers well, or that are local: have a 1 in `local`. */
function cropsBeside(faces, hole, points, local, size) {
  const { width, height } = hole;
  const rest = { width, height, data: Uint8Array.from(hole.data) };
  for (const face of faces) {
    // Near its border a crop has little weight, unless the photo ends there too.
    const border = face.covers(width, height) ? 0 : 0.06;
    for (let i = 0; i < points.xs.length; i++) {
      const unit = face.toUnit(points.xs[i], points.ys[i]);
      if (unit.every((t) => t > border && t < 1 - border)) rest.data[points.rows[i] * width + points.columns[i]] = 0;
    }
  }
  local.forEach((isLocal, i) => {
    if (isLocal) rest.data[i] = 1;
  });
  const whole = Math.min(width, height);
  const crops = new Map();
  for (const [left, top, right, bottom] of splitBoxes(rest, Math.max(16, Math.floor(size / 4)), Math.floor(size / CONTEXT))) {
    const piece = Math.max(right - left, bottom - top);
    const side = Math.max(piece, Math.min(CONTEXT * piece, whole), Math.min(size, whole));
    const { x, y } = Crop.around(left, top, right, bottom, side);
    // Shift it into the photo where it fits, since beside the photo nothing is known.
    const shift = (at, length) => (side <= length ? Math.min(Math.max(at, 0), Math.max(length - side, 0)) : at);
    const crop = new Crop(shift(x, width), shift(y, height), side, 0);
    crops.set(crop.key, crop);
  }
  return [...crops.values()];
}

/** The fill of a crop in the photo's resolution, up to MAX_SCALE times its size, with detail. @returns {Planes} */
function atPhotoSize(crop, fill, hole, filled) {
  const scale = Math.min(MAX_SCALE, roundHalfEven(crop.side / fill.width));
  if (scale < 2 || fill.width % PATCH) return fill;
  const view = readCrop(crop, hole, filled, scale * fill.width);
  for (let i = 0; i < view.image.data.length; i++) view.image.data[i] = (view.image.data[i] + 1) * 127.5;
  return enlargeFill(fill, view.image, view.hole);
}

/**
 * The photo with the blended fills in its hole, without a seam: what the fills miss at the known pixels beside the hole
 * is spread smoothly into the hole and added.
 *
 * @returns {Picture}
 */
export function matchColours(crops, fills, photo, hole, points, local) {
  const { width, height } = hole;
  const ends = (list) => list.reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);
  const [[x0, x1], [y0, y1]] = [ends(points.columns), ends(points.rows)];
  const left = Math.max(0, x0 - 2), top = Math.max(0, y0 - 2);
  const across = Math.min(x1 + 3, width) - left, down = Math.min(y1 + 3, height) - top;
  const ring = ringOf(hole, left, top, across, down);
  const colours = blendFills(crops, fills, points.xs, points.ys, valuesAt(local, width, points));
  if (ring.xs.length) {
    const around = blendFills(crops, fills, ring.xs, ring.ys, valuesAt(grown(local, width), width, ring));
    const factor = Math.ceil(Math.max(across, down) / MEMBRANE);
    const mean = planes(3, Math.ceil(down / factor), Math.ceil(across / factor));
    const size = mean.width * mean.height;
    const count = new Float32Array(size);
    for (let i = 0; i < ring.xs.length; i++) {
      const [x, y] = [ring.columns[i], ring.rows[i]];
      const at = Math.floor((y - top) / factor) * mean.width + Math.floor((x - left) / factor);
      for (let c = 0; c < 3; c++) mean.data[c * size + at] += photo.data[3 * (y * width + x) + c] - around[3 * i + c];
      count[at] += 1;
    }
    for (let c = 0; c < 3; c++) for (let i = 0; i < size; i++) mean.data[c * size + i] /= Math.max(1, count[i]);
    const spread = pushPullFill(mean, count.map((n) => Number(n === 0)));
    const value = new Float64Array(3);
    for (let i = 0; i < points.xs.length; i++) {
      bilinearAt(spread, (points.xs[i] - left) / factor, (points.ys[i] - top) / factor, value);
      for (let c = 0; c < 3; c++) colours[3 * i + c] += value[c];
    }
  }
  const result = { ...photo, data: Uint8Array.from(photo.data) };
  for (let i = 0; i < points.xs.length; i++) {
    const at = 3 * (points.rows[i] * width + points.columns[i]);
    for (let c = 0; c < 3; c++) result.data[at + c] = toByte(colours[3 * i + c]);
  }
  return result;
}

/** The values of a map at points. @returns {Uint8Array} */
function valuesAt(map, width, { rows, columns }) {
  return Uint8Array.from(rows, (row, i) => map[row * width + columns[i]]);
}

/** A map of 0 and 1 with a 1 also beside, above and below each 1. @returns {Uint8Array} */
function grown(map, width) {
  return map.map((one, i) => {
    const x = i % width;
    return one || (x > 0 && map[i - 1]) || (x < width - 1 && map[i + 1]) || map[i - width] || map[i + width] || 0;
  });
}

/** The known pixels beside the hole in a part of the photo. @returns {Points} */
function ringOf(hole, left, top, across, down) {
  const isHole = (x, y) =>
    x >= left && y >= top && x < left + across && y < top + down && hole.data[y * hole.width + x] > 0;
  return pointsOf(hole, (i) => {
    const [x, y] = [i % hole.width, Math.floor(i / hole.width)];
    if (hole.data[i] || x < left || y < top || x >= left + across || y >= top + down) return false;
    return isHole(x - 1, y) || isHole(x + 1, y) || isHole(x, y - 1) || isHole(x, y + 1);
  });
}
