// All computing of the static site: graphs on ONNX Runtime Web, faces found, aligned, encoded, composed. One request at a
// time, {id, call, args}; the answer is {id, result} or {id, error}. In between {event, detail} tells of downloads.

import { bytesOf } from "./files.js";
import { Detector, chooseFace } from "./detect.js";
import { CROP_SIZE, align, fromRgba, image, resizeLinear, square, toRgba } from "./geometry.js";
import { readIdentity } from "./identity.js";
import { Paster } from "./paste.js";
import { OneEuro } from "./smooth.js";
import { Tracker } from "./track.js";

const [W_CUTOFF_HZ, W_BETA] = [1.6, 1.2]; // of the One-Euro filter on w
const BLANK = 32; // grey of a picture without a face, 0..255
const MOST_PIXELS = 24e6; // of a photo; a larger one is made smaller
const MOST_THREADS = 4;
const LEAST_DB = 45; // of the first picture against the one that the exporter made: below it, a GPU is not trusted
const ON_CPU = ["identity", "detect"]; // run once a photo, or are small; a GPU would only have to be warmed up for them

let site = null; // site.json
let ort = null;
let engine = null; // {name: "webgpu" or "wasm", text}
const sessions = new Map();

const tell = (event, detail) => postMessage({ event, detail });

// ---- downloads and sessions

async function download(names) {
  const wanted = names.filter((name) => site.files[name]);
  const all = wanted.reduce((sum, name) => sum + site.files[name].size, 0);
  let done = 0;
  const heard = (bytes) => {
    done += bytes;
    tell("progress", { part: done / all, text: `${(done / 1e6).toFixed(1)} of ${(all / 1e6).toFixed(1)} MB` });
  };
  try {
    const bytes = await Promise.all(wanted.map((name) => bytesOf(name, site.files[name], heard)));
    return Object.fromEntries(wanted.map((name, i) => [name, bytes[i]]));
  } finally {
    if (done) tell("progress", null);
  }
}

async function adapterText() {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: "high-performance" }).catch(() => null);
  if (!adapter) return null;
  const { vendor, architecture, device, description } = adapter.info || {};
  const isSoftware = Boolean(adapter.info?.isFallbackAdapter || adapter.isFallbackAdapter || architecture === "swiftshader");
  return { isSoftware, text: [vendor, architecture, description || device].filter(Boolean).join(" ") || "a GPU without a name" };
}

// Load ONNX Runtime Web: on WebGPU where there is a GPU, else on WASM. `wish` is "webgpu", "wasm" or null.
async function start({ wish, config }) {
  site = config;
  const adapter = wish === "wasm" ? null : await adapterText();
  const gpu = adapter && (wish === "webgpu" || !adapter.isSoftware);
  const build = site.runtimes[gpu ? "webgpu" : "wasm"];
  await download([build.wasm]);
  ort = await import(new URL(build.script, self.location.href));
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = new URL(".", new URL(build.script, self.location.href)).href;
  const cores = Math.max(1, Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1));
  ort.env.wasm.numThreads = self.crossOriginIsolated ? cores : 1;
  engine = { gpu: Boolean(gpu), cpu: cpuText(), text: gpu ? `WebGPU, ${adapter.text}` : cpuText(), why: "" };
  if (wish === "webgpu" && !gpu) engine.why = "This browser offers no WebGPU here, so WASM computes.";
  else if (!gpu && wish !== "wasm") engine.why = adapter ? "There is no GPU behind this browser's WebGPU." : "No WebGPU is offered here.";
  return told();
}

const cpuText = () => `WASM, ${ort.env.wasm.numThreads} thread${ort.env.wasm.numThreads > 1 ? "s" : ""}`;
const told = () => ({ text: engine.text, why: engine.why });

async function open(name) {
  if (sessions.has(name)) return sessions.get(name);
  const file = site.graphs[name];
  const bytes = (await download([file]))[file];
  const gpu = engine.gpu && !ON_CPU.includes(name);
  try {
    const session = await ort.InferenceSession.create(bytes, {
      executionProviders: [gpu ? "webgpu" : "wasm"],
      freeDimensionOverrides: { batch: 1 },
      logSeverityLevel: 3,
    });
    sessions.set(name, session);
    return session;
  } catch (error) {
    if (gpu) return giveUpGpu(`WebGPU could not open the graph ${name}`).then(() => open(name));
    const memory = /alloc|memory|RangeError/i.test(`${error}`);
    throw new Error(memory ? `There is too little memory in this browser for the graph ${name}; close other tabs.` : `The graph ${name} cannot be opened: ${error.message || error}.`);
  }
}

async function giveUpGpu(reason) {
  for (const [name, session] of [...sessions]) {
    if (ON_CPU.includes(name)) continue;
    sessions.delete(name);
    await session.release().catch(() => {});
  }
  Object.assign(engine, { gpu: false, text: engine.cpu, why: `${reason}; WASM runs in its place.` });
  tell("engine", told());
}

