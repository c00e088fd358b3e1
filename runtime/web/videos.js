// A whole video: uploaded with its progress, composed by the server, shown and kept, and then deleted there.

import * as source from "./source.js";
import { link } from "./keep.js";

const $ = (selector) => document.querySelector(selector);
const ASK_MS = 500; // between two looks at the progress

let work = null; // {name, stopped}: the video that is at work
const say = (text, part = null) => {
  $("#video-text").textContent = text;
  $("#video-progress").hidden = part === null;
  if (part !== null) $("#video-progress").value = part;
};

const time = (seconds) => (seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`);

// What a video needs of the page: wish() says who and which view, complain(error) tells what went wrong, done(blob) shows
// the result.
export function begin({ limits, wish, complain, done }) {
  const input = $("#from-video input[type=file]");
  $("#video-limits").textContent = `MP4, MOV or WebM, up to ${limits.mb} MB and ${Math.round(limits.seconds / 60)} minutes`;
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = "";
    if (file) compose(file);
  });
  const drop = $("#from-video .drop");
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    event.stopPropagation();
    const [file] = event.dataTransfer.files;
    if (file) compose(file);
  });
  $("#video-stop").addEventListener("click", stop);

  async function compose(file) {
    if (work) return complain(new Error("One video after the other: stop this one first."));
    if (file.size > limits.mb * 1e6) return complain(new Error(`${file.name} has ${(file.size / 1e6).toFixed(0)} MB, and ${limits.mb} MB are the limit; cut it or make it smaller.`));
    const mine = (work = {});
    complain(null);
    $("#video-stop").hidden = false;
    drop.classList.add("busy");
    try {
      say("Uploading…", 0);
      const told = await source.sendVideo(file, (part) => say(`Uploading… ${Math.round(100 * part)} %`, part), mine);
      mine.name = told.video;
      if (mine.stopped) throw new Error("");
      await source.startVideo(mine.name, wish());
      const blob = await follow(mine);
      link($("#save-video"), blob);
      $("#save-video").hidden = false;
      say(`Done: ${told.total} frames. The server has deleted the video.`);
      done(blob);
    } catch (error) {
      if (!mine.stopped) complain(error);
      say(mine.stopped ? "Stopped, and deleted on the server." : "");
      if (mine.name) await source.dropVideo(mine.name).catch(() => {});
    } finally {
      work = null;
      $("#video-stop").hidden = true;
      drop.classList.remove("busy");
    }
  }

  async function follow(mine) {
    for (;;) {
      await new Promise((wait) => setTimeout(wait, ASK_MS));
      if (mine.stopped) throw new Error("");
      const told = await source.videoProgress(mine.name);
      if (told.state === "failed") throw new Error(told.error);
      if (told.state === "done") return source.videoResult(mine.name);
      const left = told.seconds_left === null ? "" : `, about ${time(told.seconds_left)} left`;
      say(`${told.frames} of ${told.total} frames${left}`, told.frames / told.total);
    }
  }
}

export function stop() {
  if (!work) return;
  work.stopped = true;
  work.abort?.();
}
