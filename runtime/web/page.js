// The page of `fid-run serve` and of the static site that `fid-export --web` makes. Where faces are encoded and composed,
// by a server or in this browser, is the business of source.js, of which there is one for each.

import { askWhich, thumbnail } from "./faces.js";
import { link, stopRecording } from "./keep.js";
import * as source from "./source.js";
import "./check.js";
import * as videos from "./videos.js";

const $ = (selector, within = document) => within.querySelector(selector);
const MOST_PHOTOS = 8; // of one person
const NO_PICTURE = "icon.svg"; // for an identity file
const TELL_MS = 40; // a slider moves more often than frames come

const kinds = {
  identity: { start: "ada", toward: "ben" },
  attributes: { start: "laughing", toward: "shade" },
};
for (const [name, kind] of Object.entries(kinds)) {
  kind.name = name;
  kind.panel = $(`[data-kind=${name}]`);
  kind.tiles = $(".tiles", kind.panel);
  kind.drop = $(".drop", kind.panel);
  kind.select = $(".blend select", kind.panel);
  kind.slider = $(".blend input", kind.panel);
  kind.faces = []; // {name, label, picture, code}: code is null for a face that ships; what it is, source.js knows
}

function complain(error) {
  $("#alert").textContent = error ? error.message || String(error) : "";
  $("#alert").hidden = !error;
}

// ---- choosing faces

const chosen = (kind) => kind.faces.find((face) => face.name === $("input:checked", kind.tiles)?.value);
const toward = (kind) => kind.faces.find((face) => face.name === kind.select.value);
const mix = (kind) => kind.slider.valueAsNumber / 100;
const from = () => $("input[name=source]:checked").value; // photo, camera or video
const onCamera = () => from() === "camera";

function addFace(kind, face) {
  kind.faces.push(face);
  const tile = document.createElement("label");
  const radio = Object.assign(document.createElement("input"), { type: "radio", name: kind.name, value: face.name });
  const picture = Object.assign(document.createElement("img"), { src: face.picture, alt: "", loading: "lazy" });
  tile.append(radio, picture, Object.assign(document.createElement("span"), { textContent: face.label }));
  const item = Object.assign(document.createElement("div"), { className: "tile" });
  item.append(tile);
  if (face.code) item.append(removeButton(kind, face));
  kind.tiles.append(item);
  kind.select.append(new Option(face.label.charAt(0).toUpperCase() + face.label.slice(1), face.name));
  return radio;
}

function removeButton(kind, face) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "remove", textContent: "×" });
  button.setAttribute("aria-label", `Remove ${face.label}`);
  button.title = `Remove ${face.label}`;
  button.addEventListener("click", () => removeFace(kind, face));
  return button;
}

function removeFace(kind, face) {
  const radio = $(`input[value="${face.name}"]`, kind.tiles);
  const wasChosen = radio.checked;
  kind.faces = kind.faces.filter((other) => other !== face);
  if (face.picture.startsWith("blob:")) URL.revokeObjectURL(face.picture);
  if (kind.select.value === face.name) kind.select.value = kind.toward;
  $(`option[value="${face.name}"]`, kind.select).remove();
  radio.closest(".tile").remove();
  const next = wasChosen ? $(`input[value="${kind.start}"]`, kind.tiles) || $("input", kind.tiles) : $("input:checked", kind.tiles);
  next.checked = true;
  next.focus(); // where the button was there is nothing any more
  change();
}

// The face that is meant in a photo, {number, box}: the only one, or the one that the user points at; undefined where the
// user turned away. Of several photos the largest face is taken in each.
async function whichFace(photos) {
  const [photo] = photos.filter((file) => !file.name.endsWith(".npz"));
  if (!photo) return { photo: null, face: null };
  const { faces, shown } = await source.faces(photo);
  if (photos.length > 1 || faces.length < 2) return { photo: shown, face: faces[0] || null };
  const face = await askWhich(shown, faces);
  return face ? { photo: shown, face } : undefined;
}

