/** Look for the faces of a photo, for as long as it is shown. */

import { sentence } from "./ui.js";

/** @typedef {import("./photos.js").Photo} Photo */
/** @typedef {import("./engine.js").Faces} Faces */

const TRIES = 3; // while the server's queue is full

/**
 * Look for the faces of a photo. What was found, or the error, is kept in the photo. `photo.search` stops it.
 *
 * @param {Photo} photo
 * @param {(signal: AbortSignal) => Promise<Faces>} find
 * @returns {Promise<boolean>} false if it was stopped
 */
export async function searchFaces(photo, find) {
  const search = new AbortController();
  photo.search = search;
  photo.facesError = "";
  try {
    photo.faces = (await patiently(find, search.signal)).faces;
  } catch (error) {
    if (!search.signal.aborted) photo.facesError = sentence(error.message);
  }
  if (search.signal.aborted) return false;
  photo.search = null;
  return true;
}

/**
 * Ask again where the server has no room, after the time it names.
 *
 * @param {(signal: AbortSignal) => Promise<Faces>} find
 * @param {AbortSignal} signal
 */
async function patiently(find, signal) {
  for (let tries = 1; ; tries++) {
    try {
      return await find(signal);
    } catch (error) {
      if (!error.retryAfter || tries === TRIES) throw error;
      await pause(1000 * error.retryAfter, signal);
    }
  }
}

/** @param {number} milliseconds @param {AbortSignal} signal ends it with an error */
function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
