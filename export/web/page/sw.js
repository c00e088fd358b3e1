// Keeps the site's files by their SHA-256, so that it works without a network and an update fetches only what changed,
// and adds the headers that a static host cannot send: cross-origin isolation, which threads need, and the policy that
// lets nothing leave.

const FILES = JSON.parse("__FILES__"); // path -> [SHA-256, whether it is fetched at once]
const POLICY = "__POLICY__";
const HEADERS = {
  "content-security-policy": POLICY,
  "cross-origin-embedder-policy": "require-corp",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};
const TYPES = {
  css: "text/css", html: "text/html; charset=utf-8", jpg: "image/jpeg", js: "text/javascript", json: "application/json",
  mjs: "text/javascript", svg: "image/svg+xml", txt: "text/plain; charset=utf-8", wasm: "application/wasm",
}; // prettier-ignore
const scope = new URL("./", self.location.href).href;
const CACHE = `fid ${new URL(scope).pathname}`; // one host may hold several sites
const key = (sha256) => `${scope}sha256/${sha256}`;

async function hash(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function keep(cache, path, sha256) {
  if (await cache.match(key(sha256))) return;
  const answer = await fetch(new Request(scope + path, { cache: "no-cache" }));
  const bytes = await answer.arrayBuffer();
  if (!answer.ok || (await hash(bytes)) !== sha256) throw new Error(`${path} is not the file that sw.js belongs to`);
  await cache.put(key(sha256), new Response(bytes, { headers: { "content-type": TYPES[path.split(".").at(-1)] || "application/octet-stream" } }));
}

self.addEventListener("install", (event) => {
  const install = async () => {
    const cache = await caches.open(CACHE);
    await Promise.all(Object.entries(FILES).map(([path, [sha256, now]]) => (now ? keep(cache, path, sha256) : null)));
    await self.skipWaiting();
  };
  event.waitUntil(install());
});

self.addEventListener("activate", (event) => {
  const activate = async () => {
    const cache = await caches.open(CACHE);
    const known = new Set(Object.values(FILES).map(([sha256]) => key(sha256)));
    for (const request of await cache.keys()) if (!known.has(request.url)) await cache.delete(request);
    await self.clients.claim();
  };
  event.waitUntil(activate());
});

async function answer(request, path) {
  const known = FILES[path];
  const kept = known && (await (await caches.open(CACHE)).match(key(known[0])));
  const found = kept || (await fetch(request));
  if (found.type === "opaque" || found.type === "error" || found.status === 0) return found;
  const headers = new Headers(found.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || !url.href.startsWith(scope)) return;
  const path = decodeURIComponent(url.href.slice(scope.length).split(/[?#]/)[0]) || "index.html";
  event.respondWith(answer(event.request, path));
});
