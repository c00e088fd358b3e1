// Which face of a photo: a dialog that asks where there are several, and thumbnails cropped to the one that was taken.

const $ = (selector, within = document) => within.querySelector(selector);
const THUMBNAIL = 144; // px
const AROUND = 1.7; // side of a thumbnail, in widths of its face

// A picture file of the face at `box` [left, top, width, height] in parts of the photo's sides; of its middle without one.
// Null for a photo that this browser cannot open.
export async function thumbnail(photo, box = null) {
  const bitmap = await createImageBitmap(photo, { imageOrientation: "from-image" }).catch(() => null);
  if (!bitmap) return null;
  const { width, height } = bitmap;
  const [x, y, wide, high] = box || [0, 0, 1, 1];
  const face = box ? Math.max(wide * width, high * height) * AROUND : Math.min(width, height);
  const side = Math.min(face, width, height);
  const left = Math.min(Math.max((x + wide / 2) * width - side / 2, 0), width - side);
  const top = Math.min(Math.max((y + high / 2) * height - side / 2, 0), height - side);
  const canvas = Object.assign(document.createElement("canvas"), { width: THUMBNAIL, height: THUMBNAIL });
  canvas.getContext("2d").drawImage(bitmap, left, top, side, side, 0, 0, THUMBNAIL, THUMBNAIL);
  bitmap.close();
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
}

// Which of several faces is meant, {number, box, problem} each: one of them, or null when the user turns away.
export async function askWhich(photo, faces) {
  const dialog = $("#which");
  const buttons = await Promise.all(
    faces.map(async (face) => {
      const picture = await thumbnail(photo, face.box);
      const shown = Object.assign(document.createElement("img"), { alt: "", src: picture ? URL.createObjectURL(picture) : "icon.svg" });
      const button = Object.assign(document.createElement("button"), { type: "button", value: face.number, disabled: Boolean(face.problem) });
      const text = face.problem ? `Face ${face.number}: too small or turned away` : `Face ${face.number}`;
      button.append(shown, Object.assign(document.createElement("span"), { textContent: text }));
      button.addEventListener("click", () => dialog.close(button.value));
      return button;
    }),
  );
  $(".choices", dialog).replaceChildren(...buttons);
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  for (const image of dialog.querySelectorAll("img")) if (image.src.startsWith("blob:")) URL.revokeObjectURL(image.src);
  return faces.find((face) => String(face.number) === dialog.returnValue) || null;
}

$("#which .cancel").addEventListener("click", () => $("#which").close(""));
