// Where `fid-run serve` gets its faces from: its HTTP API, and WebRTC for live video. What is uploaded comes back as a
// code (an identity file, an attribute code) and is kept in the page; the server keeps nothing. So moving a slider sends
// a few kB and not the photos again.

const PHOTO_TYPES = ["image/jpeg", "image/png", "image/webp"]; // others are turned into JPEG by the browser
const AS_IT_IS_BYTES = 4e6; // a larger photo is made smaller before it is sent
const LONGEST_SIDE = 2400; // px, of a photo that is made smaller
const SHORTEST_SIDE = 400; // px; it is made no smaller than that, however little room there is
const OFFER_MS = 3000; // at most so long for collecting network addresses
const CONNECT_MS = 20000; // at most so long from the answer to a connection
const NO_WAY =
  "The video connection failed. Browser and server need a network in common, and browsers do not count loopback: without any network there is no live video.";
const LISTS = { identity: "identities", attributes: "attributes" };

export const wantsToken = { now: false }; // the server asked for its token

let token = sessionStorage.getItem("token") || "";
if (location.hash.startsWith("#token=")) {
  token = decodeURIComponent(location.hash.slice(7));
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname);
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

export function setToken(text) {
  token = text;
  sessionStorage.setItem("token", token);
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is fid-run serve still running?");
  }
  wantsToken.now = answer.status === 401;
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    const error = new Error(sentence(said.error || `The server answered ${answer.status}.`));
    error.busy = answer.status === 503;
    throw error;
  }
  return answer;
}

// The faces that ship, and what the page says it runs on.
export async function begin() {
  const health = await (await ask("api/health")).json();
  const video = health.video.mb > 0 ? health.video : null;
  const { resolutions, controls } = health;
  uploadBytes = 1e6 * health.upload.mb;
  const faces = {};
  for (const [kind, list] of Object.entries(LISTS)) faces[kind] = (await (await ask(`api/${list}`)).json())[list];
  return { runs: `fid ${health.version} on ${health.provider}`, live: health.live.limit > 0, faces, video, resolutions, controls };
}

let uploadBytes = 12e6; // of one request, as the server says

async function smaller(photo, room) {
  if (PHOTO_TYPES.includes(photo.type) && photo.size <= Math.min(room, AS_IT_IS_BYTES)) return photo;
  let bitmap;
  try {
    bitmap = await createImageBitmap(photo, { imageOrientation: "from-image" });
  } catch {
    throw new Error(`${photo.name} is not a picture that this browser can read; use a JPEG, PNG or WebP.`);
  }
  const canvas = document.createElement("canvas");
  let side = Math.min(LONGEST_SIDE, Math.max(bitmap.width, bitmap.height));
  let made;
  do {
    const factor = side / Math.max(bitmap.width, bitmap.height);
    canvas.width = Math.round(bitmap.width * factor);
    canvas.height = Math.round(bitmap.height * factor);
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    made = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    side *= 0.75;
  } while (made.size > room && side >= SHORTEST_SIDE);
  bitmap.close();
  return made;
}

// The faces of a photo, [{number, box, problem}], the largest first, and the photo as it was sent.
export async function faces(file) {
  const shown = await smaller(file, 0.9 * uploadBytes);
  const form = new FormData();
  form.append("photo", shown, "photo");
  return { ...(await (await ask("api/faces", { method: "POST", body: form })).json()), shown };
}

// The code of one photo, or of several of one person; of face number `face` of each, without one of the largest.
export async function encode(kind, files, face = null) {
  const form = new FormData();
  for (const file of files) {
    const photo = file.name.endsWith(".npz") ? file : await smaller(file, (0.9 * uploadBytes) / files.length);
    form.append("photo", photo, "photo");
  }
  if (files.length === 1 && face) form.append("face", face);
  const answer = await ask(`api/${LISTS[kind]}`, { method: "POST", body: form });
  return { code: await answer.blob() };
}

let known = null;

// The bytes of the note that files get, by what they are.
export async function notes() {
  known ||= await (await ask("api/notes")).json();
  return known;
}

export const identityFile = (code) => code;

// The composed picture as a file. `wish` holds for each kind {face, to, mix}; `to` is null where nothing is blended.
// `side`: px, or null for the server's own. `following`: {pose, expression}, how far each is followed, 0..1.5.
export async function compose(wish, side = null, following = {}) {
  const form = new FormData();
  for (const [name, scale] of Object.entries(following)) if (scale !== 1) form.append(name, scale);
  if (side) form.append("resolution", side);
  for (const [kind, { face, to, mix }] of Object.entries(wish)) {
    form.append(kind, face.code || face.name);
    if (to) {
      form.append(`${kind}_to`, to.code || to.name);
      form.append(`${kind}_mix`, mix);
    }
  }
  return { blob: await (await ask("api/compose", { method: "POST", body: form })).blob() };
}

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

async function settings({ identity, view, noFace, pose, expression }) {
  const one = async (face) => (face.code ? { npz: await base64(face.code) } : face.name);
  return {
    identity: await one(identity.face),
    identity_to: identity.to ? await one(identity.to) : null,
    identity_mix: identity.mix,
    view,
    no_face: noFace,
    pose,
    expression,
  };
}

// Which of fid's labels a picture bears; the file is sent as it is, because a smaller copy would have lost its notes.
export async function checkPicture(file) {
  const form = new FormData();
  form.append("photo", file, file.name);
  return (await ask("api/check", { method: "POST", body: form })).json();
}

