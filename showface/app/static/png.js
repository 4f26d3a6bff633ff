/** Write a mask as a PNG with one bit a pixel: small, quick, and without any colour that could be changed. */

const TABLE = new Uint32Array(256).map((_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

/** @param {Uint8Array} bytes @returns {number} */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** @param {string} kind four letters @param {Uint8Array} data @returns {Uint8Array} */
function chunk(kind, data) {
  const out = new Uint8Array(data.length + 12);
  const view = new DataView(out.buffer);
  view.setUint32(0, data.length);
  for (let i = 0; i < 4; i++) out[4 + i] = kind.charCodeAt(i);
  out.set(data, 8);
  view.setUint32(data.length + 8, crc32(out.subarray(4, data.length + 8)));
  return out;
}

/**
 * Pack a mask into rows of bits, each row starting with a new byte.
 *
 * @param {Uint8Array} mask width * height values, 0 or 1
 * @param {number} width
 * @param {number} height
 * @returns {Uint8Array}
 */
export function packBits(mask, width, height) {
  const stride = (width + 7) >> 3;
  const bits = new Uint8Array(stride * height);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if (mask[at]) bits[y * stride + (x >> 3)] |= 128 >> (x & 7);
    }
  }
  return bits;
}

/**
 * Encode a mask as a greyscale PNG, white where it is 1.
 *
 * @param {Uint8Array} mask width * height values, 0 or 1
 * @param {number} width
 * @param {number} height
 * @returns {Promise<Blob>}
 */
export async function encodePng(mask, width, height) {
  const bits = packBits(mask, width, height);
  const stride = (width + 7) >> 3;
  const lines = new Uint8Array((stride + 1) * height); // each line starts with the number of its filter: 0, none
  for (let y = 0; y < height; y++) lines.set(bits.subarray(y * stride, (y + 1) * stride), y * (stride + 1) + 1);
  const packed = new Blob([lines]).stream().pipeThrough(new CompressionStream("deflate"));
  const header = new Uint8Array(13);
  const view = new DataView(header.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  header[8] = 1; // bits a pixel; colour type 0 (greyscale) and the other fields are 0
  return new Blob(
    [
      new Uint8Array([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]),
      chunk("IHDR", header),
      chunk("IDAT", new Uint8Array(await new Response(packed).arrayBuffer())),
      chunk("IEND", new Uint8Array(0)),
    ],
    { type: "image/png" },
  );
}
