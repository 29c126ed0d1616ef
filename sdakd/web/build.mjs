/**
 * Builds the application into a folder: `node build.mjs OUT`. `sdakd export --to web` calls it after `npm ci` and puts the
 * models beside the result.
 */

import { copyFile, mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const here = path.dirname(fileURLToPath(import.meta.url));
const modules = path.join(here, 'node_modules');
const out = path.resolve(process.argv[2]);
const POLICY = [
  "default-src 'none'", "script-src 'self' 'wasm-unsafe-eval'", "connect-src 'self'", "worker-src 'self'",
  "img-src 'self' blob:", "style-src 'self'", "manifest-src 'self'", "base-uri 'none'", "form-action 'none'",
].join('; '); // prettier-ignore
const COPIED = ['style.css', 'manifest.webmanifest', 'icon.svg', 'icon-192.png', 'icon-512.png'];
const ENGINES = ['ort-wasm-simd-threaded', 'ort-wasm-simd-threaded.asyncify']; // WebAssembly alone, and with WebGPU
const DECODERS = ['@jsquash/png/codec/pkg/squoosh_png_bg.wasm', '@jsquash/webp/codec/dec/webp_dec.wasm'];

await mkdir(path.join(out, 'ort'), { recursive: true });
const { metafile } = await build({
  absWorkingDir: here,
  entryPoints: ['src/app.js', 'src/worker.js'],
  outdir: out,
  bundle: true,
  format: 'esm',
  splitting: true,
  chunkNames: 'part-[hash]',
  target: ['chrome111', 'firefox115', 'safari16.4'],
  conditions: ['onnxruntime-web-use-extern-wasm'],
  minify: true,
  legalComments: 'none',
  metafile: true,
  logLevel: 'error',
});
for (const name of COPIED) await copyFile(path.join(here, 'src', name), path.join(out, name));
for (const name of DECODERS) await copyFile(path.join(modules, name), path.join(out, path.basename(name)));
for (const name of ENGINES.flatMap((engine) => [`${engine}.mjs`, `${engine}.wasm`])) {
  await copyFile(path.join(modules, 'onnxruntime-web/dist', name), path.join(out, 'ort', name));
}
const page = await readFile(path.join(here, 'src/index.html'), 'utf8');
await writeFile(path.join(out, 'index.html'), page.replace('POLICY', POLICY));
const worker = await readFile(path.join(here, 'src/sw.js'), 'utf8');
await writeFile(path.join(out, 'sw.js'), worker.replace('POLICY', JSON.stringify(POLICY)));
await writeFile(path.join(out, 'licences.txt'), await licences(Object.keys(metafile.inputs)));

/** The licences of the packages that the application is made of, and of what is compiled into their decoders. */
async function licences(inputs) {
  const names = new Set(inputs.map((file) => /node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(file)?.[1]).filter(Boolean));
  const texts = [];
  for (const name of [...names].sort()) {
    const folder = path.join(modules, name);
    const { version, license } = createRequire(import.meta.url)(path.join(folder, 'package.json'));
    const found = [];
    for (const place of [folder, path.join(folder, 'codec'), path.join(here, 'licences', name)]) {
      const files = (await readdir(place).catch(() => [])).filter((file) => /^licen[cs]e/i.test(file)).sort();
      for (const file of files) found.push(await readFile(path.join(place, file), 'utf8'));
    }
    if (!found.length) throw new Error(`error: the package ${name} has no text of its licence: put it into licences/${name}`);
    texts.push(`${name} ${version}: ${license}\n\n${found.join('\n')}`.trim());
  }
  return texts.join(`\n\n${'-'.repeat(80)}\n\n`) + '\n';
}
