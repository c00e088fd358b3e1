// The page of `fid-run serve`. What is uploaded comes back as a code (an identity file, an attribute code) and is kept
// here, in this page; the server keeps nothing. So moving a slider sends a few kB and not the photos again.

const $ = (selector, within = document) => within.querySelector(selector);
const PHOTO_TYPES = ["image/jpeg", "image/png", "image/webp"]; // others are turned into JPEG by the browser
const AS_IT_IS_BYTES = 4e6; // a larger photo is made smaller before it is sent
const LONGEST_SIDE = 2400; // px, of a photo that is made smaller
const SHORTEST_SIDE = 400; // px; it is made no smaller than that, however little room there is
const MOST_PHOTOS = 8; // of one person, that the server takes
const OFFER_MS = 3000; // at most so long for collecting network addresses
const CONNECT_MS = 20000; // at most so long from the answer to a connection
const NO_WAY =
  "The video connection failed. Browser and server need a network in common, and browsers do not count loopback: without any network there is no live video.";
const NO_PICTURE = "icon.svg"; // for an identity file

const kinds = {
  identity: { path: "/api/identities", list: "identities", start: "ada", toward: "ben" },
  attributes: { path: "/api/attributes", list: "attributes", start: "laughing", toward: "shade" },
};
for (const [name, kind] of Object.entries(kinds)) {
  kind.name = name;
  kind.panel = $(`[data-kind=${name}]`);
  kind.tiles = $(".tiles", kind.panel);
  kind.drop = $(".drop", kind.panel);
  kind.select = $(".blend select", kind.panel);
  kind.slider = $(".blend input", kind.panel);
  kind.faces = []; // {name, label, picture, code}: code is null for a face that ships
}

let token = sessionStorage.getItem("token") || "";
if (location.hash.startsWith("#token=")) {
  token = decodeURIComponent(location.hash.slice(7));
  sessionStorage.setItem("token", token);
  history.replaceState(null, "", location.pathname);
}

// ---- talking to the server

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The server does not answer. Is fid-run serve still running?");
  }
  if (answer.status === 401) $("#token").hidden = false;
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    const error = new Error(sentence(said.error || `The server answered ${answer.status}.`));
    error.busy = answer.status === 503;
    throw error;
  }
  return answer;
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function complain(error) {
  $("#alert").textContent = error ? error.message || String(error) : "";
  $("#alert").hidden = !error;
}

// ---- choosing faces

const chosen = (kind) => kind.faces.find((face) => face.name === $("input:checked", kind.tiles)?.value);
const toward = (kind) => kind.faces.find((face) => face.name === kind.select.value);
const mix = (kind) => kind.slider.valueAsNumber / 100;
const onCamera = () => $("input[name=source]:checked").value === "camera";

function addFace(kind, face) {
  kind.faces.push(face);
  const tile = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: kind.name, value: face.name });
  const picture = Object.assign(document.createElement("img"), { src: face.picture, alt: "", loading: "lazy" });
  tile.append(radio, picture, Object.assign(document.createElement("span"), { textContent: face.label }));
  kind.tiles.append(tile);
  kind.select.append(new Option(face.label.charAt(0).toUpperCase() + face.label.slice(1), face.name));
  return radio;
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

async function upload(kind, files) {
  if (!files.length || kind.drop.classList.contains("busy")) return;
  kind.drop.classList.add("busy");
  complain(null);
  try {
    const form = new FormData();
    let picture = NO_PICTURE;
    const taken = files.slice(0, kind.name === "identity" ? MOST_PHOTOS : 1);
    for (const file of taken) {
      const photo = file.name.endsWith(".npz") ? file : await smaller(file, (0.9 * uploadBytes) / taken.length);
      if (photo !== file || !file.name.endsWith(".npz")) picture = URL.createObjectURL(photo);
      form.append("photo", photo, "photo");
    }
    const answer = await ask(kind.path, { method: "POST", body: form });
    const number = kind.faces.filter((face) => face.code).length + 1;
    const some = taken.length < files.length ? ` (${taken.length} of ${files.length})` : "";
    const face = { name: `own ${number}`, label: `yours ${number}${some}`, picture, code: await answer.blob() };
    const radio = addFace(kind, face);
    radio.checked = true;
    change();
  } catch (error) {
    complain(error);
  } finally {
    kind.drop.classList.remove("busy");
    $("input", kind.drop).value = "";
  }
}

