/** Networks in ONNX Runtime: WebGPU where there is one, else WebAssembly with as many threads as the page may have. */

import { Refusal } from './headers.js';

const MOST_THREADS = 8;
const ORT = new URL('ort/', import.meta.url).href;

/** A failure of the accelerator, after which WebAssembly may succeed. */
export class GpuError extends Error {}

/** Runs the networks of this page, one at a time. */
export class Runtime {
  /** @param {boolean} gpu whether WebGPU may be used. */
  static async open(gpu) {
    const runtime = new Runtime();
    const adapter = gpu && self.navigator.gpu ? await self.navigator.gpu.requestAdapter().catch(() => null) : null;
    runtime.gpu = Boolean(adapter && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter));
    runtime.ort = runtime.gpu ? await import('onnxruntime-web/webgpu') : await import('onnxruntime-web/wasm');
    runtime.threads = self.crossOriginIsolated ? Math.min(self.navigator.hardwareConcurrency || 1, MOST_THREADS) : 1;
    const kind = runtime.gpu ? 'ort-wasm-simd-threaded.asyncify' : 'ort-wasm-simd-threaded';
    runtime.ort.env.wasm.wasmPaths = { mjs: `${ORT}${kind}.mjs`, wasm: `${ORT}${kind}.wasm` };
    runtime.ort.env.wasm.numThreads = runtime.threads;
    runtime.ort.env.logLevel = 'error';
    return runtime;
  }

  /** What computes, in words. */
  get name() {
    const threads = this.threads === 1 ? '1 thread' : `${this.threads} threads`;
    return this.gpu ? 'WebGPU' : `WebAssembly, ${threads}`;
  }

  /**
   * Loads a network, unless it is the one that is loaded already.
   *
   * @param {{name: string, file: string, bytes: number, sha256: string}} model
   * @throws {Refusal} Its file is not what the page was made with.
   */
  async load(model) {
    if (this.loaded === model.file) return;
    await this.session?.release();
    this.loaded = this.session = undefined;
    const bytes = await fetchModel(model);
    const provider = this.gpu ? 'webgpu' : 'wasm';
    try {
      this.session = await this.ort.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 });
    } catch (error) {
      if (this.gpu) throw new GpuError(String(error));
      throw new Refusal(`cannot be enlarged: the model ${model.name} cannot be opened (${firstLine(error)}).`);
    }
    this.loaded = model.file;
  }

  /**
   * @param {Float32Array} values `(3, height, width)` in [0, 1].
   * @returns {Promise<Float32Array>} `(3, height * scale, width * scale)`.
   */
  async run(values, height, width) {
    const input = new this.ort.Tensor('float32', values, [1, 3, height, width]);
    try {
      const { output } = await this.session.run({ input });
      const found = await output.getData();
      output.dispose();
      return found;
    } catch (error) {
      if (this.gpu) throw new GpuError(String(error));
      if (/memory|alloc|out of bounds/i.test(String(error))) throw new Refusal('needs more memory than this browser gives.');
      throw new Refusal(`cannot be enlarged (${firstLine(error)}).`);
    }
  }
}

async function fetchModel({ name, file, bytes, sha256 }) {
  const url = new URL(file, import.meta.url);
  let data;
  try {
    const response = await fetch(url);
    if (!response.ok) throw new Error(`the server says ${response.status}`);
    data = new Uint8Array(await response.arrayBuffer());
  } catch (error) {
    throw new Refusal(`cannot be enlarged: the model ${name} does not come from the server (${firstLine(error)}).`);
  }
  if (data.length === bytes && (!self.crypto.subtle || (await digest(data)) === sha256)) return data;
  for (const key of (await self.caches?.keys()) ?? []) await (await self.caches.open(key)).delete(url); // the next try loads it anew
  const what = data.length === bytes ? 'is not the one that this page was made with' : `has ${data.length} of ${bytes} bytes`;
  throw new Refusal(`cannot be enlarged: the file of the model ${name} ${what}; export the page again.`);
}

async function digest(data) {
  const hash = new Uint8Array(await self.crypto.subtle.digest('SHA-256', data));
  return Array.from(hash, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

function firstLine(error) {
  return String(error?.message ?? error).split('\n')[0].slice(0, 200);
}
