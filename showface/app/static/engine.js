/**
 * Choose what fills the photos: the showface server that serves this page, or, on a static host, the model in the
 * browser. The file engine-config.json beside this one says which.
 */

/**
 * @typedef {{name: string, description: string, licence: string, detail?: number | null}} Model
 *   detail is the usual one, 0 = smooth to 1 = sharp; none if it can't be chosen
 * @typedef {{box: number[], points: number[][], score: number}} Face box is left, top, right, bottom
 * @typedef {{width: number, height: number, faces: Face[]}} Faces
 * @typedef {{
 *   photo: Blob, mask: Blob, model?: string, detail?: number | null, faces: boolean, format: "png" | "same", signal?: AbortSignal,
 *   onProgress?: (stage: string, fraction: number) => void
 * }} Request the mask is a PNG of the upright photo's size, white = hole
 * @typedef {{
 *   blob: Blob, name: string, faces: number, holeRatio: number, milliseconds: number, notes: string[]
 * }} Answer
 * @typedef {{
 *   models: () => Promise<Model[]>, faces: (photo: Blob, signal?: AbortSignal) => Promise<Faces>,
 *   inpaint: (request: Request) => Promise<Answer>, privacy?: string
 * }} Engine the default model comes first; errors are sentences for the user, with the seconds to wait as `retryAfter`
 *   where it is worth trying again; what its signal cancels throws AbortError
 */

/** @returns {Promise<Engine>} */
export async function loadEngine() {
  const name = await configuredName();
  const module = name === "onnx" ? await import("./engine-onnx.js") : await import("./engine-server.js");
  return module.createEngine();
}

/** @returns {Promise<string>} */
async function configuredName() {
  try {
    const answer = await fetch(new URL("engine-config.json", import.meta.url));
    return answer.ok ? ((await answer.json()).engine ?? "server") : "server";
  } catch {
    return "server";
  }
}
