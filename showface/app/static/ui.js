/** Small helpers for the page's elements: look up, show messages, open dialogs, save files. */

/**
 * @param {string} id
 * @returns {any} the element
 */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element #${id}`);
  return element;
}

let hideTimer = 0;

/**
 * Show a message above the photo, and say it to screen readers. An error stays until it is closed.
 *
 * @param {string} text "" takes the message away
 * @param {"" | "error"} kind
 */
export function say(text, kind = "") {
  const toast = byId("toast");
  toast.dataset.kind = text ? kind || "info" : "";
  byId("status").textContent = kind ? "" : text;
  byId("error").textContent = kind ? text : "";
  clearTimeout(hideTimer);
  if (text && !kind) hideTimer = window.setTimeout(() => say(""), 4000 + 60 * text.length);
}

/** @param {unknown} error */
export function sayError(error) {
  say(sentence(error instanceof Error ? error.message : String(error)), "error");
}

/** Notes and errors of the server are sentences without a capital and a full stop. @param {string} text */
export function sentence(text) {
  return text && `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/**
 * Open a dialog. It is closed by its buttons, by Esc and by a click beside it.
 *
 * @param {string} id
 */
export function openDialog(id) {
  const dialog = byId(id);
  if (!dialog.dataset.ready) {
    dialog.dataset.ready = "yes";
    for (const button of dialog.querySelectorAll("[data-close]")) {
      button.addEventListener("click", () => dialog.close(button.value));
    }
    // A click also ends where text inside was selected with a drag that went too far.
    let beganBeside = false;
    dialog.addEventListener("pointerdown", (event) => {
      beganBeside = isBeside(dialog, event);
    });
    dialog.addEventListener("click", (event) => {
      if (beganBeside && isBeside(dialog, event)) dialog.close();
    });
  }
  dialog.showModal();
}

/**
 * Whether a click is on the page behind a dialog. Like its padding, that counts as a part of the dialog.
 *
 * @param {HTMLDialogElement} dialog
 * @param {MouseEvent} event
 * @returns {boolean}
 */
function isBeside(dialog, { target, clientX: x, clientY: y }) {
  const { left, top, right, bottom } = dialog.getBoundingClientRect();
  return target === dialog && (x < left || x > right || y < top || y > bottom);
}

/**
 * Ask a question. All but the button with the value "yes" means no.
 *
 * @param {string} id of the dialog
 * @returns {Promise<boolean>}
 */
export function ask(id) {
  const dialog = byId(id);
  dialog.returnValue = "";
  openDialog(id);
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

/**
 * Let the browser ask, in its own words, before the page is closed or loaded again.
 *
 * @param {boolean} isAsked
 */
export function askOnLeave(isAsked) {
  if (isAsked) window.addEventListener("beforeunload", keepPage);
  else window.removeEventListener("beforeunload", keepPage);
}

/** @param {BeforeUnloadEvent} event */
function keepPage(event) {
  event.preventDefault();
  event.returnValue = true; // older browsers
}

/** @returns {boolean} */
export function isDialogOpen() {
  return document.querySelector("dialog[open]") !== null;
}

/**
 * Save a file as a download.
 *
 * @param {Blob} blob
 * @param {string} name
 */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/**
 * @param {number} share 0 to 1
 * @returns {string} such as "12%" or "0.3%"
 */
export function percent(share) {
  const value = 100 * share;
  if (value > 0 && value < 0.1) return "less than 0.1%";
  return `${value < 10 ? Number(value.toFixed(1)) : Math.round(value)}%`;
}
