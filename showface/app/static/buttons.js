/** The buttons, each with its command. The keys for the same commands are in keys.js. */

import { byId, openDialog, say } from "./ui.js";

/**
 * The commands of the page.
 *
 * @typedef {{
 *   pickPhotos: () => void, openExample: () => void, run: () => void, cancel: () => void, clickCancel: () => void,
 *   undo: () => void, redo: () => void, change: (step: any) => void,
 *   importMask: () => void, exportMask: () => void, setMode: (mode: "edit" | "compare") => void,
 *   toggleMode: () => void, downloadPng: () => void, downloadOwnFormat: () => void, goOn: () => void,
 *   toggleOptions: () => void, help: () => void
 * }} Commands
 */

/**
 * Listen to the buttons.
 *
 * @param {Commands} commands
 * @param {import("./view.js").View} view
 */
export function listenToButtons(commands, view) {
  const handlers = {
    open: commands.pickPhotos,
    choose: commands.pickPhotos,
    add: commands.pickPhotos,
    example: commands.openExample,
    run: commands.run,
    cancel: commands.clickCancel,
    undo: commands.undo,
    redo: commands.redo,
    invert: () => commands.change({ kind: "invert" }),
    clear: () => commands.change({ kind: "clear" }),
    grow: () => commands.change({ kind: "grow", by: growBy() }),
    import: () => byId("mask-file").click(),
    export: commands.exportMask,
    "mode-edit": () => commands.setMode("edit"),
    "mode-compare": () => {
      commands.setMode("compare");
      byId("split").focus();
    },
    "zoom-in": () => view.zoom(1.25),
    "zoom-out": () => view.zoom(0.8),
    "zoom-fit": () => view.fit(),
    "download-png": commands.downloadPng,
    "quick-download": commands.downloadPng,
    "download-same": commands.downloadOwnFormat,
    "go-on": commands.goOn,
    options: commands.toggleOptions,
    "toast-close": () => say(""),
    "help-open": commands.help,
    "about-open": () => openDialog("about"),
    "about-from-help": () => {
      byId("help").close();
      openDialog("about");
    },
  };
  for (const [id, handler] of Object.entries(handlers)) byId(id).addEventListener("click", () => handler());
  byId("mask-file").addEventListener("change", commands.importMask);
  byId("faces-show").addEventListener("change", () => view.invalidate("over"));

  // After a click on a tool, space moves the photo and does not press the tool again.
  for (const id of ["toolbar", "zoom"]) {
    byId(id).addEventListener("click", ({ detail, target }) => {
      if (detail && target.closest(".icon-button:not(#options)")) byId("over").focus({ preventScroll: true });
    });
  }
}

/** @returns {number} pixels of the photo */
function growBy() {
  return Math.min(500, Math.max(1, Math.round(Number(byId("grow-by").value)) || 1));
}
