// The site's large files: fetched once, checked against the SHA-256 that site.json states, kept by that hash.

const base = new URL("./", self.location.href);
const CACHE = `fid ${base.pathname}`; // one host may hold several sites
const keyOf = (sha256) => new URL(`sha256/${sha256}`, base).href;

async function hash(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Bytes of the file `name` {sha256, size}; `heard(bytes)` is called as they come over the network.
export async function bytesOf(name, { sha256, size }, heard = () => {}) {
  const store = self.caches ? await caches.open(CACHE) : null; // none where the page is not from https or localhost
  const kept = await store?.match(keyOf(sha256));
  if (kept) return new Uint8Array(await kept.arrayBuffer());
  const answer = await fetch(new URL(name, self.location.href), { cache: "no-cache" }).catch(() => null);
  if (!answer?.ok) throw new Error(`${name} (${(size / 1e6).toFixed(1)} MB) cannot be fetched; is there a network?`);
  const bytes = new Uint8Array(size);
  const reader = answer.body.getReader();
  let done = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (done + part.value.length > size) throw new Error(`${name} is another file than this page belongs to; reload the page.`);
    bytes.set(part.value, done);
    done += part.value.length;
    heard(part.value.length);
  }
  if (done !== size || (self.crypto?.subtle && (await hash(bytes)) !== sha256))
    throw new Error(`${name} is another file than this page belongs to, or broken; reload the page.`);
  const type = name.endsWith(".wasm") ? "application/wasm" : "application/octet-stream";
  await store?.put(keyOf(sha256), new Response(bytes, { headers: { "content-type": type, "content-length": `${size}` } })).catch(() => {});
  return bytes;
}
