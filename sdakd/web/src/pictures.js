/** Decodes pictures as `sdakd upscale` does: grey stays grey, alpha is straight, colours are as stored, upright. */

import decodePng, { init as initPng } from '@jsquash/png/decode.js';
import decodeWebp, { init as initWebp } from '@jsquash/webp/decode.js';
import { readHeader, Refusal } from './headers.js';
import { through } from './png.js';

const LARGEST = 256e6; // pixels of a result
const SIDE = 65535; // of a picture
const BAND = 1 << 22; // pixels that are read back at a time
const million = (pixels) => `${Math.round(pixels / 1e5) / 10} megapixels`;

/** @typedef {{width: number, height: number, channels: 1 | 3 | 4, depth: 8 | 16, data: Uint8Array | Uint16Array,
 *             profile: Uint8Array | null}} Picture  rows of interleaved samples */

/**
 * @param {Blob} file
 * @param {number} scale of the network that will enlarge it.
 * @returns {Promise<Picture>}
 * @throws {Refusal}
 */
export async function decode(file, scale) {
  let bytes;
  try {
    bytes = new Uint8Array(await file.arrayBuffer());
  } catch {
    throw new Refusal('cannot be read; was it moved or deleted, or is it a folder?');
  }
  const found = readHeader(bytes);
  const result = found.width * found.height * scale ** 2;
  if (result > LARGEST || Math.max(found.width, found.height) > SIDE) {
    const size = `${found.width}x${found.height}`;
    throw new Refusal(`has ${size} pixels and would become ${million(result)}, more than ${million(LARGEST)}: use sdakd upscale.`);
  }
  let pixels;
  try {
    pixels = await DECODERS[found.kind](bytes, found);
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal(/memory|allocat/i.test(String(error)) ? 'needs more memory than there is.' : 'is damaged.');
  }
  return { ...turned(pixels, found.kind === 'JPEG' ? 1 : found.turn), profile: await profileOf(found, pixels.channels) };
}

const DECODERS = {
  async PNG(bytes, { deep, grey, alpha }) {
    await initPng(new URL('squoosh_png_bg.wasm', import.meta.url));
    const { width, height, data } = await decodePng(bytes, { bitDepth: deep ? 16 : 8 });
    return channelsOf({ width, height, depth: deep ? 16 : 8 }, data, grey ? 1 : alpha ? 4 : 3);
  },
  async WebP(bytes, { alpha }) {
    const wasm = await fetch(new URL('webp_dec.wasm', import.meta.url));
    await initWebp(await WebAssembly.compile(await wasm.arrayBuffer()));
    const { width, height, data } = await decodeWebp(bytes);
    return channelsOf({ width, height, depth: 8 }, data, alpha ? 4 : 3);
  },
  JPEG: byBrowser,
  async BMP(bytes, found) {
    const pixels = await byBrowser(bytes, found);
    if (!pixels.opaque) throw new Refusal('is a BMP file with transparency: convert it to PNG.');
    return pixels;
  },
};

/** Opaque pictures: a canvas would multiply colours with alpha. */
async function byBrowser(bytes, { grey }) {
  const options = { premultiplyAlpha: 'none', colorSpaceConversion: 'none', imageOrientation: 'from-image' };
  const bitmap = await createImageBitmap(new Blob([bytes]), options);
  const { width, height } = bitmap;
  const rows = Math.max(1, Math.floor(BAND / width));
  const context = new OffscreenCanvas(width, Math.min(rows, height)).getContext('2d', { willReadFrequently: true });
  const channels = grey ? 1 : 3;
  const data = new Uint8Array(width * height * channels);
  let opaque = true;
  for (let row = 0, to = 0; row < height; row += rows) {
    const count = Math.min(rows, height - row);
    context.clearRect(0, 0, width, count);
    context.drawImage(bitmap, 0, row, width, count, 0, 0, width, count);
    const read = context.getImageData(0, 0, width, count).data;
    for (let at = 0; at < read.length; at += 4) {
      for (let channel = 0; channel < channels; channel++) data[to++] = read[at + channel];
      opaque &&= read[at + 3] === 255;
    }
  }
  bitmap.close();
  return { width, height, channels, depth: 8, data, opaque };
}

function channelsOf(facts, rgba, channels) {
  const kind = facts.depth === 16 ? Uint16Array : Uint8Array;
  if (channels === 4) return { ...facts, channels, data: new kind(rgba.buffer, rgba.byteOffset, rgba.length) };
  const data = new kind(facts.width * facts.height * channels);
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    for (let channel = 0; channel < channels; channel++) data[to++] = rgba[from + channel];
  }
  return { ...facts, channels, data };
}

/** Pixels turned upright by EXIF's orientation. */
function turned(pixels, turn) {
  if (turn === 1) return pixels;
  const { width, height, channels, data } = pixels;
  const [columns, rows] = turn > 4 ? [height, width] : [width, height];
  const result = new data.constructor(data.length);
  for (let y = 0, to = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      let [column, row] = turn > 4 ? [y, x] : [x, y];
      if ([2, 3, 7, 8].includes(turn)) column = width - 1 - column;
      if ([3, 4, 6, 7].includes(turn)) row = height - 1 - row;
      const from = (row * width + column) * channels;
      for (let channel = 0; channel < channels; channel++) result[to++] = data[from + channel];
    }
  }
  return { ...pixels, width: columns, height: rows, data: result };
}

/** The colour profile, where it belongs to such pixels. */
async function profileOf({ profile, packed }, channels) {
  if (!profile) return null;
  try {
    profile = packed ? await through(profile, new DecompressionStream('deflate')) : profile;
  } catch {
    return null;
  }
  return String.fromCharCode(...profile.subarray(16, 20)) === (channels === 1 ? 'GRAY' : 'RGB ') ? profile : null;
}
