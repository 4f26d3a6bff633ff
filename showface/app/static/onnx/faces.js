/** Find the faces in a photo with YuNet. The same as showface/faces/detector.py. */

import { Crop, resample } from "./crops.js";
import { planes } from "./fill.js";
import { reduceTo, rotate } from "./image.js";

/** @typedef {import("./image.js").Picture} Picture */
/** @typedef {{box: number[], points: number[][], score: number}} Face box is left, top, right, bottom */
/** @typedef {(pictures: import("./fill.js").Planes) => Promise<Float32Array>} Network rows of 15 numbers each */

const SIDES = [640, 1280]; // the longer side of the photo, in pixels, at the two scales
const OVERLAP = 0.3; // boxes whose intersection over union exceeds this are the same face
const CONTAINED = 0.6; // of boxes from two searches, one that lies this far in the other is the same face
const SMALL = 120; // pixels; larger boxes at the larger scale are left to the smaller one
const TILTS = [0, -20, 20]; // degrees by which the photo is turned
const QUARTERS = [90, 180, 270];
const LOOKS = 2; // how often a face is found again in a close-up
const CLOSE_UP = 224; // side of a close-up in pixels
const WIDE = 1.5; // side of a close-up, in sides of the aligned crop
const KEPT = 0.5; // least score of a face in its close-up, as a fraction of the threshold
const NEAR = 0.25; // how far from a close-up's middle a face may be, as a fraction of its side
const BESIDE = 127; // the grey level beside a tilted photo
const CANDIDATES = 5000;
const MULTIPLE = 32; // the network's coarsest stride

/**
 * @param {Network} network
 * @param {Picture} photo
 * @param {number} threshold the smallest score of a face
 * @param {boolean} turned also look for faces that lie on their side or stand on their head
 * @returns {Promise<Face[]>} the largest box first
 */
export async function findFaces(network, photo, threshold = 0.6, turned = true) {
  const large = reduceTo(photo, SIDES[1]);
  const small = reduceTo(large, SIDES[0]);
  let found = [];
  for (const degrees of turned ? [...TILTS, ...QUARTERS] : TILTS) {
    found.push(...(await search(network, small, photo, threshold, degrees)));
  }
  if (large !== small) {
    const most = (SMALL * Math.max(photo.width, photo.height)) / SIDES[1];
    found.push(...(await search(network, large, photo, threshold, 0)).filter((face) => longer(face.box) <= most));
  }
  found = suppress(found, OVERLAP, CONTAINED);
  for (let i = 0; i < LOOKS; i++) found = await lookCloser(network, found, photo, large, KEPT * threshold);
  return suppress(found, OVERLAP, CONTAINED).sort((a, b) => area(b.box) - area(a.box));
}

/** Search a reduced photo, turned against the clock. Returns faces in pixels of the photo. */
async function search(network, picture, photo, threshold, degrees) {
  const turned = rotate(picture, degrees, BESIDE);
  const width = Math.ceil(turned.width / MULTIPLE) * MULTIPLE, height = Math.ceil(turned.height / MULTIPLE) * MULTIPLE;
  const input = planes(3, height, width);
  for (let y = 0; y < turned.height; y++) {
    for (let x = 0; x < turned.width; x++) {
      for (let c = 0; c < 3; c++) {
        input.data[(c * height + y) * width + x] = turned.data[(y * turned.width + x) * 3 + c];
      }
    }
  }
  const [sx, sy] = [photo.width / picture.width, photo.height / picture.height];
  const angle = (degrees * Math.PI) / 180;
  const [cosine, sine] = [Math.cos(angle), Math.sin(angle)];
  // The middle of a picture stays in the middle when it is turned.
  const back = ([x, y]) => {
    const [u, v] = [x - turned.width / 2, y - turned.height / 2];
    return [(u * cosine - v * sine + picture.width / 2) * sx, (u * sine + v * cosine + picture.height / 2) * sy];
  };
  return rowsAbove(await network(input), threshold).map(({ middle, half, points, score }) => {
    const [w, h] = halfOfTurned(half, cosine, sine);
    return faceOf(back(middle), [w * sx, h * sy], points.map(back), score);
  });
}

