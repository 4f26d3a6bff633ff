/** Fill photos by the showface server that serves this page. */

/** @typedef {import("./engine.js").Engine} Engine */

const POLL = 250; // milliseconds
const TOKEN = "showface-token";
const LOCAL = ["localhost", "127.0.0.1", "[::1]"];

/** @returns {Engine} */
export function createEngine() {
  takeToken();
  const isLocal = LOCAL.includes(location.hostname);
  return {
    models,
    faces,
    inpaint,
    privacy: isLocal
      ? "Your photo stays on this machine."
      : "Your photo goes only to the showface server that serves this page, which stores nothing.",
  };
}

/** Keep the token that came in the address, and take it out of the address bar. */
function takeToken() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return;
  sessionStorage.setItem(TOKEN, token);
  history.replaceState(null, "", location.pathname + location.search);
}

/** @returns {Promise<import("./engine.js").Model[]>} */
async function models() {
  const { models: all, default: first } = await (await call("api/models")).json();
  return all.sort((a, b) => Number(b.name === first) - Number(a.name === first));
}

/** @param {Blob} photo @param {AbortSignal} [signal] @returns {Promise<import("./engine.js").Faces>} */
async function faces(photo, signal) {
  const form = new FormData();
  form.append("photo", photo, nameOf(photo));
  return (await call("api/faces", { method: "POST", body: form, signal })).json();
}

/** @param {import("./engine.js").Request} request @returns {Promise<import("./engine.js").Answer>} */
async function inpaint({ photo, mask, model, detail, faces: withFaces, format, signal, onProgress }) {
  const job = newJob();
  const form = new FormData();
  form.append("photo", photo, nameOf(photo));
  form.append("mask", mask, "mask.png");
  form.append("faces", String(withFaces));
  form.append("format", format);
  form.append("job", job);
  if (model) form.append("model", model);
  if (typeof detail === "number") form.append("detail", String(detail));
  onProgress?.("sending the photo", 0);
  const stop = onProgress ? watch(job, onProgress) : () => {};
  try {
    const answer = await call("api/inpaint", { method: "POST", body: form, signal });
    const header = (name) => answer.headers.get(`X-Showface-${name}`);
    return {
      blob: await answer.blob(),
      name: fileName(answer.headers.get("Content-Disposition")),
      faces: Number(header("Faces")),
      holeRatio: Number(header("Hole-Ratio")),
      milliseconds: Number(header("Milliseconds")),
      notes: JSON.parse(header("Notes") ?? "[]"),
    };
  } finally {
    stop();
  }
}

/**
 * Ask for a job's progress until stopped.
 *
 * @param {string} job
 * @param {(stage: string, fraction: number) => void} onProgress
 * @returns {() => void} stops it
 */
function watch(job, onProgress) {
  let isOver = false;
  const ask = async () => {
    if (isOver) return;
    try {
      const { state, position, stage, fraction } = await (await call(`api/jobs/${job}`)).json();
      if (isOver) return;
      if (state === "queued") onProgress(position > 0 ? `waiting, ${position} before` : "waiting", 0);
      if (state === "running") onProgress(stage, fraction);
    } catch {
      // The answer to the job itself says what is wrong.
    }
    setTimeout(ask, POLL);
  };
  setTimeout(ask, POLL);
  return () => {
    isOver = true;
  };
}

/**
 * fetch with the token. An error of the server becomes an Error with the server's sentence, and with the seconds after
 * which to try again if the server names them.
 *
 * @param {string} path relative to the page
 * @param {RequestInit} options
 * @returns {Promise<Response>}
 */
async function call(path, options = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Error("The showface server can't be reached. Is it still running?");
  }
  if (answer.ok) return answer;
  if (answer.status === 401) throw new Error("Open the address that showface app printed: it ends in #token=…");
  const retryAfter = answer.status === 429 ? Number(answer.headers.get("Retry-After")) : 0;
  throw Object.assign(new Error(await sentence(answer)), { retryAfter });
}

/** @param {Response} answer @returns {Promise<string>} */
async function sentence(answer) {
  try {
    const { detail } = await answer.json();
    if (typeof detail === "string") return detail;
  } catch {
    // not JSON
  }
  return `The server answered with an error (${answer.status}).`;
}

/** @param {Blob} photo @returns {string} */
function nameOf(photo) {
  return photo instanceof File && photo.name ? photo.name : "photo";
}

/** The name in a Content-Disposition header, or "". @param {string | null} header @returns {string} */
function fileName(header) {
  const encoded = /filename\*=(?:UTF-8|utf-8)''([^;]+)/.exec(header ?? "");
  if (encoded) return decodeURIComponent(encoded[1]);
  return /filename="?([^";]+)"?/.exec(header ?? "")?.[1] ?? "";
}

/** An id that others can't guess. crypto.randomUUID is missing on a page that came over plain HTTP. @returns {string} */
function newJob() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
