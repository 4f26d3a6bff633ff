/**
 * Keeps the page's files, so that it works without a connection. Written beside index.html, since a service worker serves
 * only what lies below it. A file from the host is preferred to the kept one.
 */

const VERSION = "showface"; // followed by a hash of the site's files, so that browsers see a new version
const SITE = `${self.registration.scope} `; // caches belong to an origin, which may have several sites
const CACHE = SITE + VERSION;
const FILES = new URL("static/files.json", self.location);

self.addEventListener("install", (event) => {
  event.waitUntil(keepAll().then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(dropOthers().then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && new URL(request.url).origin === self.location.origin) {
    event.respondWith(fetch(request).catch(() => kept(request)));
  }
});

async function keepAll() {
  const cache = await caches.open(CACHE);
  const names = await (await fetch(FILES, { cache: "no-cache" })).json();
  // Not from the browser's own cache, which may hold files of an older version.
  await cache.addAll(names.map((name) => new Request(new URL(name, self.location), { cache: "no-cache" })));
}

/** Delete the files of this site's older versions. */
async function dropOthers() {
  const names = (await caches.keys()).filter((name) => name.startsWith(SITE) && name !== CACHE);
  await Promise.all(names.map((name) => caches.delete(name)));
}

async function kept(request) {
  const answer = await (await caches.open(CACHE)).match(request, { ignoreSearch: true });
  return answer ?? Response.error();
}
