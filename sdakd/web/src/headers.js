/** What the bytes of a picture file say before it is decoded; files that are not taken are refused in one sentence. */

import { checksum } from './png.js';

/** Why a picture is not enlarged: a sentence for people that goes on after its name. */
export class Refusal extends Error {}

const DAMAGED = 'is damaged or no picture.';
const CUT_OFF = 'is cut off: its end is missing.';
const STRANGERS = [
  ['GIF8', 'a GIF'], ['\0\0\0\x0cjP  ', 'a JPEG 2000'], ['\xff\x4f\xff\x51', 'a JPEG 2000'], ['\0\0\0\x0cJXL ', 'a JPEG XL'],
  ['\xff\x0a', 'a JPEG XL'], ['II*\0', 'a TIFF'], ['MM\0*', 'a TIFF'], ['II+\0', 'a TIFF'], ['MM\0+', 'a TIFF'],
  ['8BPS', 'a Photoshop'], ['%PDF', 'a PDF'], ['PK\x03\x04', 'a ZIP'], ['<svg', 'an SVG'], ['<?xml', 'an XML'],
]; // prettier-ignore

/** @typedef {{kind: string, width: number, height: number, turn: number, frames: number, grey: boolean, alpha: boolean, deep: boolean,
 *             profile: Uint8Array | null, packed: boolean}} Header  width and height as stored; turn: EXIF's; packed:
 *             whether the profile is compressed */

/**
 * @param {Uint8Array} bytes of a file.
 * @returns {Header}
 * @throws {Refusal}
 */
export function readHeader(bytes) {
  if (!bytes.length) throw new Refusal('is empty.');
  const found = { turn: 1, frames: 1, grey: false, alpha: false, deep: false, profile: null, packed: false };
  try {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (text(bytes, 0, 8) === '\x89PNG\r\n\x1a\n') readPng(bytes, view, found);
    else if (bytes[0] === 0xff && bytes[1] === 0xd8) readJpeg(bytes, view, found);
    else if (text(bytes, 0, 4) === 'RIFF' && text(bytes, 8, 4) === 'WEBP') readWebp(bytes, view, found);
    else if (text(bytes, 0, 2) === 'BM') readBmp(bytes, view, found);
    else throw new Refusal(stranger(bytes));
  } catch (error) {
    throw error instanceof Refusal ? error : new Refusal(DAMAGED); // a number beyond the end of the file
  }
  if (found.frames > 1) throw new Refusal('is animated: give a frame of it as a file of its own.');
  if (!(found.width > 0 && found.height > 0)) throw new Refusal(DAMAGED);
  return found;
}

function text(bytes, from, count) {
  return String.fromCharCode(...bytes.subarray(from, from + count));
}

function stranger(bytes) {
  const start = text(bytes, 0, 64);
  let what = STRANGERS.find(([mark]) => start.startsWith(mark) || start.trimStart().toLowerCase().startsWith(mark))?.[1];
  if (start.slice(4, 8) === 'ftyp') {
    const brand = start.slice(8, 12);
    what = brand.startsWith('avi') ? 'an AVIF' : /^(he|mi|ms)/.test(brand) ? 'a HEIC' : 'a video';
  }
  return what ? `is ${what} file: convert it to PNG, JPEG or WebP.` : DAMAGED;
}

function readPng(bytes, view, found) {
  let name;
  for (let at = 8; name !== 'IEND'; ) {
    if (at + 12 > bytes.length) throw new Refusal(found.width ? CUT_OFF : DAMAGED);
    const length = view.getUint32(at);
    if (at + 12 + length > bytes.length) throw new Refusal(found.width ? CUT_OFF : DAMAGED);
    name = text(bytes, at + 4, 4);
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (view.getUint32(at + 8 + length) !== checksum(bytes, at + 4, at + 8 + length)) throw new Refusal(DAMAGED);
    if (name === 'IHDR') {
      found.width = view.getUint32(at + 8);
      found.height = view.getUint32(at + 12);
      found.deep = data[8] === 16;
      found.grey = data[9] === 0;
      found.alpha = Boolean(data[9] & 4);
    } else if (name === 'acTL') found.frames = view.getUint32(at + 8);
    else if (name === 'tRNS') [found.grey, found.alpha] = [false, true]; // with alpha, grey is written as colours
    else if (name === 'eXIf') found.turn = orientation(data);
    else if (name === 'iCCP') [found.profile, found.packed] = [data.subarray(data.indexOf(0) + 2), true];
    at += length + 12;
  }
  if (!found.width) throw new Refusal(DAMAGED);
  found.kind = 'PNG';
}