async function run(name, feeds) {
  const session = await open(name);
  const tensors = {};
  for (const [key, [type, data, shape]] of Object.entries(feeds)) tensors[key] = new ort.Tensor(type, data, shape);
  try {
    return await session.run(tensors);
  } catch (error) {
    if (!engine.gpu || ON_CPU.includes(name)) throw error;
    await giveUpGpu(`WebGPU failed in the graph ${name}`);
    return run(name, feeds);
  }
}

// ---- the networks

const detector = new Detector(async ({ data, width, height }) => {
  const outputs = await run("detect", { input: ["float32", data, [1, 3, height, width]] });
  return Object.fromEntries(Object.entries(outputs).map(([name, tensor]) => [name, tensor.data]));
});

const cropFeed = (crop) => ({ crop: ["uint8", crop.data, [1, CROP_SIZE, CROP_SIZE, 3]] });
const attributeCode = async (crop) => (await run("attributes", cropFeed(crop))).attributes.data.slice();
const identityCode = async (crop) => (await run("identity", cropFeed(crop))).identity.data.slice();

async function mapped({ code, appearance }, attributes) {
  const feeds = { identity: ["float32", code, [1, code.length]], attributes: ["float32", attributes, [1, attributes.length]] };
  if (site.bundle.takesAppearance) feeds.appearance = ["float32", appearance, [1, appearance.length]];
  return (await run("mapper", feeds)).w.data.slice();
}

// The generator's picture, Uint8Array [side, side, 3], of a w, which each of its styles gets alike where it takes several.
async function generated(name, w) {
  const [input] = (await open(name)).inputMetadata;
  const [, styles] = input.shape;
  if (input.shape.length === 2) return (await run(name, { [input.name]: ["float32", w, [1, w.length]] })).image.data;
  const wide = new Float32Array(styles * w.length);
  for (let i = 0; i < styles; i++) wide.set(w, i * w.length);
  return (await run(name, { [input.name]: ["float32", wide, [1, styles, w.length]] })).image.data;
}

async function picture(w, light) {
  const side = site.bundle.resolution;
  const name = light && site.graphs["synthesis-light"] ? "synthesis-light" : "synthesis";
  const made = { data: Uint8Array.from(await generated(name, w)), width: side, height: side, channels: 3 };
  if (engine.gpu && !engine.checked) {
    engine.checked = true;
    const db = await check(name);
    if (!(db >= LEAST_DB)) {
      await giveUpGpu(`WebGPU gave a wrong picture (${db.toFixed(1)} dB)`);
      return picture(w, light);
    }
  }
  return made;
}

// dB between this engine's picture and the one that the exporter made of the same w.
async function check(name) {
  const expected = (await download([site.check[name].picture]))[site.check[name].picture];
  const data = await generated(name, Float32Array.from(site.check[name].w));
  let squares = 0;
  for (let i = 0; i < expected.length; i++) squares += (data[i] - expected[i]) ** 2;
  return 10 * Math.log10(255 ** 2 / Math.max(squares / expected.length, 1e-9));
}

const between = (a, b, t) => a.map((value, i) => (1 - t) * value + t * b[i]);

function unit(code) {
  const length = Math.hypot(...code);
  if (length < 1e-3) throw new Error("These identities cancel each other out; give photos of one person.");
  return code.map((value) => value / length);
}

// ---- photos

async function opened(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`${file.name} is not a picture that this browser can read; use a JPEG, PNG or WebP.`);
  }
  const factor = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  return pixels(bitmap, Math.round(bitmap.width * factor), Math.round(bitmap.height * factor));
}

let canvas = null;

function pixels(bitmap, width = bitmap.width, height = bitmap.height) {
  if (canvas?.width !== width || canvas.height !== height) canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff"; // under what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  return fromRgba(context.getImageData(0, 0, width, height));
}

// Where a photo's faces are, in parts of its sides, and why one cannot be used.
async function faces({ file }) {
  const photo = await opened(file);
  return (await detector.faces(photo)).map((face, i) => {
    let problem = null;
    try {
      chooseFace([face], file.name);
    } catch (error) {
      problem = error.message;
    }
    const [x, y, wide, high] = face.box;
    return { number: i + 1, box: [x / photo.width, y / photo.height, wide / photo.width, high / photo.height], problem };
  });
}

async function crop(photo, name, number = 1) {
  const found = await detector.faces(photo);
  const face = chooseFace(found.slice(number - 1), name);
  return align(await detector.refine(photo, face)).crop(photo);
}

async function encode({ kind, files, face }) {
  const number = face || 1;
  if (kind === "attributes") return { code: await attributeCode(await crop(await opened(files[0]), files[0].name, number)), crop: null };
  const people = [];
  for (const file of files) {
    if (file.name.endsWith(".npz")) people.push(readIdentity(new Uint8Array(await file.arrayBuffer()), file.name, site.bundle));
    else {
      const seen = await crop(await opened(file), file.name, number);
      people.push({ code: await identityCode(seen), appearance: site.bundle.takesAppearance ? await attributeCode(seen) : null, sources: 1 });
    }
  }
  const weights = people.map(({ sources }) => Math.max(sources, 1));
  const all = weights.reduce((a, b) => a + b);
  const mean = (part) => people[0][part]?.map((_, i) => people.reduce((sum, one, k) => sum + (weights[k] / all) * one[part][i], 0)) || null;
  if (people.length === 1) return people[0];
  return { code: unit(mean("code")), appearance: mean("appearance"), sources: people.reduce((sum, one) => sum + one.sources, 0) };
}

