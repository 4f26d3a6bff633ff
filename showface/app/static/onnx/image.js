/** Pictures of 8 bits, reduced, resized and turned with the same arithmetic as Pillow, so that results agree with Python's. */

/** @typedef {{width: number, height: number, data: Uint8Array | Uint8ClampedArray, channels: number}} Picture row by row */

/** @param {number} width @param {number} height @param {number} channels @returns {Picture} */
export function blank(width, height, channels) {
  return { width, height, channels, data: new Uint8Array(width * height * channels) };
}

/** Round to the nearest integer, and a half to the even one, as Python does. @param {number} x @returns {number} */
export function roundHalfEven(x) {
  const low = Math.floor(x);
  const rest = x - low;
  if (rest !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/** @param {number} x @returns {number} a colour, 0 to 255 */
export function toByte(x) {
  return x <= 0 ? 0 : x >= 255 ? 255 : roundHalfEven(x);
}

/** The part of a picture from (left, top) to (right, bottom). @param {Picture} picture @returns {Picture} */
export function cut(picture, left, top, right, bottom) {
  const { channels } = picture;
  const part = blank(Math.max(0, right - left), Math.max(0, bottom - top), channels);
  for (let y = 0; y < part.height; y++) {
    const from = ((top + y) * picture.width + left) * channels;
    part.data.set(picture.data.subarray(from, from + part.width * channels), y * part.width * channels);
  }
  return part;
}

/**
 * Means of blocks of pixels: Pillow's Image.reduce. Blocks at the right and lower border may be smaller.
 *
 * @param {Picture} picture
 * @param {number} across block width
 * @param {number} down block height
 * @returns {Picture}
 */
export function reduce(picture, across, down = across) {
  const { width, height, channels, data } = picture;
  const out = blank(Math.ceil(width / across), Math.ceil(height / down), channels);
  for (let y = 0; y < out.height; y++) {
    const bottom = Math.min(height, (y + 1) * down);
    for (let x = 0; x < out.width; x++) {
      const right = Math.min(width, (x + 1) * across);
      const count = (bottom - y * down) * (right - x * across);
      const factor = Math.floor(Math.fround(2 ** 24 / count));
      for (let c = 0; c < channels; c++) {
        let sum = Math.floor(count / 2);
        for (let v = y * down; v < bottom; v++) {
          for (let u = x * across; u < right; u++) sum += data[(v * width + u) * channels + c];
        }
        out.data[(y * out.width + x) * channels + c] = Math.floor((sum * factor) / 2 ** 24);
      }
    }
  }
  return out;
}

const BITS = 22; // of Pillow's fixed-point weights

/**
 * The weights of a triangle filter along one side.
 *
 * @param {number} from length of the side, or of the part that is used
 * @param {number} limit number of pixels
 * @param {number} to new length
 * @returns {{first: number, weights: Int32Array}[]}
 */
function triangle(from, limit, to) {
  const scale = from / to;
  const support = Math.max(1, scale);
  const filters = [];
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(limit, Math.trunc(centre + support + 0.5));
    const raw = new Float64Array(end - first);
    let sum = 0;
    for (let k = 0; k < raw.length; k++) {
      raw[k] = Math.max(0, 1 - Math.abs((k + first - centre + 0.5) / support));
      sum += raw[k];
    }
    filters.push({ first, weights: Int32Array.from(raw, (w) => Math.trunc(0.5 + (w / sum) * 2 ** BITS)) });
  }
  return filters;
}

/**
 * Resize with a triangle filter, which averages when it reduces: Pillow's BILINEAR.
 *
 * @param {Picture} picture
 * @param {number} width
 * @param {number} height
 * @param {number} usedWidth width of the part that is resized, which may be fractional
 * @param {number} usedHeight its height
 * @returns {Picture}
 */
export function resize(picture, width, height, usedWidth = picture.width, usedHeight = picture.height) {
  let from = picture;
  if (width !== picture.width || usedWidth !== picture.width) {
    from = resizeAcross(from, triangle(usedWidth, picture.width, width));
  }
  if (height !== picture.height || usedHeight !== picture.height) {
    from = resizeDown(from, triangle(usedHeight, picture.height, height));
  }
  return from;
}

function resizeAcross({ width, height, channels, data }, filters) {
  const out = blank(filters.length, height, channels);
  for (let y = 0, to = 0; y < height; y++) {
    for (const { first, weights } of filters) {
      for (let c = 0; c < channels; c++, to++) {
        let sum = 2 ** (BITS - 1);
        let at = (y * width + first) * channels + c;
        for (let k = 0; k < weights.length; k++, at += channels) sum += weights[k] * data[at];
        out.data[to] = sum >> BITS;
      }
    }
  }
  return out;
}

function resizeDown({ width, channels, data }, filters) {
  const out = blank(width, filters.length, channels);
  const row = width * channels;
  const sums = new Int32Array(row);
  filters.forEach(({ first, weights }, y) => {
    sums.fill(2 ** (BITS - 1));
    for (let k = 0, at = first * row; k < weights.length; k++) {
      const weight = weights[k];
      for (let i = 0; i < row; i++, at++) sums[i] += weight * data[at];
    }
    for (let i = 0, to = y * row; i < row; i++, to++) out.data[to] = sums[i] >> BITS;
  });
  return out;
}

/**
 * Reduce the longer side to `side`, blocks first, then with a triangle filter. A smaller picture is returned as it is.
 *
 * @param {Picture} picture
 * @param {number} side
 * @returns {Picture}
 */
export function reduceTo(picture, side) {
  const scale = side / Math.max(picture.width, picture.height);
  if (scale >= 1) return picture;
  const width = Math.max(1, roundHalfEven(scale * picture.width));
  const height = Math.max(1, roundHalfEven(scale * picture.height));
  const across = Math.trunc(picture.width / width / 1.5) || 1;
  const down = Math.trunc(picture.height / height / 1.5) || 1;
  if (across === 1 && down === 1) return resize(picture, width, height);
  return resize(reduce(picture, across, down), width, height, picture.width / across, picture.height / down);
}

/**
 * Turn a picture about its middle, against the clock; the result holds all of it. Like Pillow's rotate with `expand`.
 *
 * @param {Picture} picture
 * @param {number} degrees
 * @param {number} beside the grey level beside the picture
 * @returns {Picture}
 */
export function rotate(picture, degrees, beside) {
  const { width, height, channels, data } = picture;
  if (degrees % 360 === 0) return picture;
  if (degrees % 90 === 0) return quarterTurns(picture, (((degrees / 90) % 4) + 4) % 4);
  const angle = (-degrees * Math.PI) / 180;
  const [a, b, d, e] = [Math.cos(angle), Math.sin(angle), -Math.sin(angle), Math.cos(angle)];
  const c = a * (-width / 2) + b * (-height / 2) + width / 2;
  const f = d * (-width / 2) + e * (-height / 2) + height / 2;
  const corners = [[0, 0], [width, 0], [width, height], [0, height]];
  const xs = corners.map(([x, y]) => a * x + b * y + c);
  const ys = corners.map(([x, y]) => d * x + e * y + f);
  const wide = Math.ceil(Math.max(...xs)) - Math.floor(Math.min(...xs));
  const high = Math.ceil(Math.max(...ys)) - Math.floor(Math.min(...ys));
  const x0 = a * (-(wide - width) / 2) + b * (-(high - height) / 2) + c;
  const y0 = d * (-(wide - width) / 2) + e * (-(high - height) / 2) + f;
  const out = blank(wide, high, channels);
  out.data.fill(beside);
  for (let v = 0; v < high; v++) {
    for (let u = 0; u < wide; u++) {
      let x = a * (u + 0.5) + b * (v + 0.5) + x0;
      let y = d * (u + 0.5) + e * (v + 0.5) + y0;
      if (x < 0 || x >= width || y < 0 || y >= height) continue;
      x -= 0.5;
      y -= 0.5;
      const [left, top] = [Math.floor(x), Math.floor(y)];
      const [p, q] = [x - left, y - top];
      const l = Math.max(0, left), r = Math.min(width - 1, left + 1);
      const upper = Math.max(0, top) * width, lower = Math.min(height - 1, top + 1) * width;
      for (let k = 0; k < channels; k++) {
        const above = mix(data[(upper + l) * channels + k], data[(upper + r) * channels + k], p);
        const below = mix(data[(lower + l) * channels + k], data[(lower + r) * channels + k], p);
        out.data[(v * wide + u) * channels + k] = Math.trunc(mix(above, below, q));
      }
    }
  }
  return out;
}

function mix(a, b, share) {
  return a + (b - a) * share;
}

/** @param {Picture} picture @param {number} turns against the clock @returns {Picture} */
function quarterTurns(picture, turns) {
  const { width, height, channels, data } = picture;
  const out = turns === 2 ? blank(width, height, channels) : blank(height, width, channels);
  for (let y = 0; y < out.height; y++) {
    for (let x = 0; x < out.width; x++) {
      const [u, v] = [[width - 1 - y, x], [width - 1 - x, height - 1 - y], [y, height - 1 - x]][turns - 1];
      for (let c = 0; c < channels; c++) {
        out.data[(y * out.width + x) * channels + c] = data[(v * width + u) * channels + c];
      }
    }
  }
  return out;
}
