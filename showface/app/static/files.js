/** Photos that come in: chosen, dropped or pasted, or the example. */

import { byId, say } from "./ui.js";

/**
 * The bundled portrait and its mask.
 *
 * @returns {Promise<File[]>}
 */
export async function fetchExample() {
  const fetchOne = async (name) => {
    const answer = await fetch(new URL(`example/${name}`, import.meta.url));
    if (!answer.ok) throw new Error("The example is missing on this server.");
    return new File([await answer.blob()], name, { type: "image/png" });
  };
  return Promise.all(["portrait.png", "mask.png"].map(fetchOne));
}

/**
 * Listen for photos.
 *
 * @param {(files: File[]) => void} onFiles
 * @param {() => boolean} isReady whether files are taken now
 */
export function acceptFiles(onFiles, isReady) {
  const take = (files) => {
    const images = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
    if (images.length) onFiles(images);
    else if (files.length) say("That is not an image. JPEG, PNG and WebP always work.", "error");
  };

  const picker = byId("photo-file");
  picker.addEventListener("change", () => {
    const files = [...picker.files];
    picker.value = "";
    take(files);
  });

  window.addEventListener("paste", (event) => {
    if (!isReady() || !event.clipboardData?.files.length) return;
    event.preventDefault();
    take(event.clipboardData.files);
  });

  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  window.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.toggleAttribute("data-drop", isReady());
  });
  window.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.removeAttribute("data-drop");
  });
  window.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    document.body.removeAttribute("data-drop");
    if (isReady()) take(event.dataTransfer.files);
  });
}
