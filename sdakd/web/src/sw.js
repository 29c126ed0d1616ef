/**
 * Keeps the page's files for use without network, and adds the headers that threads in WebAssembly need (cross-origin
 * isolation) and the page's policy for its workers, which a plain static server does not send.
 */

const { version, files } = SITE; // written by `sdakd export`
const PREFIX = `sdakd ${self.registration.scope} `;
const CACHE = PREFIX + version;
const HEADERS = {
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Embedder-Policy': 'require-corp',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Content-Security-Policy': POLICY, // written by build.mjs
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
};
const ours = new Map(files.map(({ path, lazy }) => [new URL(path, self.registration.scope).href, lazy]));

self.addEventListener('install', (event) => event.waitUntil(install()));
self.addEventListener('activate', (event) => event.waitUntil(activate()));
self.addEventListener('fetch', (event) => {
  if (event.request.method === 'GET' && event.request.url.startsWith(self.registration.scope)) {
    event.respondWith(answer(event.request));
  }
});
self.addEventListener('message', ({ data }) => data === 'take over' && self.skipWaiting());

async function install() {
  const cache = await caches.open(CACHE);
  const wanted = [...ours].filter(([, lazy]) => !lazy).map(([url]) => url);
  await Promise.all(wanted.map(async (url) => keep(cache, url, await fetch(url, { cache: 'no-cache' }))));
}

async function activate() {
  const old = (await caches.keys()).filter((key) => key.startsWith(PREFIX) && key !== CACHE);
  await Promise.all(old.map((key) => caches.delete(key)));
  await self.clients.claim();
}

/** Large files (`lazy`) are kept when they are asked for the first time: a browser needs one engine of two. */
async function answer(request) {
  const url = new URL(request.url);
  url.search = url.hash = '';
  if (url.href === self.registration.scope) url.pathname += 'index.html';
  const cache = await caches.open(CACHE);
  let response = await cache.match(url.href);
  if (!response) {
    try {
      response = await fetch(url.href, { cache: 'no-cache' });
    } catch {
      return Response.error();
    }
    if (response.ok && ours.has(url.href)) await keep(cache, url.href, response.clone()).catch(() => {}); // the disk may be full
  }
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  for (const name of ['Content-Encoding', 'Content-Length']) headers.delete(name); // of what came, not of what goes on
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}

async function keep(cache, url, response) {
  if (!response.ok) throw new Error(`${url}: ${response.status}`);
  await cache.put(url, response);
}