// ---- whole videos

// Send a video file; `heard` is told which part has arrived, and `mine` gets abort() while it lasts.
export function sendVideo(file, heard, mine) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how far an upload is
    request.open("POST", "api/videos");
    if (token) request.setRequestHeader("Authorization", `Bearer ${token}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => heard(event.loaded / event.total));
    request.addEventListener("load", () => {
      if (request.status === 201) resolve(request.response);
      else reject(new Error(sentence(request.response?.error || `The server answered ${request.status}.`)));
    });
    request.addEventListener("error", () => reject(new Error("The upload broke off. Is fid-run serve still running?")));
    request.addEventListener("abort", () => reject(new Error("")));
    mine.abort = () => request.abort();
    request.send(file);
  });
}

export async function startVideo(name, wish) {
  const body = JSON.stringify(await settings(wish));
  return (await ask(`api/videos/${name}`, { method: "POST", body, headers: { "Content-Type": "application/json" } })).json();
}

export const videoProgress = async (name) => (await ask(`api/videos/${name}`)).json();
export const videoResult = async (name) => (await ask(`api/videos/${name}/result`)).blob();
export const dropVideo = (name) => ask(`api/videos/${name}`, { method: "DELETE", keepalive: true });

// Live video: one peer connection, its settings and figures on a data channel. `hooks`: wish() is what to show now,
// show(stream), say(figures) and fail(error) are told what comes.
export class Live {
  constructor(stream, hooks) {
    Object.assign(this, { stream, hooks, roundTrip: 0, closed: false });
  }

  async start() {
    const connection = (this.connection = new RTCPeerConnection({ iceServers: [] }));
    const [track] = this.stream.getVideoTracks();
    track.contentHint = "motion";
    const sender = connection.addTransceiver(track, { direction: "sendrecv", streams: [this.stream] });
    if ("jitterBufferTarget" in sender.receiver) sender.receiver.jitterBufferTarget = 0;
    this.channel = connection.createDataChannel("settings");
    this.channel.addEventListener("open", () => this.tell());
    this.channel.addEventListener("message", (event) => this.hear(JSON.parse(event.data)));
    connection.addEventListener("track", (event) => this.hooks.show(new MediaStream([event.track])));
    connection.addEventListener("connectionstatechange", () => {
      if (connection.connectionState === "failed") this.hooks.fail(NO_WAY);
      if (connection.connectionState === "disconnected") this.hooks.say({ text: "Connection lost, trying again…" });
    });
    await connection.setLocalDescription(await connection.createOffer());
    await new Promise((done) => {
      const check = () => connection.iceGatheringState === "complete" && done();
      connection.addEventListener("icegatheringstatechange", check);
      setTimeout(done, OFFER_MS);
      check();
    });
    this.told = await settings(this.hooks.wish());
    const body = JSON.stringify({ type: "offer", sdp: connection.localDescription.sdp, settings: this.told });
    const answer = await ask("api/live", { method: "POST", body, headers: { "Content-Type": "application/json" } });
    const said = await answer.json();
    this.session = said.session;
    if (this.closed) return this.close();
    await connection.setRemoteDescription({ type: "answer", sdp: said.sdp });
    setTimeout(() => !this.closed && connection.connectionState !== "connected" && this.hooks.fail(NO_WAY), CONNECT_MS);
  }

  async tell() {
    const now = await settings(this.hooks.wish());
    if (this.channel?.readyState !== "open") return;
    const told = this.told || {};
    const fresh = Object.entries(now).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(told[name]));
    if (fresh.length) this.channel.send(JSON.stringify(Object.fromEntries(fresh)));
    this.told = now;
  }

  async hear(message) {
    if (this.closed) return;
    if (message.error) this.hooks.say({ error: sentence(message.error) });
    if (message.pong !== undefined) this.roundTrip = performance.now() - message.pong;
    if (!message.stats) return;
    this.channel.send(JSON.stringify({ ping: performance.now() }));
    const { fps, age_ms: age, dropped, face, frames } = message.stats;
    const delay = age.p50 === null ? null : age.p50 + this.roundTrip + (await this.codecDelay());
    if (!this.closed) this.hooks.say({ fps, delay, dropped, face, frames });
  }

  // ms that a frame spends in this browser since the last report: encoding, waiting in the jitter buffer, decoding
  async codecDelay() {
    const now = {};
    for (const report of (await this.connection.getStats()).values()) {
      if (report.type === "outbound-rtp" && report.kind === "video")
        now.encode = [report.totalEncodeTime, report.framesEncoded];
      if (report.type === "inbound-rtp" && report.kind === "video") {
        now.buffer = [report.jitterBufferDelay, report.jitterBufferEmittedCount];
        now.decode = [report.totalDecodeTime, report.framesDecoded];
      }
    }
    let ms = 0;
    for (const [what, [seconds, count]] of Object.entries(now)) {
      const [before, counted] = this.codec?.[what] || [0, 0];
      if (count > counted && seconds >= before) ms += (1000 * (seconds - before)) / (count - counted);
    }
    this.codec = now;
    return ms;
  }

  close() {
    this.closed = true;
    this.connection?.close();
    if (this.session) ask(`api/live/${this.session}`, { method: "DELETE", keepalive: true }).catch(() => {});
  }
}
