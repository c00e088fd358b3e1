// Finding faces and their five points with YuNet, as runtime/face/detect.py and OpenCV's FaceDetectorYN do.

import { align, clamp, image, resizeArea, resizeLinear, rint, transform } from "./geometry.js";

const SEARCH_SIDES = [320, 1024]; // px, longest side of the photo as it is searched
const CROWD_SIDE = 2048; // px, tried when there was nothing in these and the photo is larger
const REFINE_SIDES = [[320], [448, 576]]; // px, sides of the upright views in which the points are measured
const MIN_SCORE = 0.7; // 0..1, YuNet's certainty
const SURE_SCORE = 0.92; // an upright face has more; below it the photo may lie on its side
const TURNED_GAIN = 0.03; // how much surer a face must be in the turned photo
const SAME_FACE = 0.3; // intersection over union above which two detections are one
const OVERLAP = 0.4; // of the smaller box: above it, two boxes are one face
export const MIN_FACE_PX = 40; // narrower faces hold too little to recognise anybody
export const MAX_YAW_DEGREES = 60; // beyond it, one eye is hidden
const NOSE_DEPTH = 0.57; // how far the nose tip stands before the eyes, in distances between the eyes
const STRIDES = [8, 16, 32];
const TURNED_BACK = { 1: (w) => [0, -1, w - 1, 1, 0, 0], 2: (w, h) => [-1, 0, w - 1, 0, -1, h - 1], 3: (w, h) => [0, 1, 0, -1, 0, h - 1] };

export const area = (face) => face.box[2] * face.box[3];

// How far the head is turned, degrees, from the nose's place between the eyes.
export function yaw([left, right, nose]) {
  const axis = [right[0] - left[0], right[1] - left[1]];
  const off = [nose[0] - (left[0] + right[0]) / 2, nose[1] - (left[1] + right[1]) / 2];
  const along = (off[0] * axis[0] + off[1] * axis[1]) / Math.max(axis[0] ** 2 + axis[1] ** 2, 1e-9);
  return (Math.atan(along / NOSE_DEPTH) * 180) / Math.PI;
}

// What YuNet takes: Float32Array [3, height, width], BGR 0..255, padded with black to multiples of 32.
export function blob(view) {
  const [width, height] = [32 * Math.ceil(view.width / 32), 32 * Math.ceil(view.height / 32)];
  const data = new Float32Array(3 * width * height);
  for (let y = 0; y < view.height; y++)
    for (let x = 0; x < view.width; x++)
      for (let c = 0; c < 3; c++) data[(2 - c) * width * height + y * width + x] = view.data[3 * (y * view.width + x) + c];
  return { data, width, height };
}

// Faces {box, points, score} in px of the padded view, from YuNet's outputs by name (Float32Arrays), the surest first.
export function decode(outputs, width, height) {
  const found = [];
  for (const stride of STRIDES) {
    const columns = width / stride;
    const [cls, obj] = [outputs[`cls_${stride}`], outputs[`obj_${stride}`]];
    const [bbox, kps] = [outputs[`bbox_${stride}`], outputs[`kps_${stride}`]];
    for (let i = 0; i < columns * (height / stride); i++) {
      const score = Math.sqrt(clamp(cls[i], 0, 1) * clamp(obj[i], 0, 1));
      if (score < MIN_SCORE) continue;
      const [column, row] = [i % columns, Math.floor(i / columns)];
      const [w, h] = [Math.exp(bbox[4 * i + 2]) * stride, Math.exp(bbox[4 * i + 3]) * stride];
      const [left, top] = [(column + bbox[4 * i]) * stride - w / 2, (row + bbox[4 * i + 1]) * stride - h / 2];
      const points = [0, 1, 2, 3, 4].map((n) => [(kps[10 * i + 2 * n] + column) * stride, (kps[10 * i + 2 * n + 1] + row) * stride]);
      found.push({ box: [left, top, w, h], points, score });
    }
  }
  const kept = [];
  for (const face of found.sort((a, b) => b.score - a.score)) {
    const own = face.box.map(Math.trunc);
    if (kept.every((other) => union(own, other.box.map(Math.trunc)) <= SAME_FACE)) kept.push(face);
  }
  return kept;
}

function common(a, b) {
  const wide = Math.min(a[0] + a[2], b[0] + b[2]) - Math.max(a[0], b[0]);
  const high = Math.min(a[1] + a[3], b[1] + b[3]) - Math.max(a[1], b[1]);
  return Math.max(wide, 0) * Math.max(high, 0);
}

const union = (a, b) => common(a, b) / (a[2] * a[3] + b[2] * b[3] - common(a, b));
const cover = (a, b) => common(a.box, b.box) / Math.max(Math.min(area(a), area(b)), 1e-9);

function distinct(faces) {
  const kept = [];
  for (const face of faces.sort((a, b) => b.score - a.score))
    if (kept.every((other) => cover(face, other) < OVERLAP)) kept.push(face);
  return kept;
}

function mirror(view) {
  const made = image(view.width, view.height, 3);
  for (let y = 0; y < view.height; y++)
    for (let x = 0; x < view.width; x++) {
      const from = 3 * (y * view.width + x);
      made.data.set(view.data.subarray(from, from + 3), 3 * (y * view.width + view.width - 1 - x));
    }
  return made;
}

