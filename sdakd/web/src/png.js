/**
 * Writes PNG files (ISO/IEC 15948) while their rows are computed: straight alpha, 8 or 16 bits, with a colour profile.
 *
 * Packages of npm want the whole picture at once, and filter no rows, or know no grey, 16 bits or profiles. Packing is the
 * browser's own.
 */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const COLOURS = { 1: 0, 3: 2, 4: 6 }; // type of colour by channels
const BLOCK = 1 << 20; // bytes of a chunk of pixels

const TABLE = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** The CRC-32 of a part of an array (annex D of the standard). */
export function checksum(bytes, from, end = bytes.length) {
  let value = 0xffffffff;
  for (let at = from; at < end; at++) value = TABLE[(value ^ bytes[at]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

/** A chunk of a PNG: length, name, data, checksum. */
function chunk(name, ...parts) {
  const size = parts.reduce((sum, part) => sum + part.length, 0);
  const bytes = new Uint8Array(size + 8);
  new DataView(bytes.buffer).setUint32(0, size);
  bytes.set(new TextEncoder().encode(name), 4);
  let at = 8;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  const end = new Uint8Array(4);
  new DataView(end.buffer).setUint32(0, checksum(bytes, 4));
  return [bytes, end];
}

/** What a stream of bytes gives, as one array. */
export async function through(bytes, stream) {
  return new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());
}

/** A PNG that grows; `add` takes its rows from the top to the bottom, `end` gives the file. */
export class PngWriter {
  /**
   * @param {number} width
   * @param {number} height
   * @param {1 | 3 | 4} channels grey, RGB, or RGB and alpha that it is not multiplied with.
   * @param {8 | 16} depth bits of a sample.
   * @param {Uint8Array | null} profile ICC.
   */
  constructor(width, height, channels, depth, profile = null) {
    const header = new Uint8Array(13);
    const view = new DataView(header.buffer);
    view.setUint32(0, width);
    view.setUint32(4, height);
    header.set([depth, COLOURS[channels]], 8);
    this.parts = [Uint8Array.from(SIGNATURE), ...chunk('IHDR', header)];
    this.profile = profile;
    this.step = (channels * depth) / 8;
    this.line = this.step * width;
    this.above = new Uint8Array(this.line);
    const stream = new CompressionStream('deflate');
    this.writer = stream.writable.getWriter();
    this.compressed = this.collect(stream.readable.getReader());
    this.compressed.catch(() => {}); // told by end()
  }

  async collect(reader) {
    if (this.profile) {
      const packed = await through(this.profile, new CompressionStream('deflate'));
      this.parts.push(...chunk('iCCP', new TextEncoder().encode('ICC\0\0'), packed));
    }
    let held = [];
    let size = 0;
    const write = () => {
      if (size) this.parts.push(new Blob(chunk('IDAT', ...held))); // which the browser may keep on disk
      held = [];
      size = 0;
    };
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
      held.push(value);
      size += value.length;
      if (size >= BLOCK) write();
    }
    write();
  }

  /** @param {Uint8Array | Uint8ClampedArray | Uint16Array} samples of whole rows. */
  async add(samples) {
    const bytes = samples.BYTES_PER_ELEMENT === 2 ? bigEndian(samples) : samples;
    const rows = bytes.length / this.line;
    const filtered = new Uint8Array(rows * (this.line + 1));
    for (let row = 0; row < rows; row++) {
      const line = bytes.subarray(row * this.line, (row + 1) * this.line);
      const to = filtered.subarray(row * (this.line + 1), (row + 1) * (this.line + 1));
      filter(line, this.above, this.step, to);
      this.above.set(line);
    }
    await this.writer.write(filtered);
  }

  /** @returns {Promise<Blob>} */
  async end() {
    await this.writer.close();
    await this.compressed;
    return new Blob([...this.parts, ...chunk('IEND')], { type: 'image/png' });
  }
}

/** Of the filters None, Sub and Up the one that leaves the smallest numbers (12.8 of the standard). */
function filter(line, above, step, to) {
  let none = 0;
  let sub = 0;
  let up = 0;
  for (let at = 0; at < line.length; at++) {
    const value = line[at];
    none += value < 128 ? value : 256 - value;
    up += size(value - above[at]);
    if (at >= step) sub += size(value - line[at - step]);
  }
  for (let at = 0; at < step; at++) sub += size(line[at]);
  if (none <= sub && none <= up) {
    to[0] = 0;
    to.set(line, 1);
  } else if (sub <= up) {
    to[0] = 1;
    to.set(line.subarray(0, step), 1);
    for (let at = step; at < line.length; at++) to[at + 1] = line[at] - line[at - step];
  } else {
    to[0] = 2;
    for (let at = 0; at < line.length; at++) to[at + 1] = line[at] - above[at];
  }
}

/** A difference of bytes, which wraps around, without its sign. */
function size(difference) {
  return Math.abs((difference << 24) >> 24);
}

function bigEndian(samples) {
  const bytes = new Uint8Array(2 * samples.length);
  for (let at = 0; at < samples.length; at++) {
    bytes[2 * at] = samples[at] >> 8;
    bytes[2 * at + 1] = samples[at];
  }
  return bytes;
}

/** A picture that is there already, as a file. */
export async function pngOf({ width, height, channels, depth, data, profile }) {
  const png = new PngWriter(width, height, channels, depth, profile);
  const rows = Math.max(1, Math.floor((BLOCK * 4) / (width * channels)));
  for (let row = 0; row < height; row += rows) {
    await png.add(data.subarray(row * width * channels, Math.min(row + rows, height) * width * channels));
  }
  return png.end();
}
