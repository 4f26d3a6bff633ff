/** Fill the hole of a photo, with progress and cancel; and get the result in the photo's own format. */

import { decode } from "./photos.js";

/** @typedef {import("./photos.js").Photo} Photo */
/** @typedef {import("./engine.js").Engine} Engine */

/**
 * Fill the hole of a photo. The result is kept in `photo.result`.
 *
 * @param {Engine} engine
 * @param {Photo} photo
 * @param {{model: string, faces: boolean}} options
 * @param {() => void} onUpdate called when `photo.run` changes
 * @returns {Promise<boolean>} false if it was cancelled
 * @throws {Error} with a sentence for the user
 */
export async function fillPhoto(engine, photo, { model, faces }, onUpdate) {
  const { controller, onProgress } = start(photo, onUpdate);
  try {
    const mask = await photo.mask.toPng();
    if (!mask.count) throw new Error("The mask is empty. Paint over the part that is to be filled first.");
    if (controller.signal.aborted) return false;
    const request = { photo: photo.file, mask: mask.blob, model, faces, format: "png" };
    const answer = await engine.inpaint({ ...request, signal: controller.signal, onProgress });
    const picture = await decode(answer.blob);
    photo.result = { ...answer, picture, mask: mask.blob, model, usedFaces: faces, same: null };
    return true;
  } catch (error) {
    if (controller.signal.aborted) return false;
    throw error;
  } finally {
    photo.run = null;
    onUpdate();
  }
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
  const { controller, onProgress } = start(photo, onUpdate);
  try {
    result.same = await engine.inpaint({
      photo: photo.file, mask: result.mask, model: result.model, faces: result.usedFaces, format: "same",
      signal: controller.signal, onProgress,
    });
    return result.same;
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
  const run = { controller, stage: "sending the photo", fraction: 0, began: performance.now() };
  photo.run = run;
  onUpdate();
  const onProgress = (stage, fraction) => {
    if (photo.run !== run) return;
    Object.assign(run, { stage, fraction });
    onUpdate();
  };
  return { controller, onProgress };
}