// Turned by quarters against the clock, as np.rot90 does.
export function turned(photo, quarters) {
  const { width: w, height: h } = photo;
  const [width, height] = quarters === 2 ? [w, h] : [h, w];
  const made = image(width, height, 3);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const [u, v] = { 1: [w - 1 - y, x], 2: [w - 1 - x, h - 1 - y], 3: [y, h - 1 - x] }[quarters];
      const from = 3 * (v * w + u);
      for (let c = 0; c < 3; c++) made.data[3 * (y * width + x) + c] = photo.data[from + c];
    }
  return made;
}

function turnedBack(face, quarters, photo) {
  const m = TURNED_BACK[quarters](photo.width, photo.height);
  const [left, top, w, h] = face.box;
  const corners = transform(m, [[left, top], [left + w, top + h]]);
  const [x, y] = [Math.min(corners[0][0], corners[1][0]), Math.min(corners[0][1], corners[1][1])];
  const far = [Math.max(corners[0][0], corners[1][0]), Math.max(corners[0][1], corners[1][1])];
  return { box: [x, y, far[0] - x, far[1] - y], points: transform(m, face.points), score: face.score };
}

const best = (faces) => Math.max(MIN_SCORE, ...faces.map((face) => face.score));

export class Detector {
  // `run` takes what `blob` gives and promises YuNet's outputs by name.
  constructor(run) {
    this.run = run;
  }

  // All faces of a photo, the largest first.
  async faces(photo) {
    let found = await this.all(photo);
    let [score, turns] = [best(found), 0];
    if (score < SURE_SCORE)
      for (const quarter of [1, 2, 3]) {
        const other = best(await this.search(turned(photo, quarter), SEARCH_SIDES[0]));
        if (other > score + TURNED_GAIN) [score, turns] = [other, quarter];
      }
    if (turns) found = (await this.all(turned(photo, turns))).map((face) => turnedBack(face, turns, photo));
    return found.sort((a, b) => area(b) - area(a));
  }

  async all(photo) {
    const [small, large] = SEARCH_SIDES;
    const longest = Math.max(photo.width, photo.height);
    let found = await this.search(photo, small);
    if (longest > small) found = [...found, ...(await this.search(photo, Math.min(large, longest)))];
    if (!found.length && longest > large) found = await this.search(photo, Math.min(CROWD_SIDE, longest));
    return distinct(found);
  }

  // The five points of a face, measured anew in upright views of fixed sizes and in their mirror images.
  async refine(photo, face) {
    let { points } = face;
    for (const sides of REFINE_SIDES) {
      const measured = [];
      for (const side of sides)
        for (const mirrored of [false, true]) {
          const own = await this.measure(photo, points, side, mirrored);
          if (own) measured.push(own);
        }
      if (!measured.length) break;
      points = points.map((_, i) => [0, 1].map((k) => measured.reduce((sum, own) => sum + own[i][k], 0) / measured.length));
    }
    return points;
  }

  // One more measurement of the points, in an upright view of `side` px; null when there is no face.
  async measure(photo, points, side, mirrored = false) {
    const alignment = align(points, side);
    const view = alignment.crop(photo);
    const seen = central(await this.search(mirrored ? mirror(view) : view, side), side);
    if (!seen) return null;
    const own = mirrored ? [1, 0, 2, 4, 3].map((i) => [side - 1 - seen.points[i][0], seen.points[i][1]]) : seen.points;
    return transform(alignment.inverse, own);
  }

  // Faces found in one go with the photo's longest side brought to `side` px, the surest first.
  async search(photo, side) {
    const factor = side / Math.max(photo.width, photo.height);
    const [width, height] = [Math.max(1, rint(photo.width * factor)), Math.max(1, rint(photo.height * factor))];
    const view = factor < 1 ? resizeArea(photo, width, height) : resizeLinear(photo, width, height);
    const put = blob(view);
    const [sx, sy] = [photo.width / width, photo.height / height];
    return decode(await this.run(put), put.width, put.height).map(({ box, points, score }) => ({
      box: [box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy],
      points: points.map(([x, y]) => [(x + 0.5) * sx - 0.5, (y + 0.5) * sy - 0.5]),
      score,
    }));
  }
}

// The face nearest the middle of a refining view, if it is the one that the view was made for.
function central(faces, side) {
  const off = ({ points }) =>
    Math.max(...[0, 1].map((k) => Math.abs(points.reduce((sum, point) => sum + point[k], 0) / 5 - (side - 1) / 2)));
  const nearest = faces.reduce((a, b) => (a && off(a) <= off(b) ? a : b), null);
  return nearest && off(nearest) < side / 5 ? nearest : null;
}

// The largest face, or an error in one sentence.
export function chooseFace(faces, photo) {
  if (!faces.length) throw new Error(`${photo}: no face was found; the face must be upright, visible, and not cut off.`);
  const [face] = faces;
  if (face.box[2] < MIN_FACE_PX)
    throw new Error(
      `${photo}: the face is only ${face.box[2].toFixed(0)} px wide and at least ${MIN_FACE_PX} px are needed; use a larger photo.`,
    );
  const turn = Math.abs(yaw(face.points));
  if (turn > MAX_YAW_DEGREES)
    throw new Error(
      `${photo}: the face is turned by about ${turn.toFixed(0)} degrees, and beyond ${MAX_YAW_DEGREES} (a profile) nothing good can come out; use a photo that shows both eyes.`,
    );
  return face;
}
