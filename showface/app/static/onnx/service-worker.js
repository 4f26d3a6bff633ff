/**
 * Keeps the page's files, so that it works without a connection. Written beside index.html, since a service worker serves
 * only what lies below it. A file from the host is preferred to the kept one.
 */

const CACHE = "showface";
const FILES = new URL("static/files.json", self.location);

self.addEventListener("install", (event) => {
  event.waitUntil(keepAll().then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  event.waitUntil(self.clients.claim());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && new URL(request.url).origin === self.location.origin) {
    event.respondWith(fromHost(request).catch(() => kept(request)));
  }
});

async function keepAll() {
  const cache = await caches.open(CACHE);
  const names = await (await fetch(FILES)).json();
  await cache.addAll(names.map((name) => new URL(name, self.location).href));
}

async function fromHost(request) {
  const answer = await fetch(request);
  const cache = await caches.open(CACHE);
  // A file of an old version must not stay beside new ones.
  if (answer.ok && (await cache.match(request, { ignoreSearch: true }))) await cache.put(request.url, answer.clone());
  return answer;
}

async function kept(request) {
  const answer = await (await caches.open(CACHE)).match(request, { ignoreSearch: true });
  return answer ?? Response.error();
}
