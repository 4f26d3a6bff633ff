/** Photos and masks from files, and files from photos. */

/** @typedef {import("./image.js").Picture} Picture */

/** @type {Record<string, {suffix: string, quality?: number}>} the formats that browsers write */
const FORMATS = {
  "image/png": { suffix: ".png" },
  "image/jpeg": { suffix: ".jpg", quality: 0.95 },
  "image/webp": { suffix: ".webp", quality: 0.95 },
};

/**
 * The pixels of an image, upright, in sRGB, as the result says nothing of a colour space. Transparent parts become white.
 *
 * @param {Blob} file
 * @returns {Promise<Picture & {isFlattened: boolean}>} RGB, and whether there were transparent parts
 */
export async function decode(file) {
  const { width, height, data } = await rgba(file, "default");
  const out = { width, height, channels: 3, data: new Uint8Array(width * height * 3), isFlattened: false };
  for (let i = 0; i < width * height; i++) {
    const alpha = data[4 * i + 3];
    if (alpha !== 255) out.isFlattened = true;
    for (let c = 0; c < 3; c++) {
      const value = data[4 * i + c];
      out.data[3 * i + c] = alpha === 255 ? value : Math.round((value * alpha + 255 * (255 - alpha)) / 255);
    }
  }
  return out;
}

/**
 * The hole of a mask: its white pixels.
 *
 * @param {Blob} file
 * @param {Picture} photo
 * @returns {Promise<import("./crops.js").Hole>}
 */
export async function decodeMask(file, photo) {
  const { width, height, data } = await rgba(file, "none");
  if (width !== photo.width || height !== photo.height) {
    throw new Error(`The mask is ${width} x ${height} pixels, and the photo ${photo.width} x ${photo.height}.`);
  }
  return { width, height, data: Uint8Array.from({ length: width * height }, (_, i) => Number(data[4 * i] >= 128)) };
}

/** @param {Blob} file @param {ColorSpaceConversion} colorSpaceConversion @returns {Promise<ImageData>} */
async function rgba(file, colorSpaceConversion) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion,
      premultiplyAlpha: "none",
    });
  } catch {
    throw new Error("The file is not an image that this browser can read.");
  }
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  if (!context) throw new Error("The image is too large for this browser.");
  context.drawImage(bitmap, 0, 0);
  const { width, height } = bitmap;
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/**
 * A picture as a file of this type, or as PNG where the browser doesn't write the type.
 *
 * @param {Picture} picture RGB
 * @param {string} type
 * @returns {Promise<{blob: Blob, suffix: string, notes: string[]}>} with a note if the type is another one
 */
export async function encode(picture, type) {
  const { width, height, data } = picture;
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = data[3 * i + c];
    image.data[4 * i + 3] = 255;
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  const blob = await canvas.convertToBlob({ type, quality: FORMATS[type]?.quality });
  const name = type ? type.replace("image/", "").toUpperCase() : "the photo's format";
  const notes = blob.type === type ? [] : [`This browser can't write ${name}: the result is saved as PNG.`];
  return { blob, suffix: FORMATS[blob.type]?.suffix ?? ".png", notes };
}
