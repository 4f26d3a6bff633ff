/** The page: what its parts do when something is pressed, and what they show. */

import { chosenDetail, describeEngine } from "./about.js";
import { listenToButtons } from "./buttons.js";
import { Compare } from "./compare.js";
import { Detail } from "./detail.js";
import { loadEngine } from "./engine.js";
import { acceptFiles, fetchExample } from "./files.js";
import { fillPhoto, resultInOwnFormat } from "./fill.js";
import { listenToKeys } from "./keys.js";
import { readMaskFile } from "./mask.js";
import { openPhoto, Photo, Photos } from "./photos.js";
import { NO_FACE, showPanel, showRun } from "./panel.js";
import { Pointers } from "./pointers.js";
import { searchFaces } from "./search.js";
import { Strip } from "./strip.js";
import { Tools } from "./tools.js";
import { ask, askOnLeave, byId, isDialogOpen, openDialog, save, say, sayError, sentence } from "./ui.js";
import { View } from "./view.js";

const DOUBLE_CLICK = 500; // milliseconds

const photos = new Photos();
const current = () => photos.current;
const view = new View();
const detail = new Detail(view, current);
const compare = new Compare(view);
const tools = new Tools(view, current, () => {
  const photo = current();
  if (photo?.mode === "compare" && tools.name !== "hand") setMode("edit");
  update();
});
const pointers = new Pointers(view, tools, compare, current);
const strip = new Strip(choose, askAndClose);
/** @type {import("./engine.js").Engine} */
let engine;
const engineIsReady = start();

async function start() {
  engine = await loadEngine();
  await describeEngine(engine);
}
engineIsReady.catch(sayError);

/** Show the state of the current photo everywhere but on the canvases. */
function update() {
  const photo = current();
  document.body.toggleAttribute("data-empty", !photo);
  strip.update(photos.all, photo);
  askOnLeave(photos.all.some((each) => each.isUnsaved));
  showPanel(photo);
  showRun(photo);
  if (!photo) return;
  byId("modes").hidden = !photo.result;
  byId("mode-edit").setAttribute("aria-pressed", String(photo.mode === "edit"));
  byId("mode-compare").setAttribute("aria-pressed", String(photo.mode === "compare"));
  byId("over").toggleAttribute("data-compare", photo.mode === "compare");
  tools.sizeChanged();
}

/**
 * Show the current photo on the canvases.
 *
 * @param {boolean} keep keep the zoom
 */
function showPhoto(keep = false) {
  const photo = current();
  view.show(photo?.picture ?? null, photo?.result?.picture ?? null, photo?.mask.canvas ?? null, keep);
  detail.update();
  compare.show(photo?.mode === "compare");
  update();
}

/** @param {"edit" | "compare"} mode */
function setMode(mode) {
  const photo = current();
  if (!photo || (mode === "compare" && !photo.result)) return;
  tools.cancel();
  photo.mode = mode;
  detail.update();
  compare.show(mode === "compare");
  view.invalidate("over");
  update();
}

/** @param {File[]} files */
async function open(files) {
  const problems = [];
  let isFirst = true;
  for (const file of files) {
    try {
      say(`Opening ${file.name}`);
      const photo = await openPhoto(file);
      photos.add(photo);
      if (isFirst || !current()) await choose(photo);
      isFirst = false;
    } catch (error) {
      problems.push(sentence(error.message));
    }
  }
  say(problems.join(" "), problems.length ? "error" : "");
  update();
}

/** @param {Photo} photo */
async function choose(photo) {
  try {
    // A step that was begun while the photo was decoded belongs to the photo before.
    if (!(await photos.choose(photo, () => tools.cancel()))) return;
  } catch (error) {
    sayError(error);
    return;
  }
  view.onMove();
  showPhoto();
  if (!photo.faces && !photo.search) findFaces(photo);
}

/** @param {Photo} photo */
async function askAndClose(photo) {
  byId("closing-name").textContent = photo.file.name;
  if (photo.isUnsaved && !(await ask("closing"))) return;
  await close(photo);
  // The button that had the focus is gone.
  if (isFocusLost()) byId("over").focus({ preventScroll: true });
}

/** @param {Photo} photo */
async function close(photo) {
  tools.cancel();
  const next = photos.remove(photo);
  if (next) await choose(next);
  else if (!current()) showPhoto();
  else update();
}

/** @param {Photo} photo */
async function findFaces(photo) {
  const find = async (signal) => {
    await engineIsReady;
    return engine.faces(photo.file, signal);
  };
  if (!(await searchFaces(photo, find))) return;
  // An error stays; the panel says it too.
  if (photo.faces?.length === 0 && !byId("error").textContent) say(NO_FACE);
  view.invalidate("over");
  update();
}

