/** Detail for a fill that is smaller than the photo, from known places that look alike. The same as showface/enlargement.py. */

import { planes } from "./fill.js";
import { averageBlocks, enlargeBicubic } from "./sampling.js";

/** @typedef {import("./fill.js").Planes} Planes */

export const PATCH = 4; // side of a patch in pixels of the fill
const CONTEXT = 2; // what is compared around a patch
const TEMPERATURE = 100;
const EPSILON = 1e-6;
const NEGLIGIBLE = 0.18; // a cosine that is smaller than the largest one by more than this has a weight below 2e-8

/**
 * Enlarge a fill, and give it the detail that known patches have.
 *
 * @param {Planes} fill (3, s, s) in [0, 255], s a multiple of PATCH
 * @param {Planes} sharp (3, k s, k s), the photo
 * @param {Float32Array} hole (k s, k s), 1 = hole
 * @returns {Planes} (3, k s, k s), with known pixels from `sharp`
 */
export function enlargeFill(fill, sharp, hole) {
  const scale = sharp.width / fill.width;
  const size = sharp.width * sharp.height;
  const whole = enlargeBicubic(fill, scale);
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < size; i++) if (!(hole[i] > 0)) whole.data[c * size + i] = sharp.data[c * size + i];
  }
  const small = averageBlocks(whole, scale);
  const smooth = enlargeBicubic(small, scale);
  const row = fill.width / PATCH;
  const isCorrupted = corruptedPatches(hole, sharp.width, row);
  const seen = unitContexts(small, row);
  const known = [], corrupted = [];
  isCorrupted.forEach((flag, i) => (flag ? corrupted : known).push(i));
  const details = patchesOf(whole, smooth, row);
  const out = planes(3, sharp.height, sharp.width);
  out.data.set(whole.data);
  const cosines = new Float32Array(known.length);
  for (const i of corrupted) {
    if (known.length) addPatch(out, meanOf(details, correlate(seen, i, known, cosines)), i, row);
  }
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < size; i++) if (!(hole[i] > 0)) out.data[c * size + i] = sharp.data[c * size + i];
  }
  return out;
}

/** Whether each patch has a pixel of the hole. */
function corruptedPatches(hole, width, row) {
  const side = width / row;
  const found = new Uint8Array(row * row);
  for (let i = 0; i < hole.length; i++) {
    if (hole[i] > 0) found[Math.floor(Math.floor(i / width) / side) * row + Math.floor((i % width) / side)] = 1;
  }
  return found;
}

/** What each patch and its surroundings show, as unit vectors, with half of its brightness. */
function unitContexts(small, row) {
  const side = PATCH + 2 * CONTEXT, length = 3 * side * side;
  const reflect = (i, size) => (i < 0 ? -i : i >= size ? 2 * size - 2 - i : i);
  const seen = new Float32Array(row * row * length);
  for (let p = 0; p < row * row; p++) {
    const [top, left] = [Math.floor(p / row) * PATCH - CONTEXT, (p % row) * PATCH - CONTEXT];
    let at = p * length, sum = 0;
    for (let c = 0; c < 3; c++) {
      for (let y = 0; y < side; y++) {
        const line = (c * small.height + reflect(top + y, small.height)) * small.width;
        for (let x = 0; x < side; x++) sum += seen[at++] = small.data[line + reflect(left + x, small.width)];
      }
    }
    const shift = sum / length / 2;
    let square = 0;
    for (let k = p * length; k < at; k++) {
      seen[k] -= shift;
      square += seen[k] * seen[k];
    }
    const norm = Math.max(EPSILON, Math.sqrt(square));
    for (let k = p * length; k < at; k++) seen[k] /= norm;
  }
  return { seen, length };
}

/** The known patches that count for a corrupted one, and their weights, which sum to 1. */
function correlate({ seen, length }, i, known, cosines) {
  let largest = -Infinity;
  const from = i * length;
  for (let k = 0; k < known.length; k++) {
    const other = known[k] * length;
    let a = 0, b = 0, c = 0, d = 0;
    for (let j = 0; j < length; j += 4) {
      a += seen[from + j] * seen[other + j];
      b += seen[from + j + 1] * seen[other + j + 1];
      c += seen[from + j + 2] * seen[other + j + 2];
      d += seen[from + j + 3] * seen[other + j + 3];
    }
    cosines[k] = a + b + c + d;
    if (cosines[k] > largest) largest = cosines[k];
  }
  const weights = [];
  let total = 0;
  for (let k = 0; k < known.length; k++) {
    if (cosines[k] < largest - NEGLIGIBLE) continue;
    const weight = Math.exp(TEMPERATURE * (cosines[k] - largest));
    total += weight;
    weights.push([known[k], weight]);
  }
  return weights.map(([patch, weight]) => [patch, weight / total]);
}

/** Calls `visit` with the index of each row of a patch in an image's data, and its place in the patch. */
function eachRow(image, patch, row, visit) {
  const side = image.width / row;
  const corner = Math.floor(patch / row) * side * image.width + (patch % row) * side;
  for (let c = 0, place = 0; c < 3; c++) {
    for (let y = 0; y < side; y++, place += side) {
      visit((c * image.height + y) * image.width + corner, place, side);
    }
  }
}

/** The details of all patches, one after another. Detail is what the smooth image lacks. */
function patchesOf(whole, smooth, row) {
  const length = (3 * whole.width * whole.height) / (row * row);
  const details = new Float32Array(row * row * length);
  for (let patch = 0; patch < row * row; patch++) {
    eachRow(whole, patch, row, (at, place, side) => {
      for (let x = 0; x < side; x++) {
        details[patch * length + place + x] = whole.data[at + x] - smooth.data[at + x];
      }
    });
  }
  return { details, length };
}

/** The weighted mean of some patches. */
function meanOf({ details, length }, weights) {
  const mean = new Float32Array(length);
  for (const [patch, weight] of weights) {
    const from = patch * length;
    if (weight > 1e-6) for (let k = 0; k < length; k++) mean[k] += weight * details[from + k];
  }
  return mean;
}

function addPatch(out, mean, patch, row) {
  eachRow(out, patch, row, (at, place, side) => {
    for (let x = 0; x < side; x++) out.data[at + x] += mean[place + x];
  });
}
