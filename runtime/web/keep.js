// What a user takes home of a running camera: a snapshot or a clip of what is shown, with the note that it is synthetic.

import { noted } from "./note.js";
import * as source from "./source.js";

const $ = (selector) => document.querySelector(selector);
const CLIP_TYPES = ["video/mp4;codecs=avc1.42E01E", "video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm"];

let recorder = null;

// Let a link or a video have a file, in the place of a former one.
export function link(element, blob) {
  const where = element instanceof HTMLMediaElement ? "src" : "href";
  if (element[where]) URL.revokeObjectURL(element[where]);
  element[where] = URL.createObjectURL(blob);
}

const noteOfThis = async () => (await source.notes()).reenactment;

export function stopRecording() {
  if (recorder?.state === "recording") recorder.stop();
}

$("#snapshot").addEventListener("click", async () => {
  const video = $("#video");
  if (!video.videoWidth) return;
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  const context = canvas.getContext("2d");
  if (video.classList.contains("mirrored")) context.setTransform(-1, 0, 0, 1, canvas.width, 0); // as it is shown
  context.drawImage(video, 0, 0);
  const picture = await new Promise((done) => canvas.toBlob(done, "image/png"));
  const anchor = Object.assign(document.createElement("a"), { download: "fid.png" });
  link(anchor, noted(picture, await noteOfThis()));
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
});

$("#record").addEventListener("click", () => {
  if (recorder?.state === "recording") return recorder.stop();
  const type = CLIP_TYPES.find((one) => MediaRecorder.isTypeSupported(one));
  const parts = [];
  recorder = new MediaRecorder($("#video").srcObject, { mimeType: type });
  recorder.addEventListener("dataavailable", (event) => event.data.size && parts.push(event.data));
  recorder.addEventListener("stop", async () => {
    $("#record").textContent = "Record clip";
    const kind = type.split(";")[0];
    link($("#clip"), noted(new Blob(parts, { type: kind }), await noteOfThis()));
    $("#clip").download = `fid.${kind.split("/")[1]}`;
    $("#clip").hidden = false;
  });
  recorder.start(1000);
  $("#record").textContent = "Stop recording";
});