async function mixedW({ identity, attributes }) {
  const along = async (person) => {
    const first = await mapped(person, attributes.code);
    return attributes.to ? between(first, await mapped(person, attributes.to), attributes.mix) : first;
  };
  const first = await along(identity.code);
  return identity.to ? between(first, await along(identity.to), identity.mix) : first;
}

async function compose(wish) {
  const name = wish.full || !site.graphs["synthesis-light"] ? "synthesis" : "synthesis-light";
  await download([site.graphs.mapper, site.graphs[name]].filter((file, i) => !sessions.has(["mapper", name][i])));
  await open("mapper");
  await open(name);
  const start = performance.now();
  const made = await picture(await mixedW(wish), !wish.full);
  const ms = performance.now() - start;
  const shown = new OffscreenCanvas(made.width, made.height);
  shown.getContext("2d").putImageData(toRgba(made), 0, 0);
  return { blob: await shown.convertToBlob({ type: "image/png" }), ms, by: `${name === "synthesis" ? "full" : "light"} generator on ${engine.text}` };
}

// ---- live

let live = null;

async function startLive() {
  const light = site.graphs["synthesis-light"] ? "synthesis-light" : "synthesis";
  const names = ["detect", "attributes", "mapper", light];
  await download(names.filter((name) => !sessions.has(name)).map((name) => site.graphs[name]));
  for (const name of names) await open(name);
  live = { tracker: new Tracker(detector), filter: new OneEuro(W_CUTOFF_HZ, W_BETA), paster: new Paster(), held: null, time: 0, who: "" };
  return told();
}

// What to show of one frame: {shown: ImageData, face: whether one was seen, stages: ms of each}.
async function frame({ bitmap, time, wish }) {
  const stages = {};
  let last = performance.now();
  const done = (stage) => {
    const now = performance.now();
    [stages[stage], last] = [now - last, now];
  };
  const photo = pixels(bitmap);
  done("read");
  if (live.size !== `${photo.width} ${photo.height}`) {
    live.tracker.reset();
    live.filter.reset();
    live.paster.reset();
    Object.assign(live, { held: null, size: `${photo.width} ${photo.height}` });
  }
  const alignment = await live.tracker.next(photo, time);
  done("track");
  const step = Math.max(time - live.time, 0);
  live.time = time;
  let shown;
  if (alignment) {
    const seen = alignment.crop(photo);
    done("align");
    const attributes = await attributeCode(seen);
    done("attributes");
    const person = wish.identity.to ? blended(wish.identity) : wish.identity.code;
    if (live.who !== wish.who) live.filter.reset();
    live.who = wish.who;
    const w = Float32Array.from(live.filter.filter(await mapped(person, attributes), time));
    done("mapper");
    const made = await picture(w, true);
    done("synthesis");
    if (wish.view === "paste") shown = live.paster.paste(photo, made, alignment, seen, step);
    else shown = wish.view === "side-by-side" ? resizeLinear(made, photo.height, photo.height) : made;
    live.held = { shown, view: wish.view };
  } else {
    live.filter.reset();
    const side = wish.view === "side-by-side" ? photo.height : site.bundle.resolution;
    const size = wish.view === "paste" ? [photo.width, photo.height] : [side, side];
    if (wish.noFace === "pass") shown = wish.view === "paste" ? photo : square(photo, side);
    else if (wish.noFace === "hold" && live.held?.view === wish.view) shown = live.held.shown;
    else {
      shown = image(...size, 3);
      shown.data.fill(BLANK);
    }
  }
  if (wish.view === "side-by-side") shown = beside(photo, shown);
  done("paste");
  return { shown: toRgba(shown), face: Boolean(alignment), stages };
}

function blended({ code, to, mix }) {
  const appearance = code.appearance && between(code.appearance, to.appearance, mix);
  return { code: unit(between(code.code, to.code, mix)), appearance };
}

function beside(left, right) {
  const made = image(left.width + right.width, left.height, 3);
  for (let y = 0; y < left.height; y++) {
    made.data.set(left.data.subarray(3 * y * left.width, 3 * (y + 1) * left.width), 3 * y * made.width);
    made.data.set(right.data.subarray(3 * y * right.width, 3 * (y + 1) * right.width), 3 * (y * made.width + left.width));
  }
  return made;
}

// ---- requests, one after another

const calls = { start, faces, encode, compose, startLive, frame };
let queue = Promise.resolve();

addEventListener("message", ({ data: { id, call, args } }) => {
  queue = queue.then(async () => {
    try {
      const result = await calls[call](args);
      postMessage({ id, result }, result?.shown ? [result.shown.data.buffer] : []);
    } catch (error) {
      postMessage({ id, error: error.message || String(error) });
    }
  });
});
