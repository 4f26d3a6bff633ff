/** What the panel and the bar with the button "Fill" show of a photo. */

import { byId, percent, sentence } from "./ui.js";

/** @typedef {import("./photos.js").Photo} Photo */

// Of a covered face little is seen before the hole is filled.
export const NO_FACE = "No face was found yet. It is looked for again when the hole is filled.";
const MEASURE = 150; // milliseconds after the last change
let measuring = 0;
/** The mask whose share is shown. */
let measured = "";

/** @param {Photo | null} photo */
export function showPanel(photo) {
  for (const id of ["invert", "clear", "grow", "import", "export"]) byId(id).disabled = !photo;
  byId("undo").disabled = !photo?.mask.canUndo;
  byId("redo").disabled = !photo?.mask.canRedo;
  byId("faces-text").textContent = photo ? facesText(photo) : "";
  byId("result-section").hidden = !photo?.result;
  byId("quick-download").hidden = !photo?.result || photo.run !== null;
  if (!photo) return;
  showShare(photo);
  if (photo.result) showResult(photo);
}

/** @param {Photo} photo */
function showShare(photo) {
  const text = byId("hole-text");
  const name = `${photo.mask.number} ${photo.mask.key}`;
  if (name === measured) return;
  measured = name;
  clearTimeout(measuring);
  if (photo.mask.isBlank) {
    text.textContent = "Paint over what is to be filled.";
    return;
  }
  const show = () => {
    text.textContent = `${percent(photo.mask.share())} of the photo is marked.`;
  };
  measuring = window.setTimeout(show, MEASURE);
}

/** @param {Photo} photo @returns {string} */
function facesText({ faces, facesError }) {
  if (facesError) return `Faces were not looked for: ${facesError}`;
  if (!faces) return "Looking for faces…";
  if (!faces.length) return NO_FACE;
  return faces.length === 1 ? "1 face was found." : `${faces.length} faces were found.`;
}

/** @param {Photo} photo */
function showResult({ result, format, run }) {
  const faces = result.faces ? `${result.faces === 1 ? "1 face" : `${result.faces} faces`} and ` : "";
  const time = `${(result.milliseconds / 1000).toFixed(1)}\u00a0s`;
  byId("result-text").textContent = `${faces}${percent(result.holeRatio)} of the photo filled in ${time}.`;
  byId("notes").replaceChildren(
    ...result.notes.map((note) => Object.assign(document.createElement("li"), { textContent: sentence(note) })),
  );
  const same = byId("download-same");
  same.hidden = format === "PNG" || format === "GIF";
  same.disabled = run !== null;
  same.querySelector("span").textContent = format ? `Download ${format}` : "Download in the photo's format";
}

/** @param {Photo | null} photo */
export function showRun(photo) {
  const run = photo?.run ?? null;
  const button = byId("run");
  button.hidden = run !== null;
  button.disabled = !photo || photo.mask.isBlank;
  button.textContent = photo?.result ? "Fill again" : "Fill";
  byId("cancel").hidden = run === null;
  byId("progress-box").hidden = run === null;
  if (!run) return;
  byId("progress-text").textContent = `${run.stage[0].toUpperCase()}${run.stage.slice(1)}…`;
  const bar = byId("progress");
  if (run.fraction > 0) bar.value = run.fraction;
  else bar.removeAttribute("value");
}
