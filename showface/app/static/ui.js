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
 * Open a dialog. It is closed by its button, by Esc and by a click beside it.
 *
 * @param {string} id
 */
export function openDialog(id) {
  const dialog = byId(id);
  if (!dialog.dataset.ready) {
    dialog.dataset.ready = "yes";
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close();
    });
  }
  dialog.showModal();
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
