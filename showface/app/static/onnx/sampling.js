/** Values between pixels, as PyTorch's grid_sample gives them: the border is continued, and corners are outer corners. */

import { planes } from "./fill.js";

/** @typedef {import("./fill.js").Planes} Planes */

const A = -0.75; // PyTorch's bicubic kernel

/** The four weights of a bicubic interpolation at this distance after the second pixel. */
function cubic(t, out) {
  const near = (x) => ((A + 2) * x - (A + 3)) * x * x + 1;
  const far = (x) => ((A * x - 5 * A) * x + 8 * A) * x - 4 * A;
  out[0] = far(t + 1);
  out[1] = near(t);
  out[2] = near(1 - t);
  out[3] = far(2 - t);
}

const clamp = (i, size) => (i < 0 ? 0 : i >= size ? size - 1 : i);
const across = new Float64Array(4), down = new Float64Array(4);

/**
 * The values at a point, bicubic.
 *
 * @param {Planes} image
 * @param {number} px in pixels from the outer corner
 * @param {number} py
 * @param {Float64Array | Float32Array} out one value a channel
 */
export function bicubicAt(image, px, py, out) {
  const { width, height, data, channels } = image;
  const x = px - 0.5, y = py - 0.5;
  const left = Math.floor(x), top = Math.floor(y);
  cubic(x - left, across);
  cubic(y - top, down);
  const x0 = clamp(left - 1, width), x1 = clamp(left, width), x2 = clamp(left + 1, width), x3 = clamp(left + 2, width);
  for (let c = 0; c < channels; c++) {
    let sum = 0;
    for (let j = 0; j < 4; j++) {
      const row = (c * height + clamp(top - 1 + j, height)) * width;
      sum +=
        down[j] *
        (across[0] * data[row + x0] + across[1] * data[row + x1] + across[2] * data[row + x2] + across[3] * data[row + x3]);
    }
    out[c] = sum;
  }
}

/** The values at a point, bilinear. Arguments as `bicubicAt`. */
export function bilinearAt(image, px, py, out) {
  const { width, height, data, channels } = image;
  const x = Math.min(width - 1, Math.max(0, px - 0.5)), y = Math.min(height - 1, Math.max(0, py - 0.5));
  const left = Math.floor(x), top = Math.floor(y);
  const right = Math.min(width - 1, left + 1), bottom = Math.min(height - 1, top + 1);
  const p = x - left, q = y - top;
  for (let c = 0; c < channels; c++) {
    const upper = (c * height + top) * width, lower = (c * height + bottom) * width;
    const above = (1 - p) * data[upper + left] + p * data[upper + right];
    out[c] = (1 - q) * above + q * ((1 - p) * data[lower + left] + p * data[lower + right]);
  }
}

/** A picture as planes. @param {import("./image.js").Picture} picture @returns {Planes} */
export function toPlanes(picture) {
  const { width, height, channels, data } = picture;
  const out = planes(channels, height, width);
  const size = width * height;
  for (let i = 0; i < size; i++) for (let c = 0; c < channels; c++) out.data[c * size + i] = data[i * channels + c];
  return out;
}

/** Enlarge by a whole number, bicubic. @param {Planes} image @param {number} scale @returns {Planes} */
export function enlargeBicubic(image, scale) {
  const out = planes(image.channels, image.height * scale, image.width * scale);
  const size = out.width * out.height;
  const value = new Float64Array(image.channels);
  for (let y = 0; y < out.height; y++) {
    for (let x = 0; x < out.width; x++) {
      bicubicAt(image, (x + 0.5) / scale, (y + 0.5) / scale, value);
      for (let c = 0; c < image.channels; c++) out.data[c * size + y * out.width + x] = value[c];
    }
  }
  return out;
}

/** Means of blocks; at the right and lower border, of the pixels that there are. @param {Planes} image @returns {Planes} */
export function averageBlocks(image, factor) {
  const { channels, width, height, data } = image;
  const out = planes(channels, Math.ceil(height / factor), Math.ceil(width / factor));
  for (let c = 0; c < channels; c++) {
    for (let y = 0; y < out.height; y++) {
      const bottom = Math.min(height, (y + 1) * factor);
      for (let x = 0; x < out.width; x++) {
        const right = Math.min(width, (x + 1) * factor);
        let sum = 0;
        for (let v = y * factor; v < bottom; v++) {
          for (let u = x * factor; u < right; u++) sum += data[(c * height + v) * width + u];
        }
        out.data[(c * out.height + y) * out.width + x] = sum / ((bottom - y * factor) * (right - x * factor));
      }
    }
  }
  return out;
}
