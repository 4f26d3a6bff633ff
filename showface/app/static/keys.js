/** The keyboard. */

import { byId, isDialogOpen } from "./ui.js";

const PAN = 40; // CSS pixels for an arrow key

/**
 * Listen to the keys.
 *
 * @param {{
 *   view: import("./view.js").View, compare: import("./compare.js").Compare, tools: import("./tools.js").Tools,
 *   pointers: import("./pointers.js").Pointers, commands: import("./buttons.js").Commands
 * }} page
 */
export function listenToKeys({ view, compare, tools, pointers, commands }) {
  const plain = {
    b: () => tools.choose("brush"),
    e: () => tools.choose("eraser"),
    r: () => tools.choose("rectangle"),
    l: () => tools.choose("lasso"),
    h: () => tools.choose("hand"),
    c: commands.toggleMode,
    "[": () => tools.changeSize(-1),
    "]": () => tools.changeSize(1),
    "+": () => view.zoom(1.25),
    "=": () => view.zoom(1.25),
    "-": () => view.zoom(0.8),
    0: () => view.fit(),
    "?": commands.help,
  };
  // On the photo.
  const arrows = {
    arrowleft: () => (compare.isShown ? compare.step(-1) : view.pan(PAN, 0)),
    arrowright: () => (compare.isShown ? compare.step(1) : view.pan(-PAN, 0)),
    arrowup: () => view.pan(0, PAN),
    arrowdown: () => view.pan(0, -PAN),
  };
  const withControl = { z: commands.undo, y: commands.redo, enter: commands.run, o: commands.pickPhotos };

  window.addEventListener("keydown", (event) => {
    if (isDialogOpen()) return;
    const key = event.key.toLowerCase();
    const target = /** @type {HTMLElement} */ (event.target);
    if (key === "escape") {
      commands.cancel();
      return;
    }
    const types = target.matches("select, textarea, input[type=number]");
    let command;
    if (event.ctrlKey || event.metaKey) {
      if (types && key !== "enter") return;
      command = key === "z" && event.shiftKey ? commands.redo : withControl[key];
    } else if (!types && !event.altKey) {
      command = plain[key] ?? (target === byId("over") ? arrows[key] : undefined);
      if (key === " " && !target.matches("button, a, input:not([type=range])")) command = () => setSpace(true);
    }
    if (!command) return;
    event.preventDefault();
    command();
  });
  window.addEventListener("keyup", (event) => {
    if (event.key === " ") setSpace(false);
  });
  window.addEventListener("blur", () => setSpace(false));

  /** @param {boolean} isDown */
  function setSpace(isDown) {
    pointers.isSpaceDown = isDown;
    byId("over").toggleAttribute("data-space", isDown);
  }
}