for (const kind of Object.values(kinds)) {
  $("input", kind.drop).addEventListener("change", (event) => upload(kind, [...event.target.files]));
  for (const name of ["dragenter", "dragover"])
    kind.panel.addEventListener(name, (event) => {
      event.preventDefault();
      kind.panel.classList.add("over");
    });
  for (const name of ["dragleave", "drop"]) kind.panel.addEventListener(name, () => kind.panel.classList.remove("over"));
  kind.panel.addEventListener("drop", (event) => {
    event.preventDefault();
    if (kind.name === "attributes" && onCamera()) $("input[name=source][value=photo]").click();
    upload(kind, [...event.dataTransfer.files]);
  });
  kind.tiles.addEventListener("change", () => change());
  kind.select.addEventListener("change", () => {
    if (kind.slider.value === "0") kind.slider.value = 50;
    change();
  });
  kind.slider.addEventListener("input", () => change());
}
for (const name of ["dragover", "drop"]) document.addEventListener(name, (event) => event.preventDefault());

// ---- composing pictures: one request at a time, and the newest wish after it

let composing = false;
let wanted = false;

function change() {
  for (const kind of Object.values(kinds)) $("output", kind.panel).textContent = `${kind.slider.value} %`;
  const own = chosen(kinds.identity)?.code;
  $("#save-identity").hidden = !own;
  if (own) link($("#save-identity"), own);
  if (onCamera()) return tell();
  wanted = true;
  if (!composing) compose();
}

function link(anchor, blob) {
  if (anchor.href) URL.revokeObjectURL(anchor.href);
  anchor.href = URL.createObjectURL(blob);
}

async function compose() {
  composing = true;
  while (wanted && !onCamera()) {
    wanted = false;
    const form = new FormData();
    for (const kind of Object.values(kinds)) {
      const add = (field, face) => form.append(field, face.code || face.name);
      add(kind.name, chosen(kind));
      if (mix(kind) > 0 && toward(kind) !== chosen(kind)) {
        add(`${kind.name}_to`, toward(kind));
        form.append(`${kind.name}_mix`, mix(kind));
      }
    }
    try {
      const start = performance.now();
      const answer = await ask("/api/compose", { method: "POST", body: form });
      const blob = await answer.blob();
      if (onCamera()) break;
      link($("#save"), blob);
      const picture = $("#picture");
      picture.src = $("#save").href;
      const side = await picture.decode().then(() => picture.naturalWidth, () => 0);
      picture.hidden = false;
      $("#save").hidden = false;
      $("#figures").textContent = `${side} px in ${Math.round(performance.now() - start)} ms`;
      complain(null);
    } catch (error) {
      if (error.busy) {
        await new Promise((done) => setTimeout(done, 1000));
        wanted = true;
      }
      complain(error);
    }
  }
  composing = false;
}

// ---- the camera: one peer connection, its settings and figures on a data channel

let live = null; // {stream, connection, channel, session, delay}

async function startCamera() {
  $("#camera").disabled = true;
  complain(null);
  const mine = (live = { roundTrip: 0 });
  try {
    if (!navigator.mediaDevices)
      throw new Error("Browsers give the camera to https pages and to this machine only: open the page by localhost, or start fid-run serve with --certificate.");
    $("#figures").textContent = "Waiting for the camera…";
    const device = $("#cameras").value;
    const video = { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 } };
    if (device) video.deviceId = { exact: device };
    else video.facingMode = "user";
    mine.stream = await navigator.mediaDevices.getUserMedia({ video, audio: false });
    if (live !== mine) return leave(mine); // the user went back to photos while the browser asked
    $("#self").srcObject = mine.stream;
    await listCameras(mine.stream);
    $("#figures").textContent = "Connecting…";
    await connect(mine);
  } catch (error) {
    if (live !== mine) return leave(mine);
    stopCamera();
    complain(cameraTrouble(error));
  }
  showSource();
}

