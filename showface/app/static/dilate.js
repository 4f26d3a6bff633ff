/** Grow a mask by a disc: every pixel within a distance of the mask joins it. */

/**
 * Grow a mask in place. The distances are exact and Euclidean (the two passes of Meijster, Roerdink and Hesselink,
 * 2000), so the time does not depend on the radius.
 *
 * @param {Uint8Array} mask width * height values, 0 or 1
 * @param {number} width
 * @param {number} height
 * @param {number} radius pixels; the centres of joined pixels lie at most this far from the centre of a mask pixel
 */
export function dilate(mask, width, height, radius) {
  const box = bounds(mask, width, height);
  if (!box || radius < 1) return;
  const reach = Math.ceil(radius);
  const left = Math.max(0, box.left - reach), right = Math.min(width, box.right + reach);
  const top = Math.max(0, box.top - reach), bottom = Math.min(height, box.bottom + reach);
  const columns = right - left, rows = bottom - top;
  const far = reach + 1; // all larger distances are alike

  // First pass: the distance to the nearest mask pixel of the same column.
  const vertical = new Int32Array(columns * rows);
  for (let x = 0; x < columns; x++) {
    let distance = far;
    for (let y = 0; y < rows; y++) {
      distance = mask[(top + y) * width + left + x] ? 0 : Math.min(far, distance + 1);
      vertical[y * columns + x] = distance;
    }
    distance = far;
    for (let y = rows - 1; y >= 0; y--) {
      const at = y * columns + x;
      distance = vertical[at] === 0 ? 0 : Math.min(far, distance + 1);
      if (distance < vertical[at]) vertical[at] = distance;
    }
  }

  // Second pass: the lower envelope of one parabola a column, row by row.
  const limit = radius * radius;
  const apex = new Int32Array(columns), start = new Int32Array(columns);
  for (let y = 0; y < rows; y++) {
    const row = vertical.subarray(y * columns, (y + 1) * columns);
    const value = (x, i) => (x - i) * (x - i) + row[i] * row[i];
    const crossing = (i, u) => Math.floor((u * u - i * i + row[u] * row[u] - row[i] * row[i]) / (2 * (u - i)));
    let last = 0;
    apex[0] = 0;
    start[0] = 0;
    for (let u = 1; u < columns; u++) {
      while (last >= 0 && value(start[last], apex[last]) > value(start[last], u)) last--;
      if (last < 0) {
        last = 0;
        apex[0] = u;
        start[0] = 0;
      } else {
        const from = 1 + crossing(apex[last], u);
        if (from < columns) {
          last++;
          apex[last] = u;
          start[last] = from;
        }
      }
    }
    const out = (top + y) * width + left;
    for (let x = columns - 1; x >= 0; x--) {
      if (value(x, apex[last]) <= limit) mask[out + x] = 1;
      if (x === start[last]) last--;
    }
  }
}

/**
 * The smallest box that holds the mask, or null if the mask is empty. right and bottom are exclusive.
 *
 * @param {Uint8Array} mask
 * @param {number} width
 * @param {number} height
 * @returns {{left: number, top: number, right: number, bottom: number} | null}
 */
export function bounds(mask, width, height) {
  let left = width, right = 0, top = -1, bottom = 0;
  for (let y = 0; y < height; y++) {
    const row = mask.subarray(y * width, (y + 1) * width);
    const first = row.indexOf(1);
    if (first < 0) continue;
    if (top < 0) top = y;
    bottom = y + 1;
    if (first < left) left = first;
    const end = row.lastIndexOf(1) + 1;
    if (end > right) right = end;
  }
  return top < 0 ? null : { left, top, right, bottom };
}