function readJpeg(bytes, view, found) {
  const parts = [];
  let at = 2;
  for (;;) {
    while (view.getUint8(at) !== 0xff || view.getUint8(at + 1) === 0xff) at++;
    const marker = bytes[at + 1];
    if (marker === 0xda) break;
    if (marker === 0xd9) throw new Refusal(DAMAGED);
    if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      at += 2;
      continue;
    }
    const length = view.getUint16(at + 2);
    const data = bytes.subarray(at + 4, at + 2 + length);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      if (data[0] !== 8) throw new Refusal(`is a JPEG of ${data[0]} bits: convert it to PNG.`);
      found.height = view.getUint16(at + 5);
      found.width = view.getUint16(at + 7);
      found.grey = data[5] === 1;
    } else if (marker === 0xe1 && text(data, 0, 6) === 'Exif\0\0') found.turn = orientation(data.subarray(6));
    else if (marker === 0xe2 && text(data, 0, 12) === 'ICC_PROFILE\0') parts[data[12]] = data.subarray(14);
    at += 2 + length;
  }
  let end = bytes.length - 2;
  while (end > at && !(bytes[end] === 0xff && bytes[end + 1] === 0xd9)) end--;
  if (end <= at) throw new Refusal(CUT_OFF);
  if (parts.length) found.profile = joined(parts.filter(Boolean));
  found.kind = 'JPEG';
}

function readWebp(bytes, view, found) {
  if (view.getUint32(4, true) + 8 > bytes.length) throw new Refusal(CUT_OFF);
  for (let at = 12; at + 8 <= bytes.length; ) {
    const length = view.getUint32(at + 4, true);
    const name = text(bytes, at, 4);
    const data = bytes.subarray(at + 8, at + 8 + length);
    if (name === 'VP8X') {
      found.width = 1 + data[4] + 256 * data[5] + 65536 * data[6];
      found.height = 1 + data[7] + 256 * data[8] + 65536 * data[9];
      found.alpha = Boolean(data[0] & 16);
      if (data[0] & 2) found.frames = 2;
    } else if (name === 'VP8 ') {
      found.width ??= view.getUint16(at + 14, true) & 0x3fff;
      found.height ??= view.getUint16(at + 16, true) & 0x3fff;
    } else if (name === 'VP8L') {
      const bits = view.getUint32(at + 9, true);
      found.width ??= 1 + (bits & 0x3fff);
      found.height ??= 1 + ((bits >>> 14) & 0x3fff);
      found.alpha ||= Boolean((bits >>> 28) & 1);
    } else if (name === 'ICCP') found.profile = data;
    else if (name === 'EXIF') found.turn = orientation(text(data, 0, 6) === 'Exif\0\0' ? data.subarray(6) : data);
    at += 8 + length + (length & 1);
  }
  found.kind = 'WebP';
}

function readBmp(bytes, view, found) {
  const old = view.getUint32(14, true) === 12;
  found.width = old ? view.getUint16(18, true) : Math.abs(view.getInt32(18, true));
  found.height = old ? view.getUint16(20, true) : Math.abs(view.getInt32(22, true));
  const bits = view.getUint16(old ? 24 : 28, true);
  if (bits * found.width * found.height > 8 * bytes.length && !view.getUint32(30, true)) throw new Refusal(CUT_OFF);
  if (bits <= 8) {
    const palette = bytes.subarray(14 + view.getUint32(14, true), view.getUint32(10, true));
    const step = old ? 3 : 4;
    found.grey = palette.length >= 2 * step;
    const last = palette.length / step - 1;
    for (let entry = 0; entry <= last; entry++) {
      const grey = last === 1 ? 255 * entry : entry; // black and white, or a value each
      for (let part = 0; part < 3; part++) found.grey &&= palette[entry * step + part] === grey;
    }
  }
  found.kind = 'BMP';
}

/** The orientation in an EXIF block (EXIF 2.32, tag 0x0112): 1 to 8, 1 where it does not tell. */
function orientation(exif) {
  try {
    const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
    const little = view.getUint16(0) === 0x4949;
    let at = view.getUint32(4, little);
    const entries = view.getUint16(at, little);
    for (let entry = 0; entry < entries; entry++, at += 12) {
      if (view.getUint16(at + 2, little) === 0x0112) {
        const turn = view.getUint16(at + 10, little);
        return turn >= 1 && turn <= 8 ? turn : 1;
      }
    }
  } catch {
    // what is wrong with it does not concern the pixels
  }
  return 1;
}

function joined(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
