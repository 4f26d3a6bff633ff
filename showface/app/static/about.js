/** What the page says about the engine: the models to choose from, their licences, and where the photo goes. */

import { byId, sayError, sentence } from "./ui.js";

/** @param {import("./engine.js").Engine} engine */
export async function describeEngine(engine) {
  for (const place of document.querySelectorAll(".privacy")) place.textContent = engine.privacy ?? "";
  let models;
  try {
    models = await engine.models();
  } catch (error) {
    sayError(error);
    return;
  }
  const chosen = byId("model");
  chosen.replaceChildren(...models.map(({ name }) => new Option(name, name)));
  const describe = () => {
    const model = models.find(({ name }) => name === chosen.value);
    byId("model-text").textContent = sentence(model?.description ?? "");
    byId("detail-section").hidden = typeof model?.detail !== "number";
    if (typeof model?.detail === "number") byId("detail").value = String(model.detail);
  };
  chosen.addEventListener("change", describe);
  describe();
  byId("model-section").hidden = models.length < 2;
  byId("licences").replaceChildren(...models.map(licenceEntry));
}

/** What the slider says, 0 = smooth to 1 = sharp; null if the model has no choice. @returns {number | null} */
export function chosenDetail() {
  return byId("detail-section").hidden ? null : Number(byId("detail").value);
}

/** @param {import("./engine.js").Model} model */
function licenceEntry({ name, licence }) {
  const entry = document.createElement("div");
  const term = document.createElement("dt");
  const text = document.createElement("dd");
  term.textContent = name;
  text.textContent = sentence(licence);
  entry.append(term, text);
  return entry;
}
