// Identity files (.npz), as runtime/identity.py writes and reads them: a ZIP archive, nothing compressed, of NumPy arrays.

const MAX_BYTES = 1 << 20;
const text = new TextEncoder();

const crcTable = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = crcTable[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

function joined(parts) {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

// One array: a Float32Array, a whole number, or a string.
function npy(value) {
  let [descr, shape, body] = ["<f4", `(${value.length},)`, null];
  if (typeof value === "string") {
    const letters = [...value].map((letter) => letter.codePointAt(0));
    [descr, shape, body] = [`<U${Math.max(letters.length, 1)}`, "()", new Uint8Array(Uint32Array.from(letters.length ? letters : [0]).buffer)];
  } else if (typeof value === "number") [descr, shape, body] = ["<i8", "()", new Uint8Array(BigInt64Array.of(BigInt(value)).buffer)];
  else body = new Uint8Array(value.slice().buffer);
  const head = `{'descr': '${descr}', 'fortran_order': False, 'shape': ${shape}, }`;
  const padded = head.padEnd(64 * Math.ceil((head.length + 11) / 64) - 11) + "\n";
  return joined([Uint8Array.of(0x93, ...text.encode("NUMPY"), 1, 0, padded.length & 255, padded.length >> 8), text.encode(padded), body]);
}

function zip(files) {
  const [parts, index] = [[], []];
  let at = 0;
  for (const [name, bytes] of files) {
    const title = text.encode(name);
    const common = new DataView(new ArrayBuffer(26)); // what the local and the central header share
    common.setUint16(0, 20, true);
    common.setUint16(8, 0x21, true); // 1980-01-01
    common.setUint32(10, crc32(bytes), true);
    common.setUint32(14, bytes.length, true);
    common.setUint32(18, bytes.length, true);
    common.setUint16(22, title.length, true);
    const shared = new Uint8Array(common.buffer);
    const offset = new Uint8Array(Uint32Array.of(at).buffer);
    index.push(Uint8Array.of(0x50, 0x4b, 1, 2, 20, 0), shared, new Uint8Array(10), offset, title);
    const local = [Uint8Array.of(0x50, 0x4b, 3, 4), shared, title, bytes];
    parts.push(...local);
    at += local.reduce((sum, part) => sum + part.length, 0);
  }
  const size = index.reduce((sum, part) => sum + part.length, 0);
  const end = new DataView(new ArrayBuffer(22));
  end.setUint32(0, 0x06054b50, true);
  end.setUint16(8, files.length, true);
  end.setUint16(10, files.length, true);
  end.setUint32(12, size, true);
  end.setUint32(16, at, true);
  return joined([...parts, ...index, new Uint8Array(end.buffer)]);
}

// `identity` is {code, appearance, sources}; `names` are {encoder, attributes, identityFormat} of the bundle.
export function writeIdentity({ code, appearance, sources }, names) {
  const arrays = { format: names.identityFormat, code, encoder: names.encoder, sources };
  if (appearance) Object.assign(arrays, { appearance, attributes: names.attributes });
  return new Blob([zip(Object.entries(arrays).map(([name, value]) => [`${name}.npy`, npy(value)]))]);
}

function readNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const [start, length] = bytes[6] === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const head = new TextDecoder().decode(bytes.subarray(start, start + length));
  const kind = /'descr': '([^']+)'/.exec(head)?.[1] || "";
  const body = bytes.slice(start + length);
  if (kind === "<f4") return new Float32Array(body.buffer);
  if (kind === "<i8") return Number(new BigInt64Array(body.buffer)[0]);
  if (kind.startsWith("<U")) return String.fromCodePoint(...new Uint32Array(body.buffer)).replaceAll("\0", "");
  return null;
}

// The identity in a file's bytes, or an error in one sentence, which calls the file `name`.
export function readIdentity(bytes, name, bundle) {
  const arrays = {};
  try {
    if (bytes.length > MAX_BYTES) throw new Error("too large");
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    let end = bytes.length - 22;
    while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
    let at = view.getUint32(end + 16, true);
    for (let left = view.getUint16(end + 10, true); left > 0; left--) {
      const [method, size] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true)];
      const [title, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
      const local = view.getUint32(at + 42, true);
      const from = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
      const key = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + title)).replace(/\.npy$/, "");
      if (method === 0) arrays[key] = readNpy(bytes.subarray(from, from + size));
      at += 46 + title + extra + comment;
    }
  } catch {
    throw new Error(`${name} is not an identity file: it is broken or of another kind.`);
  }
  const { format, code, encoder, sources = 1, appearance, attributes } = arrays;
  if (!(format >= 1 && format <= bundle.identityFormat) || !(code instanceof Float32Array) || Math.abs(Math.hypot(...code) - 1) > 1e-3)
    throw new Error(`${name} is not an identity file that this page can read.`);
  if (arrays.w_offset || arrays.w_plus_offset) throw new Error(`${name} holds an offset in W+ (refined or personalised), which this page cannot use; use photos, or fid-run.`);
  const same = encoder === bundle.encoder && (!bundle.takesAppearance || attributes === bundle.attributes);
  if (!same) throw new Error(`${name} was made with another bundle than ${bundle.name} ${bundle.version}; make it again from photos.`);
  return { code, appearance: appearance || null, sources };
}
