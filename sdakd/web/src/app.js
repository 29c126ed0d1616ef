/** The page: the queue of pictures, the models, the result. Computing is the worker's (worker.js). */

import { Comparison } from './comparison.js';
import { isolate } from './isolation.js';
import { showModels } from './models.js';

const byId = (id) => document.getElementById(id);
const jobs = []; // all pictures, in the order of the queue
let chosen; // the model for pictures that are added
let worker = null;
let ready = false;
let stopped = false; // whether the engine has failed
let gpu = true; // false once WebGPU has failed
let serial = 0;
const said = []; // in this moment

const comparison = new Comparison();

start();

async function start() {
  takePictures();
  byId('download-all').addEventListener('click', downloadAll);
  byId('clear').addEventListener('click', () => jobs.filter((job) => !isOpen(job)).forEach(remove));
  try {
    const response = await fetch('models.json');
    const models = await response.json();
    chosen = models[0];
    showModels(byId('models'), models, (model) => (chosen = model));
  } catch {
    return problem('The list of models does not come from the server: export the page again, or look whether the server runs.');
  }
  const renewed = () => problem('A newer version of this page has come: load the page again when the pictures are done.');
  if (await isolate(() => jobs.length === 0, renewed)) openWorker(); // else the page loads again
}

// -------------------------------------------------------- adding ---------------------------------------------------------

function takePictures() {
  const files = byId('files');
  files.addEventListener('change', () => {
    add(files.files);
    files.value = ''; // the same one may be chosen again
  });
  const carries = (event) => event.dataTransfer?.types.includes('Files');
  let depth = 0; // dragenter and dragleave come for every element
  const over = (shown) => (byId('over').hidden = !shown);
  addEventListener('dragenter', (event) => carries(event) && over(++depth > 0));
  addEventListener('dragleave', (event) => carries(event) && over(--depth > 0));
  addEventListener('dragover', (event) => carries(event) && event.preventDefault());
  addEventListener('drop', (event) => {
    if (!carries(event)) return;
    event.preventDefault();
    over(false);
    depth = 0;
    add(event.dataTransfer.files);
  });
  addEventListener('paste', (event) => add(event.clipboardData.files));
  addEventListener('beforeunload', (event) => jobs.some(isOpen) && event.preventDefault());
}

function add(files) {
  if (!chosen) return;
  for (const file of files) {
    const job = { id: ++serial, file, model: chosen, state: 'waiting' };
    job.row = rowOf(job);
    jobs.push(job);
    byId('queue').append(job.row.item);
    show(job, 'Waiting');
  }
  if (stopped && files.length) openWorker(); // once more
  next();
}

// ------------------------------------------------------- computing -------------------------------------------------------

function openWorker() {
  ready = false;
  if (stopped) {
    stopped = false;
    byId('problem').hidden = true;
    byId('engine').textContent = 'Getting ready …';
  }
  worker?.terminate();
  worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
  worker.onmessage = ({ data }) => HEARD[data.type](data);
  worker.onerror = (event) => {
    event.preventDefault();
    broken({ reason: event.message || 'its script does not load' });
  };
  worker.postMessage({ type: 'open', gpu, model: jobs.find(isOpen)?.model ?? chosen });
}

const HEARD = {
  ready({ name, threads, gpu: used }) {
    ready = true;
    Object.assign(document.documentElement.dataset, { engine: used ? 'webgpu' : 'wasm', threads });
    byId('engine').textContent = `Computes with ${name}.`;
    next();
  },
  decoded({ id, before, width, height }) {
    Object.assign(jobOf(id), { before, size: [width, height] });
  },
  tile({ id, done, total, left }) {
    const job = jobOf(id);
    job.row.progress.max = total;
    job.row.progress.value = done;
    const time = left === null ? '' : `, ${duration(left)} left`;
    show(job, `Tile ${Math.min(done + 1, total)} of ${total}${time}`);
  },
  done({ id, png, width, height }) {
    const job = Object.assign(jobOf(id), { png, large: [width, height] });
    finish(job, 'done', `${width} × ${height} pixels, ${megabytes(png.size)}, in ${duration(performance.now() - job.begun)}`);
    if (!comparison.job || !jobs.some(isOpen)) comparison.show(job);
  },
  failed({ id, sentence }) {
    const job = jobOf(id);
    finish(job, 'failed', `${job.file.name} ${sentence}`);
  },
  'gpu-failed'({ id, reason }) {
    gpu = false;
    console.warn(`WebGPU: ${reason}`);
    problem('WebGPU failed on this device; computing goes on with WebAssembly.');
    const job = jobOf(id);
    if (job) Object.assign(job, { state: 'waiting' });
    openWorker();
  },
  broken,
};

