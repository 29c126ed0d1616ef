/** Threads in WebAssembly need headers that a plain server does not send: the service worker adds them (sw.js). */

const PATIENCE = 20_000; // ms until the page goes on without

/**
 * Registers the service worker; if it can make threads possible, the page is loaded once more.
 *
 * @param {() => boolean} idle whether the page may be loaded again.
 * @returns {Promise<boolean>} whether the page goes on.
 */
export async function isolate(idle) {
  const workers = navigator.serviceWorker;
  if (!workers) return true; // no HTTPS and not this machine: one thread
  try {
    const registration = await workers.register('sw.js');
    if (registration.waiting && workers.controller && idle()) {
      registration.waiting.postMessage('take over'); // a newer version of the page
      await change(workers);
      location.reload();
      return false;
    }
    if (self.crossOriginIsolated || workers.controller) return true;
    await change(workers);
  } catch {
    return true;
  }
  if (!workers.controller || !idle()) return true;
  location.reload();
  return false;
}

function change(workers) {
  return new Promise((resolve) => {
    if (workers.controller) workers.addEventListener('controllerchange', resolve, { once: true });
    else workers.ready.then(() => (workers.controller ? resolve() : workers.addEventListener('controllerchange', resolve)));
    setTimeout(resolve, PATIENCE);
  });
}