async function upload(kind, files) {
  if (!files.length || kind.drop.classList.contains("busy")) return;
  kind.drop.classList.add("busy");
  complain(null);
  try {
    const taken = files.slice(0, kind.name === "identity" ? MOST_PHOTOS : 1);
    const meant = await whichFace(taken);
    if (!meant) return;
    const { code } = await source.encode(kind.name, taken, meant.face?.number);
    const picture = meant.photo && (await thumbnail(meant.photo, meant.face?.box));
    const number = (kind.own = (kind.own || 0) + 1);
    const some = taken.length < files.length ? ` (${taken.length} of ${files.length})` : "";
    const shown = picture ? URL.createObjectURL(picture) : NO_PICTURE;
    const radio = addFace(kind, { name: `own ${number}`, label: `yours ${number}${some}`, picture: shown, code });
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
    if (kind.name === "attributes" && from() !== "photo") $("input[name=source][value=photo]").click();
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
  for (const output of document.querySelectorAll("output"))
    output.textContent = `${output.previousElementSibling.value} %`;
  const own = chosen(kinds.identity)?.code;
  $("#save-identity").hidden = !own;
  if (own) link($("#save-identity"), source.identityFile(own));
  if (onCamera()) return tell();
  if (from() === "video") return;
  wanted = true;
  if (!composing) compose();
}

const following = () => ({ pose: $("#pose").value / 100, expression: $("#expression").value / 100 });

function wish(kind) {
  const blended = mix(kind) > 0 && toward(kind) !== chosen(kind);
  return { face: chosen(kind), to: blended ? toward(kind) : null, mix: blended ? mix(kind) : 0 };
}

async function compose() {
  composing = true;
  while (wanted && from() === "photo") {
    wanted = false;
    try {
      const start = performance.now();
      const { blob, by, ms: own } = await source.compose(
        { identity: wish(kinds.identity), attributes: wish(kinds.attributes) },
        Number($("#size").value) || null,
        following(),
      );
      const ms = Math.round(own ?? performance.now() - start); // its own figure leaves the fetching out
      if (from() !== "photo") break;
      link($("#save"), blob);
      const picture = $("#picture");
      picture.src = $("#save").href;
      const side = await picture.decode().then(() => picture.naturalWidth, () => 0);
      picture.hidden = false;
      $("#save").hidden = false;
      $("#figures").textContent = `${side} px in ${ms} ms${by ? ` · ${by}` : ""}`;
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

// ---- the camera

let live = null; // {stream, session}

async function startCamera() {
  $("#camera").disabled = true;
  complain(null);
  const mine = (live = {});
  try {
    if (!navigator.mediaDevices)
      throw new Error("Browsers give the camera to https pages and to this machine only: open the page by localhost, or serve it over https.");
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
    mine.stream.getVideoTracks()[0].addEventListener("ended", () => end(mine, "The camera was unplugged or taken away."));
    mine.session = new source.Live(mine.stream, {
      wish: () => ({ identity: wish(kinds.identity), view: $("#view").value, noFace: $("#no-face").value, ...following() }),
      show: (stream) => ($("#video").srcObject = stream),
      say: (figures) => hear(mine, figures),
      fail: (why) => end(mine, why),
    });
    await mine.session.start();
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

let telling = false;
let toTell = false;

async function tell() {
  toTell = true;
  if (telling) return;
  telling = true;
  while (toTell) {
    toTell = false;
    await live?.session?.tell();
    await new Promise((done) => setTimeout(done, TELL_MS));
  }
  telling = false;
}

function hear(mine, { text, error, fps, delay, dropped, face, frames, by }) {
  if (live !== mine) return;
  if (error) complain(error);
  if (text) $("#figures").textContent = text;
  if (fps === undefined) return;
  $("#hint").hidden = face || !frames;
  $("#hint").textContent = "No face is seen. Come closer, and let light fall on your face.";
  if (delay === null || !frames) return;
  const figures = [`${fps.toFixed(fps < 10 ? 1 : 0)} fps`, `delay ${Math.round(delay)} ms`, `${dropped} frames dropped`];
  $("#figures").textContent = [...figures, ...(by ? [by] : [])].join(" · ");
}

function leave(mine) {
  mine.stream?.getTracks().forEach((track) => track.stop());
  mine.session?.close();
}

function stopCamera() {
  const mine = live;
  live = null;
  stopRecording();
  if (mine) leave(mine);
  for (const video of [$("#self"), $("#video")]) video.srcObject = null;
  $("#hint").hidden = true;
}

function end(mine, why) {
  if (live !== mine) return;
  stopCamera();
  showSource();
  complain(why);
}

function showSource() {
  const [photo, camera, film] = ["photo", "camera", "video"].map((name) => from() === name);
  $("#from-photo").hidden = !photo;
  $("#from-camera").hidden = !camera;
  $("#from-video").hidden = !film;
  $("#full-line").hidden = !photo; // moving pictures come from the light generator
  $("#size-line").hidden = !photo || $("#size").options.length < 2;
  $("#video").hidden = !live;
  $("#film").hidden = !film || !$("#film").src;
  $("#save-video").hidden = $("#film").hidden;
  if (!film) $("#film").pause();
  $("#picture").hidden = Boolean(live) || !$("#picture").src || !$("#film").hidden;
  $("#save").hidden = !photo || !$("#picture").src;
  $("#self").hidden = !live;
  $("#stage").classList.toggle("wide", (Boolean(live) && $("#view").value !== "result-only") || !$("#film").hidden);
  for (const video of [$("#self"), $("#video")])
    video.classList.toggle("mirrored", $("#mirror").checked && !(video.id === "video" && $("#view").value === "side-by-side"));
  $("#snapshot").hidden = !live;
  $("#record").hidden = !live || !window.MediaRecorder;
  $("#clip").hidden = !camera || !$("#clip").href;
  $("#camera").textContent = live ? "Stop camera" : "Start camera";
  $("#camera").disabled = false;
  if (!live && camera) $("#figures").textContent = "The camera is off.";
  if (film) $("#figures").textContent = $("#film").hidden ? "Choose a person, then a video." : "";
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
    if (from() === "photo") change();
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
$("#size").addEventListener("change", () => change());
for (const id of ["#pose", "#expression"]) $(id).addEventListener("input", () => change());
addEventListener("pagehide", () => {
  stopCamera();
  videos.stop();
});
addEventListener("keydown", (event) => {
  const tile = event.target.closest?.(".tile");
  if (event.key === "Delete" && tile) $(".remove", tile)?.click();
});

// ---- the start

async function begin() {
  try {
    const start = await source.begin();
    $("#runs").textContent = start.runs;
    $("#controls").hidden = !start.controls;
    $("#size").replaceChildren(...start.resolutions.map((side) => new Option(`${side} px`, side)));
    if (start.video)
      videos.begin({
        limits: start.video,
        wish: () => ({ identity: wish(kinds.identity), view: $("#video-view").value, noFace: "pass", ...following() }),
        complain,
        done: (blob) => {
          link($("#film"), blob);
          showSource();
        },
      });
    else $("input[name=source][value=video]").disabled = true;
    if (!start.live) $("input[name=source][value=camera]").disabled = true;
    for (const kind of Object.values(kinds)) {
      for (const face of start.faces[kind.name]) addFace(kind, { ...face, label: face.name, code: null });
      ($(`input[value="${kind.start}"]`, kind.tiles) || $("input", kind.tiles)).checked = true;
      kind.select.value = kind.toward;
    }
    $("#token").hidden = true;
    showSource();
    change();
  } catch (error) {
    $("#token").hidden = !source.wantsToken.now;
    complain(error);
    $("#figures").textContent = "";
  }
}

$("#token").addEventListener("submit", (event) => {
  event.preventDefault();
  source.setToken($("#token-field").value.trim());
  for (const kind of Object.values(kinds)) {
    kind.faces = [];
    kind.select.replaceChildren();
    kind.tiles.querySelectorAll(".tile").forEach((tile) => tile.remove());
  }
  complain(null);
  begin();
});

// What source.js has to tell between two answers.
addEventListener("source", (event) => {
  const { progress, runs, redo } = event.detail;
  if (runs) $("#runs").textContent = runs;
  if (redo) change();
  if (progress === undefined) return;
  $("#progress").hidden = $("#progress-text").hidden = !progress;
  if (progress) $("#progress").value = progress.part;
  if (progress) $("#progress-text").textContent = progress.text;
});

begin();
