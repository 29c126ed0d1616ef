/** Where pictures are enlarged, one after the other: decodes, runs the network tile by tile, writes a PNG. */

import { fill } from './filled.js';
import { Refusal } from './headers.js';
import { GpuError, Runtime } from './network.js';
import { decode } from './pictures.js';
import { pngOf, PngWriter } from './png.js';
import { cut, finite, largestTile, place, spans } from './tiling.js';

const MEMORY = 2 ** 29; // bytes of a tile's feature maps
const RGB = [0, 1, 2];

let runtime;
const pace = new Map(); // ms for a pixel of a tile, by model

self.onmessage = ({ data }) => (data.type === 'open' ? open(data) : enlarge(data));

async function open({ gpu, model }) {
  try {
    runtime = await Runtime.open(gpu);
    await runtime.load(model);
  } catch (error) {
    if (error instanceof GpuError) return tell('gpu-failed', { reason: error.message });
    if (!runtime) return tell('broken', { reason: String(error?.message ?? error) });
    console.warn(error); // the first picture will be told
  }
  tell('ready', { gpu: runtime.gpu, name: runtime.name, threads: runtime.gpu ? 0 : runtime.threads });
}

/** @param {{id: number, file: File, model: object}} job */
async function enlarge({ id, file, model }) {
  try {
    const picture = await decode(file, model.scale);
    fill(picture);
    tell('decoded', { id, width: picture.width, height: picture.height, before: await pngOf(picture) });
    await runtime.load(model);
    const png = await run(picture, model, (done, total, left) => tell('tile', { id, done, total, left }));
    tell('done', { id, png, width: picture.width * model.scale, height: picture.height * model.scale });
  } catch (error) {
    if (error instanceof GpuError) tell('gpu-failed', { id, reason: error.message });
    else if (error instanceof Refusal) tell('failed', { id, sentence: error.message });
    else {
      console.warn(error);
      const memory = error instanceof RangeError || /memory|alloc/i.test(String(error));
      tell('failed', { id, sentence: memory ? 'needs more memory than this browser gives.' : `cannot be enlarged (${error}).` });
    }
  }
}

/** The enlarged picture as a PNG, written by rows of tiles. */
async function run(picture, model, progress) {
  const { width, height, depth } = picture;
  const { scale, multiple, overlap } = model;
  const grey = picture.channels === 1;
  const constant = picture.channels === 4 ? constantAlpha(picture) : null;
  const passes = [[grey ? [0, 0, 0] : RGB, 0, grey]]; // channels for the network, where to write, whether as grey
  if (picture.channels === 4 && constant === null) passes.push([[3, 3, 3], 3, true]);

  const most = largestTile(MEMORY, model);
  const rows = spans(height, most, overlap, multiple);
  const columns = spans(width, most, overlap, multiple);
  const png = new PngWriter(width * scale, height * scale, picture.channels, depth, picture.profile);
  const total = rows.length * columns.length * passes.length;
  const area = (row, column) => (row.end - row.x) * (column.end - column.x);
  const work = rows.flatMap((row) => columns.map((column) => area(row, column))).reduce((a, b) => a + b) * passes.length;
  const begun = performance.now();
  let done = 0;
  let pixels = 0;
  progress(0, total, pace.has(model.file) ? pace.get(model.file) * work : null);
  for (const row of rows) {
    const count = (Math.min(row.right, height) - row.left) * scale;
    const kind = depth === 16 ? Uint16Array : Uint8ClampedArray;
    const band = { width: width * scale, channels: picture.channels };
    band.data = new kind(count * band.width * band.channels);
    if (constant !== null) for (let at = 3; at < band.data.length; at += 4) band.data[at] = constant;
    for (const column of columns) {
      for (const [channels, first, asGrey] of passes) {
        const tile = cut(picture, row, column, multiple, channels);
        const output = await runtime.run(tile, row.end - row.x, column.end - column.x);
        if (!finite(output)) {
          if (runtime.gpu) throw new GpuError('its values are no numbers');
          throw new Refusal('makes the network give values that are no numbers.');
        }
        place(output, row, column, scale, band, first, asGrey);
        done++;
        pixels += area(row, column);
        pace.set(model.file, (performance.now() - begun) / pixels);
        progress(done, total, pace.get(model.file) * (work - pixels));
      }
    }
    await png.add(band.data);
  }
  return png.end();
}

/** The alpha of a picture in which it is the same everywhere, else null: a network would leave it not quite so. */
function constantAlpha({ data }) {
  for (let at = 3; at < data.length; at += 4) if (data[at] !== data[3]) return null;
  return data[3];
}

function tell(type, facts) {
  self.postMessage({ type, ...facts });
}
