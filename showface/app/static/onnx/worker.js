/** The worker in which photos are filled, so that the page stays responsive. Messages are those of ../engine-onnx.js. */

import { findFaces } from "./faces.js";
import { fillHole } from "./hole-filling.js";
import { decode, decodeMask, encode } from "./photo.js";
import { Sessions } from "./sessions.js";

const WAYS = [[0.6, false], [0.3, false], [0.6, true]]; // upright faces, then doubtful ones, then turned ones
const NO_FACE = "No face was found at the hole, which is filled as in a picture without faces.";

let sessions;
const cancelled = new Set();
let queue = Promise.resolve(); // one job at a time

self.onmessage = ({ data: { id, kind, ...request } }) => {
  if (kind === "cancel") {
    cancelled.add(request.job);
    return;
  }
  queue = queue.then(() => answer(id, kind, request));
};

async function answer(id, kind, request) {
  try {
    const result = await { open, faces, inpaint }[kind](request, id);
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: { name: error?.name ?? "Error", message: String(error?.message ?? error) } });
  }
  cancelled.delete(id);
}

/** Load a model and the face detector. */
async function open({ config, base, model }) {
  sessions ??= new Sessions(new URL(base), config);
  await Promise.all([sessions.session("faces"), sessions.session(model)]);
}

async function faces({ photo }, id) {
  const picture = await decode(photo);
  stopIfCancelled(id);
  const found = await findFaces((view) => sessions.detect(view), picture);
  return { width: picture.width, height: picture.height, faces: found };
}

async function inpaint({ photo, mask, model, size, detail, faces: withFaces, format }, id) {
  const start = performance.now();
  const picture = await decode(photo);
  const hole = await decodeMask(mask, picture);
  const pixels = hole.data.reduce((sum, x) => sum + x, 0);
  const ways = withFaces ? WAYS : [];
  let result = { image: picture, crops: [] };
  const notes = picture.isFlattened ? ["Transparent pixels became white."] : [];
  if (pixels) {
    const find = ways.map((way) => (filled) => findPoints(filled, way));
    result = await fillHole((view) => sessions.fill(model, view, detail), picture, hole, find, size, (stage, fraction) =>
      tell(id, stage, fraction),
    );
  } else {
    notes.push("The mask is empty: nothing to fill, the photo is returned unchanged.");
  }
  const found = result.crops.filter((crop) => crop.isFace).length;
  if (pixels && withFaces && !found) notes.push(NO_FACE);
  await tell(id, "setting in", 0.95);
  const { blob, suffix, notes: ofFormat } = await encode(result.image, format === "same" ? photo.type : "image/png");
  notes.push(...ofFormat);
  if (format === "same") notes.push("The browser writes the photo without its metadata.");
  const stem = (photo.name ?? "photo").replace(/\.[^.]*$/, "") || "photo";
  return {
    blob,
    name: `${stem}-filled${suffix}`,
    faces: found,
    holeRatio: pixels / hole.data.length,
    milliseconds: Math.round(performance.now() - start),
    notes,
    crops: result.crops.map(({ x, y, dx, dy, isFace }) => ({ x, y, dx, dy, isFace })),
  };
}

async function findPoints(photo, [threshold, turned]) {
  const found = await findFaces((view) => sessions.detect(view), photo, threshold, turned);
  return found.map((face) => face.points);
}

/** Report a stage, and let a cancel arrive. Throws AbortError if one did. */
async function tell(id, stage, fraction) {
  self.postMessage({ id, progress: [stage, fraction] });
  await new Promise((resolve) => setTimeout(resolve));
  stopIfCancelled(id);
}

function stopIfCancelled(id) {
  if (cancelled.has(id)) throw new DOMException("The work was cancelled.", "AbortError");
}
