/** A worker that draws a mask at the photo's full size and encodes it as a PNG. */

import { encodePng } from "./png.js";
import { drawSteps, readMask } from "./raster.js";

self.onmessage = async ({ data: { id, width, height, steps } }) => {
  try {
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    drawSteps(context, steps, 1);
    const mask = readMask(context);
    let count = 0;
    for (let i = 0; i < mask.length; i++) count += mask[i];
    self.postMessage({ id, blob: await encodePng(mask, width, height), count });
  } catch (error) {
    self.postMessage({ id, error: String(error) });
  }
};