function cameraTrouble(error) {
  const known = {
    NotAllowedError: "The camera was not allowed. Allow it for this page, in the address bar, and start again.",
    NotFoundError: "There is no camera.",
    OverconstrainedError: "This camera is not there any more; choose another.",
    NotReadableError: "The camera cannot be opened; another program may be using it.",
  };
  return known[error.name] ? new Error(known[error.name]) : error;
}

async function listCameras(stream) {
  const current = stream.getVideoTracks()[0].getSettings().deviceId;
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter((device) => device.kind === "videoinput");
  const options = devices.map((device, i) => new Option(device.label || `camera ${i + 1}`, device.deviceId));
  if (!options.length) return;
  $("#cameras").replaceChildren(...options);
  $("#cameras").value = current || devices[0].deviceId;
}

async function connect(mine) {
  const connection = (mine.connection = new RTCPeerConnection({ iceServers: [] }));
  const [track] = mine.stream.getVideoTracks();
  track.contentHint = "motion";
  track.addEventListener("ended", () => live === mine && end(mine, "The camera was unplugged or taken away."));
  const sender = connection.addTransceiver(track, { direction: "sendrecv", streams: [mine.stream] });
  if ("jitterBufferTarget" in sender.receiver) sender.receiver.jitterBufferTarget = 0;
  mine.channel = connection.createDataChannel("settings");
  mine.channel.addEventListener("open", () => tell());
  mine.channel.addEventListener("message", (event) => hear(mine, JSON.parse(event.data)));
  connection.addEventListener("track", (event) => {
    $("#video").srcObject = new MediaStream([event.track]);
  });
  connection.addEventListener("connectionstatechange", () => {
    if (live !== mine) return;
    if (connection.connectionState === "failed") end(mine, NO_WAY);
    if (connection.connectionState === "disconnected") $("#figures").textContent = "Connection lost, trying again…";
  });
  await connection.setLocalDescription(await connection.createOffer());
  await new Promise((done) => {
    const check = () => connection.iceGatheringState === "complete" && done();
    connection.addEventListener("icegatheringstatechange", check);
    setTimeout(done, OFFER_MS);
    check();
  });
  mine.told = await settings();
  const body = JSON.stringify({ type: "offer", sdp: connection.localDescription.sdp, settings: mine.told });
  const answer = await ask("/api/live", { method: "POST", body, headers: { "Content-Type": "application/json" } });
  const said = await answer.json();
  mine.session = said.session;
  if (live !== mine) return leave(mine);
  await connection.setRemoteDescription({ type: "answer", sdp: said.sdp });
  setTimeout(() => live === mine && connection.connectionState !== "connected" && end(mine, NO_WAY), CONNECT_MS);
}

async function settings() {
  const kind = kinds.identity;
  const one = async (face) => (face.code ? { npz: await base64(face.code) } : face.name);
  const blended = mix(kind) > 0 && toward(kind) !== chosen(kind);
  return {
    identity: await one(chosen(kind)),
    identity_to: blended ? await one(toward(kind)) : null,
    identity_mix: blended ? mix(kind) : 0,
    view: $("#view").value,
    no_face: $("#no-face").value,
  };
}

async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
}

let telling = false;
let toTell = false;

async function tell() {
  toTell = true;
  if (telling) return;
  telling = true;
  while (toTell) {
    toTell = false;
    const now = await settings();
    if (live?.channel?.readyState === "open") {
      const told = live.told || {};
      const fresh = Object.entries(now).filter(([name, value]) => JSON.stringify(value) !== JSON.stringify(told[name]));
      if (fresh.length) live.channel.send(JSON.stringify(Object.fromEntries(fresh)));
      live.told = now;
    }
    await new Promise((done) => setTimeout(done, 40)); // a slider moves more often than frames come
  }
  telling = false;
}

async function hear(mine, message) {
  if (live !== mine) return;
  if (message.error) complain(sentence(message.error));
  if (message.pong !== undefined) mine.roundTrip = performance.now() - message.pong;
  if (!message.stats) return;
  mine.channel.send(JSON.stringify({ ping: performance.now() }));
  const { fps, age_ms: age, dropped, face, frames } = message.stats;
  const delay = age.p50 === null ? null : age.p50 + mine.roundTrip + (await codecDelay(mine));
  if (live !== mine) return;
  $("#hint").hidden = face || !frames;
  $("#hint").textContent = "No face is seen. Come closer, and let light fall on your face.";
  if (delay !== null && frames)
    $("#figures").textContent = `${fps.toFixed(fps < 10 ? 1 : 0)} fps · delay ${Math.round(delay)} ms · ${dropped} frames dropped`;
}