async function run() {
  const photo = current();
  if (!photo || photo.run) return;
  say("");
  try {
    await engineIsReady;
    const options = { model: byId("model").value, detail: chosenDetail(), faces: byId("faces-use").checked };
    const isFocused = byId("run").matches(":focus-visible");
    const filling = fillPhoto(engine, photo, options, update);
    if (isFocused) byId("cancel").focus();
    if (!(await filling)) say("Cancelled. Mask and photo are as they were.");
    else if (photo === current()) {
      photo.mode = "compare";
      showPhoto(true);
      const { notes, milliseconds } = photo.result;
      say(notes.length ? notes.map(sentence).join(" ") : `Filled in ${(milliseconds / 1000).toFixed(1)} seconds.`);
    }
  } catch (error) {
    sayError(error);
  }
  update();
  // The button that had the focus is gone.
  if (isFocusLost()) byId(current()?.mode === "compare" ? "split" : "run").focus();
}

/** @returns {boolean} */
function isFocusLost() {
  return [document.body, byId("cancel")].includes(document.activeElement);
}

function cancel() {
  const photo = current();
  if (byId("options").getAttribute("aria-expanded") === "true") showOptions(false);
  else if (!tools.cancel()) photo?.run?.controller.abort();
}

/** A click on "Cancel". The second click of a double click on "Fill" falls on it too, and is not meant. */
function clickCancel() {
  const run = current()?.run;
  if (run && performance.now() - run.began > DOUBLE_CLICK) run.controller.abort();
}

async function downloadOwnFormat() {
  const photo = current();
  try {
    const { notes: shown } = photo.result;
    const answer = await resultInOwnFormat(engine, photo, update);
    if (!answer) return;
    save(answer.blob, answer.name || `${photo.stem}-filled`);
    photo.noteDownload();
    update();
    const notes = answer.notes.filter((note) => !shown.includes(note));
    if (notes.length) say(notes.map(sentence).join(" "));
  } catch (error) {
    sayError(error);
  }
}

function downloadPng() {
  const photo = current();
  save(photo.result.blob, photo.result.name || `${photo.stem}-filled.png`);
  photo.noteDownload();
  update();
}

/** The result becomes a photo of its own, beside the one it was made from. */
async function goOn() {
  const photo = current();
  const next = new Photo(new File([photo.result.blob], `${photo.stem}.png`, { type: "image/png" }), photo.result.picture);
  next.download = photo.result.download;
  photos.add(next, photo);
  await choose(next);
  say("This is the result, with an empty mask. The first photo stays beside it.");
}

/** @param {Omit<import("./raster.js").Step, "id">} step */
function change(step) {
  const photo = current();
  if (!photo) return;
  photo.mask.add(step);
  setMode("edit");
  view.invalidate("mask");
}

/** @param {"undo" | "redo"} direction */
function back(direction) {
  if (tools.cancel()) return;
  current()?.mask[direction]();
  setMode("edit");
  view.invalidate("mask");
}

async function importMask() {
  const [file] = byId("mask-file").files;
  byId("mask-file").value = "";
  const photo = current();
  if (!file || !photo) return;
  try {
    const step = await readMaskFile(file, photo.width, photo.height);
    if (photo === current()) change(step);
    say("The mask was imported.");
  } catch (error) {
    sayError(error);
  }
}

async function exportMask() {
  const photo = current();
  try {
    const { blob, key } = await photo.mask.toPng();
    save(blob, `${photo.stem}-mask.png`);
    photo.exported = key;
    update();
  } catch (error) {
    sayError(error);
  }
}

async function openExample() {
  try {
    const [portrait, mask] = await fetchExample();
    await open([portrait]);
    const photo = current();
    if (photo?.file === portrait) change(await readMaskFile(mask, photo.width, photo.height));
  } catch (error) {
    sayError(error);
  }
}

/** @param {boolean} areShown */
function showOptions(areShown) {
  byId("options").setAttribute("aria-expanded", String(areShown));
  byId("panel").toggleAttribute("data-open", areShown);
}

/** @type {import("./buttons.js").Commands} */
const commands = {
  pickPhotos: () => byId("photo-file").click(),
  openExample,
  run,
  cancel,
  clickCancel,
  undo: () => back("undo"),
  redo: () => back("redo"),
  change,
  importMask,
  exportMask,
  setMode,
  toggleMode: () => setMode(current()?.mode === "compare" ? "edit" : "compare"),
  downloadPng,
  downloadOwnFormat,
  goOn,
  toggleOptions: () => showOptions(byId("options").getAttribute("aria-expanded") !== "true"),
  help: () => openDialog("help"),
};
listenToButtons(commands, view);
listenToKeys({ view, compare, tools, pointers, commands });
acceptFiles(open, () => !isDialogOpen());
byId("over").addEventListener("pointerdown", () => showOptions(false));
view.onMove = () => {
  byId("zoom-text").textContent = `${Math.round(100 * view.scale)}%`;
  compare.place();
};
update();