function broken({ reason }) {
  worker?.terminate();
  [worker, ready, stopped] = [null, false, true];
  problem(`The engine does not start (${reason}): look whether the server runs, and load the page again.`);
  byId('engine').textContent = 'Not ready.';
  for (const job of jobs.filter(isOpen)) finish(job, 'failed', `${job.file.name} cannot be enlarged: the engine does not start.`);
}

function next() {
  const job = jobs.find(({ state }) => state === 'waiting');
  if (!ready || !job || jobs.some(({ state }) => state === 'working')) return refresh();
  Object.assign(job, { state: 'working', begun: performance.now() });
  show(job, 'Reading');
  say(`Enlarging ${job.file.name}.`);
  worker.postMessage({ type: 'enlarge', id: job.id, file: job.file, model: job.model });
  refresh();
}

function finish(job, state, words) {
  job.state = state;
  job.row.progress.removeAttribute('value');
  show(job, words);
  say(state === 'failed' ? words : `${job.file.name}: ${state === 'done' ? 'enlarged' : 'cancelled'}.`);
  next();
}

/** The worker is ended, for a tile may take long, and a new one begins with the next picture. */
function cancel(job) {
  const working = job.state === 'working';
  job.state = 'cancelled';
  if (working) openWorker();
  job.row.cancel.focus(); // some browsers do not when it is clicked
  finish(job, 'cancelled', 'Cancelled');
}

// --------------------------------------------------------- queue ---------------------------------------------------------

function rowOf(job) {
  const item = byIdTemplate();
  const part = (name) => item.querySelector(`[data-part="${name}"]`);
  const row = { item, words: part('words'), progress: part('progress'), cancel: part('cancel') };
  Object.assign(row, { view: part('view'), save: part('save'), remove: part('remove') });
  part('name').textContent = job.file.name;
  part('model').textContent = `×${job.model.scale} with ${job.model.name}`;
  row.progress.setAttribute('aria-label', `Progress of ${job.file.name}`);
  for (const [button, verb] of [['cancel', 'Cancel'], ['view', 'Show'], ['save', 'Download'], ['remove', 'Remove']]) {
    row[button].setAttribute('aria-label', `${verb} ${job.file.name}`);
  }
  row.cancel.addEventListener('click', () => cancel(job));
  row.view.addEventListener('click', () => comparison.show(job, true));
  row.remove.addEventListener('click', () => remove(job));
  return row;
}

function byIdTemplate() {
  return byId('row').content.firstElementChild.cloneNode(true);
}

function show(job, words) {
  const { item, words: text, progress, cancel: stop, view, save, remove: away } = job.row;
  const focused = document.activeElement === stop;
  item.dataset.state = job.state;
  text.textContent = words;
  progress.hidden = job.state !== 'working';
  stop.hidden = !isOpen(job);
  away.hidden = isOpen(job);
  view.hidden = save.hidden = job.state !== 'done';
  if (focused && stop.hidden) (view.hidden ? away : view).focus();
  if (job.state === 'done' && !save.href) {
    job.url = URL.createObjectURL(job.png);
    Object.assign(save, { href: job.url, download: nameOf(job) });
  }
}

function remove(job) {
  const at = jobs.indexOf(job);
  jobs.splice(at, 1);
  job.row.item.remove();
  if (comparison.job === job) comparison.show(jobs.find(({ state }) => state === 'done') ?? null);
  if (job.url) URL.revokeObjectURL(job.url);
  const other = jobs[Math.min(at, jobs.length - 1)];
  (other ? other.row[isOpen(other) ? 'cancel' : 'remove'] : byId('files')).focus();
  refresh();
}

async function downloadAll() {
  for (const job of jobs.filter(({ state }) => state === 'done')) {
    job.row.save.click();
    await new Promise((resolve) => setTimeout(resolve, 300)); // browsers drop those that come at once
  }
}

function refresh() {
  const count = (state) => jobs.filter((job) => job.state === state).length;
  byId('queue-section').hidden = !jobs.length;
  byId('download-all').hidden = count('done') < 2;
  byId('clear').hidden = jobs.every(isOpen);
  const busy = jobs.some(isOpen);
  document.title = busy ? `${jobs.length - jobs.filter(isOpen).length} of ${jobs.length} · Enlarge pictures` : 'Enlarge pictures';
}

// --------------------------------------------------------- words ---------------------------------------------------------

const isOpen = ({ state }) => state === 'waiting' || state === 'working';
const jobOf = (id) => jobs.find((job) => job.id === id);
const nameOf = ({ file, model }) => `${file.name.replace(/\.[^.]+$/, '')}_x${model.scale}.png`;
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

function duration(milliseconds) {
  const seconds = Math.max(milliseconds / 1000, 0);
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

/** For those who do not see the page; what is said at once is heard as a whole. */
function say(words) {
  if (!said.length) setTimeout(() => said.splice(0));
  said.push(words);
  byId('status').textContent = said.join(' ');
}

function problem(words) {
  Object.assign(byId('problem'), { textContent: words, hidden: false });
}
