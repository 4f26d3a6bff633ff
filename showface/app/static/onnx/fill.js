/** Push-pull: fill a hole smoothly with averages of the known colours. The same as showface/nn/fill.py. */

/** @typedef {{width: number, height: number, channels: number, data: Float32Array}} Planes channel by channel */

/** @param {number} channels @param {number} height @param {number} width @returns {Planes} */
export function planes(channels, height, width) {
  return { channels, height, width, data: new Float32Array(channels * height * width) };
}

/**
 * Fill the hole with a smooth interpolation of the known values.
 *
 * @param {Planes} image
 * @param {ArrayLike<number>} hole 1 = unknown, row by row
 * @returns {Planes} `image` where known
 */
export function pushPullFill(image, hole) {
  const { channels, width, height } = image;
  const size = width * height;
  const first = planes(channels, height, width);
  const weight = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    if (hole[i] >= 0.5) continue;
    weight[i] = 1;
    for (let c = 0; c < channels; c++) first.data[c * size + i] = image.data[c * size + i];
  }
  const levels = [{ colour: first, weight }];
  while (Math.max(levels.at(-1).colour.width, levels.at(-1).colour.height) > 1) levels.push(halve(levels.at(-1)));
  let filled = levels.at(-1).colour;
  for (const { colour, weight: share } of levels.slice(0, -1).reverse()) {
    const above = enlargeBilinear(filled, colour.height, colour.width);
    const plane = colour.width * colour.height;
    for (let c = 0; c < channels; c++) {
      for (let i = 0; i < plane; i++) {
        const at = c * plane + i;
        above.data[at] = share[i] * colour.data[at] + (1 - share[i]) * above.data[at];
      }
    }
    filled = above;
  }
  return filled;
}

/** The next coarser level: means of 2 x 2 known pixels; at an odd border, of those that there are. */
function halve({ colour, weight }) {
  const { channels, width, height } = colour;
  const out = planes(channels, Math.ceil(height / 2), Math.ceil(width / 2));
  const mass = new Float32Array(out.width * out.height);
  const sums = new Float64Array(channels);
  for (let y = 0; y < out.height; y++) {
    const bottom = Math.min(height, 2 * y + 2);
    for (let x = 0; x < out.width; x++) {
      const right = Math.min(width, 2 * x + 2);
      const count = (bottom - 2 * y) * (right - 2 * x);
      let total = 0;
      sums.fill(0);
      for (let v = 2 * y; v < bottom; v++) {
        for (let u = 2 * x; u < right; u++) {
          const at = v * width + u;
          total += weight[at];
          for (let c = 0; c < channels; c++) sums[c] += weight[at] * colour.data[c * width * height + at];
        }
      }
      const mean = total / count;
      const at = y * out.width + x;
      for (let c = 0; c < channels; c++) {
        out.data[c * out.width * out.height + at] = sums[c] / count / Math.max(mean, 1e-6);
      }
      mass[at] = Math.min(1, 4 * mean);
    }
  }
  return { colour: out, weight: mass };
}

/** Bilinear interpolation as in PyTorch, with align_corners=False. @param {Planes} image @returns {Planes} */
export function enlargeBilinear(image, height, width) {
  const out = planes(image.channels, height, width);
  const across = positions(image.width, width);
  const down = positions(image.height, height);
  for (let c = 0; c < image.channels; c++) {
    const from = c * image.width * image.height;
    for (let y = 0; y < height; y++) {
      const upper = from + down.low[y] * image.width;
      const lower = from + down.high[y] * image.width;
      const q = down.share[y];
      for (let x = 0; x < width; x++) {
        const l = across.low[x], r = across.high[x], p = across.share[x];
        const above = (1 - p) * image.data[upper + l] + p * image.data[upper + r];
        const below = (1 - p) * image.data[lower + l] + p * image.data[lower + r];
        out.data[(c * height + y) * width + x] = (1 - q) * above + q * below;
      }
    }
  }
  return out;
}

function positions(from, to) {
  const low = new Int32Array(to), high = new Int32Array(to), share = new Float32Array(to);
  for (let i = 0; i < to; i++) {
    const at = Math.max(0, ((i + 0.5) * from) / to - 0.5);
    low[i] = Math.min(from - 1, Math.floor(at));
    high[i] = Math.min(from - 1, low[i] + 1);
    share[i] = at - low[i];
  }
  return { low, high, share };
}
