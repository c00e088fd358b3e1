// The note that a file is synthetic, put into files that this page makes.

const PNG_HEAD = 33; // bytes of a PNG's signature and IHDR, after which the note stands

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// A file with the note {png, mp4}: base64 of what goes into each. A WebM clip has no place for it.
export function noted(blob, note) {
  if (blob.type === "image/png") return new Blob([blob.slice(0, PNG_HEAD), bytes(note.png), blob.slice(PNG_HEAD)], { type: blob.type });
  if (blob.type === "video/mp4") return new Blob([blob, bytes(note.mp4)], { type: blob.type });
  return blob;
}