/** Find each face again in an upright close-up, and drop those that are not found. */
async function lookCloser(network, faces, photo, reduced, threshold) {
  const zoom = reduced.width / photo.width;
  const isSmall = (face) => longer(face.box) * zoom < CLOSE_UP;
  const found = [];
  // Close-ups of small faces need the photo's own pixels. For others the reduced photo has enough, and is faster.
  for (const [picture, scale, chosen] of [[photo, 1, true], [reduced, zoom, false]]) {
    for (const face of faces.filter((each) => isSmall(each) === chosen)) {
      const crop = Crop.ofFace(face.points).widened(WIDE);
      const rows = rowsAbove(await network(resample(crop.scaled(scale), picture, CLOSE_UP)), threshold);
      const near = rows.filter(({ middle }) => middle.every((at) => Math.abs(at / CLOSE_UP - 0.5) < NEAR));
      if (!near.length) continue;
      const { middle, half, points } = near.reduce((a, b) => (b.score >= a.score ? b : a));
      const place = ([x, y]) => crop.toPhoto(x / CLOSE_UP, y / CLOSE_UP);
      const sides = halfOfTurned(half, crop.dx / crop.side, crop.dy / crop.side);
      const size = sides.map((each) => (each / CLOSE_UP) * crop.side);
      found.push(faceOf(place(middle), size, points.map(place), face.score)); // the score of the search
    }
  }
  return found;
}

/** The network's rows with at least this score. @param {Float32Array} rows */
function rowsAbove(rows, threshold) {
  const found = [];
  for (let i = 0; i < rows.length; i += 15) {
    if (!(rows[i + 14] >= threshold)) continue;
    const row = Array.from(rows.subarray(i, i + 15));
    if (!row.every(Number.isFinite)) continue; // a chance score in an extreme box is no face
    const half = [(row[2] - row[0]) / 2, (row[3] - row[1]) / 2];
    found.push({
      middle: [row[0] + half[0], row[1] + half[1]],
      half,
      points: [4, 6, 8, 10, 12].map((k) => [row[k], row[k + 1]]),
      score: row[14],
    });
  }
  return found;
}

/** Half the sides of the box around the ellipse that fills a turned box. */
function halfOfTurned([w, h], cosine, sine) {
  return [Math.hypot(w * cosine, h * sine), Math.hypot(h * cosine, w * sine)];
}

/** @returns {Face} */
function faceOf([x, y], [w, h], points, score) {
  return { box: [x - w, y - h, x + w, y + h], points, score };
}

const longer = ([left, top, right, bottom]) => Math.max(right - left, bottom - top);
const area = ([left, top, right, bottom]) => Math.max(0, right - left) * Math.max(0, bottom - top);

/**
 * Drop the boxes that overlap one with a better score.
 *
 * @param {Face[]} faces
 * @param {number} overlap boxes whose intersection over union exceeds this are the same face
 * @param {number} contained so are boxes of which one has more than this fraction in the other
 * @returns {Face[]} the best score first
 */
export function suppress(faces, overlap, contained) {
  let left = [...faces].sort((a, b) => b.score - a.score).slice(0, CANDIDATES);
  const kept = [];
  while (left.length) {
    const [best, ...rest] = left;
    kept.push(best);
    left = rest.filter((face) => {
      const width = Math.min(best.box[2], face.box[2]) - Math.max(best.box[0], face.box[0]);
      const height = Math.min(best.box[3], face.box[3]) - Math.max(best.box[1], face.box[1]);
      const shared = Math.max(0, width) * Math.max(0, height);
      const [a, b] = [area(best.box), area(face.box)];
      return shared <= overlap * (a + b - shared) && shared <= contained * Math.min(a, b);
    });
  }
  return kept;
}
