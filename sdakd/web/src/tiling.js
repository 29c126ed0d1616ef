/**
 * Tiles as `sdakd upscale` cuts them (sdakd_arch/inference/tiling.py): they begin at multiples of the network's blocks of
 * pixels, overlap, and never leave the mirrored picture.
 */

/** @typedef {{left: number, right: number, x: number, end: number}} Span  core [left, right) inside [x, end) */

const BUFFERS = 4; // tensors of the widest layer's size that are alive at once
const SMALLEST = 32; // side of a tile

/** The side of a padded picture: at least one block, and whole blocks. */
export function padded(side, multiple) {
  return Math.ceil(Math.max(side, multiple) / multiple) * multiple;
}

/** Where the sample at `index` of a padded side comes from: mirrored, and where it is too short its last sample. */
export function source(index, side, multiple) {
  const extended = Math.max(side, multiple);
  const mirrored = index < extended ? index : 2 * (extended - 1) - index;
  return Math.min(mirrored, side - 1);
}

/**
 * The side of tiles that fit into a memory.
 *
 * @param {number} bytes of the network's feature maps.
 * @param {{widest: number, overlap: number, multiple: number}} model
 */
export function largestTile(bytes, model) {
  const side = Math.floor(Math.sqrt(bytes / (BUFFERS * 4 * model.widest)));
  return Math.max(side - 2 * model.overlap, SMALLEST);
}

/** A side in spans of nearly equal length, at most `most` where blocks allow. */
export function spans(side, most, overlap, multiple) {
  const whole = padded(side, multiple);
  overlap = Math.ceil(overlap / multiple) * multiple;
  const count = Math.ceil(whole / most);
  const step = Math.ceil(whole / count / multiple) * multiple;
  const found = [];
  for (let left = 0; left < whole; left += step) {
    const right = Math.min(left + step, whole);
    found.push({ left, right, x: Math.max(left - overlap, 0), end: Math.min(right + overlap, whole) });
  }
  return found;
}

/**
 * What the network sees of a tile: `(3, h, w)` in [0, 1], float32.
 *
 * @param {{width: number, height: number, channels: number, depth: number, data: ArrayLike<number>}} picture
 * @param {Span} rows
 * @param {Span} columns
 * @param {number} multiple
 * @param {number[]} channels which of the picture's become red, green and blue.
 */
export function cut(picture, rows, columns, multiple, channels) {
  const height = rows.end - rows.x;
  const width = columns.end - columns.x;
  const top = picture.depth === 16 ? 65535 : 255;
  const tile = new Float32Array(3 * height * width);
  const from = Int32Array.from({ length: width }, (_, at) => source(columns.x + at, picture.width, multiple) * picture.channels);
  channels.forEach((channel, plane) => {
    let at = plane * height * width;
    for (let row = 0; row < height; row++) {
      const line = source(rows.x + row, picture.height, multiple) * picture.width * picture.channels + channel;
      for (let column = 0; column < width; column++) tile[at++] = picture.data[line + from[column]] / top;
    }
  });
  return tile;
}

/** Whether all values are numbers. */
export function finite(values) {
  let sum = 0;
  for (let at = 0; at < values.length; at++) sum += values[at] * 0; // 0 for a number, else NaN
  return sum === 0;
}

/**
 * Puts the core of a tile's result into a band of rows, in whole levels; what sticks out of the picture is left out.
 *
 * @param {Float32Array} output `(3, h * scale, w * scale)`.
 * @param {Span} rows
 * @param {Span} columns
 * @param {number} scale
 * @param {{width: number, channels: number, data: Uint8ClampedArray | Uint16Array}} band
 * @param {number} first channel of the band to write to.
 * @param {boolean} grey one channel, by the weights of red, green and blue; else three.
 */
export function place(output, rows, columns, scale, band, first, grey) {
  const { data, channels } = band;
  const deep = data.BYTES_PER_ELEMENT === 2;
  const width = (columns.end - columns.x) * scale;
  const plane = (rows.end - rows.x) * scale * width;
  const left = columns.left * scale;
  const length = Math.min(columns.right * scale, band.width) - left;
  const count = data.length / channels / band.width;
  for (let row = 0; row < count; row++) {
    const from = (row + (rows.left - rows.x) * scale) * width + left - columns.x * scale;
    const to = (row * band.width + left) * channels + first;
    if (grey) {
      for (let at = 0; at < length; at++) {
        const sum = 0.299 * unit(output[from + at]) + 0.587 * unit(output[from + at + plane]);
        const value = sum + 0.114 * unit(output[from + at + 2 * plane]);
        data[to + at * channels] = deep ? level(value) : value * 255; // such an array rounds by itself
      }
      continue;
    }
    for (let colour = 0; colour < 3; colour++) {
      const [start, goal] = [from + colour * plane, to + colour];
      if (deep) for (let at = 0; at < length; at++) data[goal + at * channels] = level(unit(output[start + at]));
      else for (let at = 0; at < length; at++) data[goal + at * channels] = output[start + at] * 255;
    }
  }
}

function unit(value) {
  return value < 0 ? 0 : value > 1 ? 1 : value;
}

/** The nearest of 65536 levels, of two the even one, as arrays of 8 bits round. */
function level(value) {
  const rounded = Math.round(value * 65535);
  return rounded - value * 65535 === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
