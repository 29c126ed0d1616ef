/** Threads in WebAssembly need headers that a plain server does not send: the service worker adds them (sw.js). */

const FIRST = 20_000; // ms until the page goes on without a service worker that is being installed
const CHANGE = 2000; // ms until it goes on with the version that it has

/**
 * Registers the service worker; if it can make threads possible, the page is loaded once more.
 *
 * @param {() => boolean} idle whether the page may be loaded again.
 * @param {() => void} renewed called when a newer version has taken over a page that could not be loaded again.
 * @returns {Promise<boolean>} whether the page goes on.
 */
export async function isolate(idle, renewed) {
  const workers = navigator.serviceWorker;
  if (!workers) return true; // no HTTPS and not this machine: one thread
  const before = workers.controller;
  const again = () => {
    if (idle()) location.reload();
    return idle();
  };
  try {
    const registration = await workers.register('sw.js');
    if (before) {
      workers.addEventListener('controllerchange', () => again() || renewed(), { once: true });
      if (!registration.waiting || !idle()) return true;
      registration.waiting.postMessage('take over'); // a newer version of the page
      await change(workers, CHANGE);
      return workers.controller === before || !idle();
    }
    if (self.crossOriginIsolated || registration.active?.state === 'activated') return true; // the latter: a hard reload
    if (!workers.controller) await change(workers, FIRST, registration.installing);
  } catch {
    return true;
  }
  return !(workers.controller && again());
}

/** Waits for another service worker to take over, but not for one that cannot be installed. */
function change(workers, patience, installing = null) {
  return new Promise((resolve) => {
    workers.addEventListener('controllerchange', resolve, { once: true });
    installing?.addEventListener('statechange', () => installing.state === 'redundant' && resolve());
    setTimeout(resolve, patience);
  });
}
