// Where the static site gets its faces from: this browser. A worker computes (worker.js); a service worker keeps every
// file by its hash, so that the site works without a network after the first visit, and gives the page the headers that
// threads need. No photo, picture or code is sent anywhere: there is nowhere to send it to.

import { writeIdentity } from "./identity.js";
import { noted } from "./note.js";

const CONTROL_MS = 4000; // at most so long for the service worker to take over
export const wantsToken = { now: false };
export const setToken = () => {};

const $ = (selector) => document.querySelector(selector);
const say = (detail) => dispatchEvent(new CustomEvent("source", { detail }));
const codes = new Map(); // "identity ada" -> the code of a face that ships

let site = null;
let worker = null;
let engine = null;
let number = 0;
const waiting = new Map();

function call(name, args, transfer = []) {
  return new Promise((resolve, reject) => {
    waiting.set(++number, { resolve, reject });
    worker.postMessage({ id: number, call: name, args }, transfer);
  });
}

function hear({ data: { id, event, detail, result, error } }) {
  if (event === "progress") say({ progress: detail });
  if (event === "engine") showEngine(detail);
  if (id === undefined) return;
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
}

function showEngine(told) {
  engine = told;
  const threads = told.text.startsWith("WASM") && !crossOriginIsolated ? " (more threads need cross-origin isolation)" : "";
  say({ runs: `fid ${site.version} in this browser, on ${told.text}${threads}. ${told.why}`.trim() });
}

// The service worker, in charge; a page that it has given no headers yet is loaded once more, before anything large is.
async function takeCover() {
  if (!navigator.serviceWorker) return;
  try {
    await navigator.serviceWorker.register("sw.js");
  } catch {
    return; // a browser may forbid it; then there is a page without threads that needs the network
  }
  if (!navigator.serviceWorker.controller)
    await Promise.race([
      new Promise((done) => navigator.serviceWorker.addEventListener("controllerchange", done, { once: true })),
      new Promise((done) => setTimeout(done, CONTROL_MS)),
    ]);
  if (!navigator.serviceWorker.controller || crossOriginIsolated || sessionStorage.getItem("reloaded")) return;
  sessionStorage.setItem("reloaded", "1");
  location.reload();
  await new Promise(() => {});
}

const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

export async function begin() {
  await takeCover();
  const answer = await fetch("site.json");
  if (!answer.ok) throw new Error("site.json is missing; export the site again.");
  site = await answer.json();
  for (const face of site.faces.identity) codes.set(`identity ${face.name}`, { code: floats(face.code), appearance: face.appearance && floats(face.appearance), sources: 1 });
  for (const face of site.faces.attributes) codes.set(`attributes ${face.name}`, floats(face.code));
  const { faces, ...config } = site;
  worker = new Worker("worker.js", { type: "module" });
  worker.addEventListener("message", hear);
  worker.addEventListener("error", (event) => {
    for (const { reject } of waiting.values()) reject(new Error(`The computing part of this page failed: ${event.message || "it could not be loaded"}.`));
    waiting.clear();
  });
  const wish = new URLSearchParams(location.search).get("engine");
  showEngine(await call("start", { wish, config }));
  $("#full").disabled = !site.graphs["synthesis-light"];
  $("#full").checked = $("#full").disabled || localStorage.getItem("full") === "1";
  $("#full-text").textContent = `Full generator (${(site.files[site.graphs.synthesis].size / 1e6).toFixed(0)} MB more, once)`;
  $("#full").addEventListener("change", () => {
    localStorage.setItem("full", $("#full").checked ? "1" : "0");
    say({ redo: true });
  });
  return { runs: $("#runs").textContent, live: true, faces, video: null, resolutions: [site.bundle.resolution] };
}

const codeOf = (kind, face) => face && (face.code || codes.get(`${kind} ${face.name}`));
const coded = (kind, { face, to, mix }) => ({ code: codeOf(kind, face), to: codeOf(kind, to), mix });

// The faces of a photo, [{number, box, problem}], the largest first, and the photo.
export const faces = async (file) => ({ faces: await call("faces", { file }), shown: file });

// The code of one photo, or of several of one person; of face number `face` of each, without one of the largest.
export async function encode(kind, files, face = null) {
  const made = await call("encode", { kind, files, face: files.length === 1 ? face : null });
  return { code: kind === "attributes" ? made.code : made };
}

export const identityFile = (code) => writeIdentity(code, site.bundle);

export async function compose(wish) {
  const asked = { identity: coded("identity", wish.identity), attributes: coded("attributes", wish.attributes), full: $("#full").checked };
  const { blob, ms, by } = await call("compose", asked);
  return { blob: noted(blob, site.notes[wish.identity.to || wish.attributes.to ? "interpolation" : "composition"]), ms, by };
}

// The bytes of the note that files get, by what they are; they come from the exporter.
export const notes = async () => site.notes;

// The camera: the newest frame goes to the worker when it is idle; what comes back is drawn on a canvas, whose stream is
// what the page shows and records.
export class Live {
  constructor(stream, hooks) {
    Object.assign(this, { stream, hooks, closed: false, times: [], dropped: 0, frames: 0 });
  }

  async start() {
    this.hooks.say({ text: "Fetching what live pictures need…" });
    await call("startLive");
    this.video = Object.assign(document.createElement("video"), { srcObject: this.stream, muted: true, playsInline: true });
    await this.video.play();
    this.canvas = document.createElement("canvas");
    [this.canvas.width, this.canvas.height] = [site.bundle.resolution, site.bundle.resolution];
    this.context = this.canvas.getContext("2d");
    this.context.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.hooks.show(this.canvas.captureStream());
    this.loop().catch((error) => this.closed || this.hooks.fail(error));
  }

  tell() {} // the wish is asked for with every frame

  next() {
    if (!this.video.requestVideoFrameCallback) return new Promise(requestAnimationFrame).then(() => null);
    return new Promise((done) => this.video.requestVideoFrameCallback((_, { presentedFrames }) => done(presentedFrames)));
  }

  async loop() {
    const begin = performance.now();
    let former = null;
    while (!this.closed) {
      const count = await this.next();
      if (this.closed) return;
      if (count !== null && former !== null) this.dropped += Math.max(0, count - former - 1);
      former = count;
      const start = performance.now();
      const bitmap = await createImageBitmap(this.video);
      const { identity, view, noFace } = this.hooks.wish();
      const wish = { identity: coded("identity", identity), view, noFace, who: `${identity.face.name} ${identity.to?.name} ${identity.mix}` };
      const { shown, face, stages } = await call("frame", { bitmap, time: (start - begin) / 1000, wish }, [bitmap]);
      if (this.closed) return;
      if (this.canvas.width !== shown.width || this.canvas.height !== shown.height)
        [this.canvas.width, this.canvas.height] = [shown.width, shown.height];
      this.context.putImageData(shown, 0, 0);
      this.figures(start, face, stages);
    }
  }

  figures(start, face, stages) {
    const now = performance.now();
    this.frames++;
    this.times = [...this.times.filter((time) => now - time < 3000), now];
    this.stages = stages;
    const span = this.times.at(-1) - this.times[0];
    const fps = span > 0 ? (1000 * (this.times.length - 1)) / span : 0;
    this.hooks.say({ fps, delay: now - start, dropped: this.dropped, face, frames: this.frames, by: engine.text });
  }

  close() {
    this.closed = true;
    if (this.video) this.video.srcObject = null;
  }
}
