/** Fill the hole of a photo, with progress and cancel; and get the result in the photo's own format. */

import { decode } from "./photos.js";

/** @typedef {import("./photos.js").Photo} Photo */
/** @typedef {import("./engine.js").Engine} Engine */

/**
 * Fill the hole of a photo. The result is kept in `photo.result`.
 *
 * @param {Engine} engine
 * @param {Photo} photo
 * @param {{model: string, detail: number | null, faces: boolean}} options
 * @param {() => void} onUpdate called when `photo.run` changes
 * @returns {Promise<boolean>} false if it was cancelled
 * @throws {Error} with a sentence for the user
 */
export async function fillPhoto(engine, photo, { model, detail, faces }, onUpdate) {
  const isDone = await unlessCancelled(photo, onUpdate, async (signal, onProgress) => {
    const mask = await photo.mask.toPng();
    if (!mask.count) throw new Error("The mask is empty. Paint over the part that is to be filled first.");
    if (signal.aborted) return false;
    const request = { photo: photo.file, mask: mask.blob, model, detail, faces, format: "png" };
    const answer = await engine.inpaint({ ...request, signal, onProgress });
    const picture = await decode(answer.blob);
    const made = { mask: mask.blob, maskKey: mask.key, model, detail, usedFaces: faces };
    const download = { isDone: false, before: photo.download };
    photo.result = { ...answer, ...made, picture, same: null, download };
    return true;
  });
  return isDone ?? false;
}

/**
 * The result in the photo's own format, with what the photo carried. It is filled again, since only the program that
 * fills can write it; it is kept, so that this happens once.
 *
 * @param {Engine} engine
 * @param {Photo} photo
 * @param {() => void} onUpdate
 * @returns {Promise<import("./engine.js").Answer | null>} null if it was cancelled
 */
export async function resultInOwnFormat(engine, photo, onUpdate) {
  const result = photo.result;
  if (result.same) return result.same;
  return unlessCancelled(photo, onUpdate, async (signal, onProgress) => {
    result.same = await engine.inpaint({
      photo: photo.file, mask: result.mask, model: result.model, detail: result.detail, faces: result.usedFaces,
      format: "same", signal, onProgress,
    });
    return result.same;
  });
}

/**
 * Do work that the user can cancel, and show it as `photo.run` meanwhile.
 *
 * @template T
 * @param {Photo} photo
 * @param {() => void} onUpdate called when `photo.run` changes
 * @param {(signal: AbortSignal, onProgress: (stage: string, fraction: number) => void) => Promise<T>} work
 * @returns {Promise<T | null>} null if it was cancelled
 */
async function unlessCancelled(photo, onUpdate, work) {
  const { controller, onProgress } = start(photo, onUpdate);
  try {
    return await work(controller.signal, onProgress);
  } catch (error) {
    if (controller.signal.aborted) return null;
    throw error;
  } finally {
    photo.run = null;
    onUpdate();
  }
}

/** @param {Photo} photo @param {() => void} onUpdate */
function start(photo, onUpdate) {
  const controller = new AbortController();
  const run = { controller, stage: "starting", fraction: 0, began: performance.now() };
  photo.run = run;
  onUpdate();
  const onProgress = (stage, fraction) => {
    if (photo.run !== run) return;
    Object.assign(run, { stage, fraction });
    onUpdate();
  };
  return { controller, onProgress };
}
