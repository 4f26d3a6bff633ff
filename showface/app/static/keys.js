/** The keyboard. */

import { byId, isDialogOpen } from "./ui.js";

const PAN = 40; // CSS pixels for an arrow key

/**
 * Listen to the keys.
 *
 * @param {{
 *   view: import("./view.js").View, tools: import("./tools.js").Tools, pointers: import("./pointers.js").Pointers,
 *   commands: import("./buttons.js").Commands
 * }} page
 */
export function listenToKeys({ view, tools, pointers, commands }) {
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
  const arrows = { arrowleft: [PAN, 0], arrowright: [-PAN, 0], arrowup: [0, PAN], arrowdown: [0, -PAN] };
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
      command = plain[key];
      if (!command && arrows[key] && target === byId("over")) command = () => view.pan(...arrows[key]);
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
