/**
 * Keeps the page's files for use without network, and adds the headers that threads in WebAssembly need (cross-origin
 * isolation) and the page's policy for its workers, which a plain static server does not send. It answers for the page's
 * own files alone, and goes away when something else is served in the page's place.
 */

const { version, files } = SITE; // written by `sdakd export`
const { scope } = self.registration;
const PREFIX = `sdakd ${scope} `;
const CACHE = PREFIX + version;
const PATIENCE = 2000; // ms until a page that is kept is shown while the server says nothing
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Content-Security-Policy': POLICY, // written by build.mjs
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
};
const ours = new Map(files.map((file) => [new URL(file.path, scope).href, file]));
const PAGE = new URL('index.html', scope).href;
let gone = false; // whether something else has taken the page's place

self.addEventListener('install', (event) => event.waitUntil(install()));
self.addEventListener('activate', (event) => event.waitUntil(activate()));
self.addEventListener('fetch', (event) => {
  const { request } = event;
  const url = addressOf(request.url);
  if (gone || request.method !== 'GET' || !ours.has(url)) return;
  event.respondWith(request.mode === 'navigate' && url === PAGE ? navigate(request) : serve(event, url));
});
self.addEventListener('message', (event) => event.data === 'take over' && event.waitUntil(takeOver()));

async function install() {
  const cache = await caches.open(CACHE);
  const wanted = [...ours].filter(([, { lazy }]) => !lazy).map(([url]) => url);
  await Promise.all(wanted.map(async (url) => keep(cache, url, await fetch(url, { cache: 'reload' }))));
}

async function activate() {
  await forget((key) => key !== CACHE);
  await self.clients.claim();
}

/** Another tab works with the files of the version before: it keeps them until it is closed. */
async function takeOver() {
  const windows = await self.clients.matchAll({ type: 'window', includeUncontrolled: true });
  if (windows.filter(({ url }) => ours.has(addressOf(url))).length < 2) await self.skipWaiting();
}

/** The page as it is kept, unless the server has another one there that is not this application's, or none. */
async function navigate(request) {
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE));
  const asked = fetch(request.url, { cache: 'no-cache', redirect: 'manual' });
  const response = await Promise.race([asked.catch(() => null), late]);
  if (response?.type === 'opaqueredirect') return response;
  if (response && (response.ok ? !(await isPage(response.clone())) : [404, 410].includes(response.status))) {
    gone = true;
    await self.registration.unregister();
    await forget(() => true);
    return response;
  }
  return answer(PAGE);
}

async function isPage(response) {
  return (await response.text()).includes('<meta name="generator" content="sdakd export --to web"');
}

/** A page beside this one may have files of the same names. */
async function serve({ clientId, request }, url) {
  const client = clientId && (await self.clients.get(clientId));
  return client && !ours.has(addressOf(client.url)) ? fetch(request) : answer(url);
}

/** Large files (`lazy`) are kept when they are asked for the first time: a browser needs one engine of two. */
async function answer(url) {
  const cache = await caches.open(CACHE);
  let response = await cache.match(url);
  if (!response) {
    try {
      response = await fetch(url, { cache: 'no-cache' });
    } catch {
      return Response.error();
    }
    if (response.ok) await keep(cache, url, response.clone()).catch(() => {}); // the disk may be full
  }
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  for (const name of ['Content-Encoding', 'Content-Length']) headers.delete(name); // of what came, not of what goes on
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

/** @throws {Error} It is not the file that was exported: cut off, or of another version. */
async function keep(cache, url, response) {
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  const { headers } = response;
  const data = await response.arrayBuffer();
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', data));
  const hex = Array.from(hash, (byte) => byte.toString(16).padStart(2, '0')).join('');
  if (hex !== ours.get(url).sha256) throw new Error(`${url} is not the file that was exported`);
  await cache.put(url, new Response(data, { headers }));
}

async function forget(which) {
  const keys = (await caches.keys()).filter((key) => key.startsWith(PREFIX) && which(key));
  await Promise.all(keys.map((key) => caches.delete(key)));
}

/** Without query and fragment; a folder's is that of its page. */
function addressOf(address) {
  const url = new URL(address);
  url.search = url.hash = '';
  return url.href === scope ? PAGE : url.href;
}
