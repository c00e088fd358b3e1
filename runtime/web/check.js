// Whether a picture was made by fid: a button below everything, and one sentence.

import * as source from "./source.js";

const input = document.querySelector("#check");
const text = document.querySelector("#check-text");

function told({ file, made_by_fid: own, credentials, note, mark }) {
  const layers = [];
  if (credentials) layers.push(`${credentials.state} credentials of ${credentials.generator || "an unknown program"}`);
  if (note) layers.push(`a note (${note.kind})`);
  if (mark.found) layers.push("the invisible mark");
  const found = layers.length ? `It bears ${layers.join(", ")}.` : "It bears no label.";
  return `${file}: ${own ? "made by fid" : "nothing says that fid made it"}. ${found}`;
}

input.addEventListener("change", async () => {
  const [file] = input.files;
  if (!file) return;
  text.textContent = `Looking at ${file.name}…`;
  try {
    text.textContent = told(await source.checkPicture(file));
  } catch (error) {
    text.textContent = error.message;
  }
  input.value = "";
});