// ms that a frame spends in this browser since the last report: encoding, waiting in the jitter buffer, decoding
async function codecDelay(mine) {
  const now = {};
  for (const report of (await mine.connection.getStats()).values()) {
    if (report.type === "outbound-rtp" && report.kind === "video")
      now.encode = [report.totalEncodeTime, report.framesEncoded];
    if (report.type === "inbound-rtp" && report.kind === "video") {
      now.buffer = [report.jitterBufferDelay, report.jitterBufferEmittedCount];
      now.decode = [report.totalDecodeTime, report.framesDecoded];
    }
  }
  let ms = 0;
  for (const [what, [seconds, count]] of Object.entries(now)) {
    const [before, counted] = mine.codec?.[what] || [0, 0];
    if (count > counted && seconds >= before) ms += (1000 * (seconds - before)) / (count - counted);
  }
  mine.codec = now;
  return ms;
}

function leave(mine) {
  mine.stream?.getTracks().forEach((track) => track.stop());
  mine.connection?.close();
  if (mine.session) ask(`/api/live/${mine.session}`, { method: "DELETE", keepalive: true }).catch(() => {});
}

function stopCamera() {
  const mine = live;
  live = null;
  if (mine) leave(mine);
  for (const video of [$("#self"), $("#video")]) video.srcObject = null;
  $("#hint").hidden = true;
}

function end(mine, why) {
  stopCamera();
  showSource();
  complain(why);
}

function showSource() {
  const camera = onCamera();
  $("#from-photo").hidden = camera;
  $("#from-camera").hidden = !camera;
  $("#video").hidden = !live;
  $("#picture").hidden = Boolean(live) || !$("#picture").src;
  $("#save").hidden = Boolean(live) || !$("#picture").src;
  $("#self").hidden = !live;
  $("#stage").classList.toggle("wide", Boolean(live) && $("#view").value !== "result-only");
  for (const video of [$("#self"), $("#video")])
    video.classList.toggle("mirrored", $("#mirror").checked && !(video.id === "video" && $("#view").value === "side-by-side"));
  $("#camera").textContent = live ? "Stop camera" : "Start camera";
  $("#camera").disabled = false;
  if (!live && camera) $("#figures").textContent = "The camera is off.";
}

$("#camera").addEventListener("click", () => {
  if (!live) return startCamera();
  stopCamera();
  showSource();
});
for (const radio of document.querySelectorAll("input[name=source]"))
  radio.addEventListener("change", () => {
    if (!onCamera()) stopCamera();
    complain(null);
    showSource();
    if (!onCamera()) change();
  });
$("#cameras").addEventListener("change", () => {
  if (!live) return;
  stopCamera();
  startCamera();
});
for (const id of ["#view", "#no-face", "#mirror"])
  $(id).addEventListener("change", () => {
    showSource();
    tell();
  });
addEventListener("pagehide", () => stopCamera());

// ---- the start

async function begin() {
  try {
    const health = await (await ask("/api/health")).json();
    $("#runs").textContent = `fid ${health.version} on ${health.provider}`;
    uploadBytes = 1e6 * health.upload.mb;
    if (!health.live.limit) $("input[name=source][value=camera]").disabled = true;
    for (const kind of Object.values(kinds)) {
      const faces = (await (await ask(kind.path)).json())[kind.list];
      for (const face of faces) addFace(kind, { ...face, label: face.name, code: null });
      ($(`input[value="${kind.start}"]`, kind.tiles) || $("input", kind.tiles)).checked = true;
      kind.select.value = kind.toward;
    }
    $("#token").hidden = true;
    showSource();
    change();
  } catch (error) {
    complain(error);
    $("#figures").textContent = "";
  }
}

$("#token").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("#token-field").value.trim();
  sessionStorage.setItem("token", token);
  for (const kind of Object.values(kinds)) {
    kind.faces = [];
    kind.select.replaceChildren();
    kind.tiles.querySelectorAll("label").forEach((tile) => tile.remove());
  }
  complain(null);
  begin();
});

begin();
