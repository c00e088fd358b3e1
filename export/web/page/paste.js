// Paste-back as in runtime/face/paste.py: the composed head put into the frame that it came from, without a seam.

import { image, resizeArea, resizeLinear, rint, clamp } from "./geometry.js";

const EDGE = 0.02; // the opacity reaches 0 this far inside the crop, in sides of the crop
const FEATHER = 0.11; // width of the band in which it rises to 1
const ROUNDNESS = 3.6; // exponent of the superellipse
const GRID = 24; // cells a side: colours are matched at this coarseness
const NEAR = 0.13; // sides of the crop; how far inwards a difference is carried (standard deviation)
const ALIKE = 28.0; // 0..255; how much a colour may differ from the band's to take part (standard deviation)
const SAME = 65.0; // 0..255; a larger difference is no shade of one thing
const REACH = [0.13, 0.33]; // sides of the crop; in full as far in as the first, not at all beyond the second
const TRACE = 1.5; // so little trust around, in cells, and nothing is corrected
const MEMORY_S = 0.25; // time constant of the average of the difference
const CUT = 45.0; // 0..255; a mean jump of the difference beyond it is a cut to another scene

const smoothstep = (t) => {
  t = clamp(t, 0, 1);
  return t * t * (3 - 2 * t);
};

// How far each pixel lies inside of the rounded square, in sides of the crop; < 0 outside.
function depth(side) {
  const axis = Float64Array.from({ length: side }, (_, i) => Math.abs((i + 0.5) / side - 0.5) ** ROUNDNESS);
  return Float64Array.from({ length: side * side }, (_, i) => {
    return 0.5 - EDGE - (axis[i % side] + axis[Math.floor(i / side)]) ** (1 / ROUNDNESS);
  });
}

const masks = new Map();

// The opacity of the head in an aligned crop, Float32Array [side * side], 0..1.
export function headMask(side) {
  if (!masks.has(side)) masks.set(side, Float32Array.from(depth(side), (d) => smoothstep(d / FEATHER)));
  return masks.get(side);
}

let border = null;

function band() {
  if (border) return border;
  const inside = depth(GRID);
  const cells = [...inside.keys()].filter((i) => inside[i] > -EDGE && inside[i] < FEATHER);
  const place = (i) => [Math.floor(i / GRID) / GRID, (i % GRID) / GRID];
  const nearness = Float32Array.from({ length: GRID * GRID * cells.length }, (_, k) => {
    const [a, b] = [place(Math.floor(k / cells.length)), place(cells[k % cells.length])];
    return Math.exp((-0.5 * ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2)) / NEAR ** 2);
  });
  const fade = Float32Array.from(inside, (d) => smoothstep((REACH[1] - d) / (REACH[1] - REACH[0])));
  return (border = { cells, nearness, fade });
}

// Means over the cells of the grid, Float32Array [GRID * GRID * 3], 0..255.
export function coarse(crop) {
  return resizeArea({ ...crop, data: Float32Array.from(crop.data) }, GRID, GRID).data;
}

// `composed` with its border, and what is near and looks like it, in the colours of the frame.
export function matchBorder(composed, difference) {
  const { cells: witnesses, nearness, fade } = band();
  const cells = coarse(composed);
  const trust = witnesses.map((i) => {
    const change = difference.subarray(3 * i, 3 * i + 3);
    return Math.exp(-((change[0] ** 2 + change[1] ** 2 + change[2] ** 2) / 3) / SAME ** 2);
  });
  const field = image(GRID, GRID, 3, Float32Array);
  const number = witnesses.length;
  for (let i = 0; i < GRID * GRID; i++) {
    if (fade[i] === 0) continue;
    let total = TRACE;
    let red = 0;
    let green = 0;
    let blue = 0;
    for (let k = 0; k < number; k++) {
      const j = witnesses[k];
      const dr = cells[3 * i] - cells[3 * j];
      const dg = cells[3 * i + 1] - cells[3 * j + 1];
      const db = cells[3 * i + 2] - cells[3 * j + 2];
      const weight = Math.exp((dr * dr + dg * dg + db * db) * (-0.5 / (3 * ALIKE ** 2))) * nearness[i * number + k] * trust[k];
      total += weight;
      red += weight * difference[3 * j];
      green += weight * difference[3 * j + 1];
      blue += weight * difference[3 * j + 2];
    }
    field.data[3 * i] = (fade[i] * red) / total;
    field.data[3 * i + 1] = (fade[i] * green) / total;
    field.data[3 * i + 2] = (fade[i] * blue) / total;
  }
  const full = resizeLinear(field, composed.width, composed.height).data;
  const made = new Uint8Array(full.length);
  for (let i = 0; i < full.length; i++) made[i] = clamp(rint(composed.data[i] + full[i]), 0, 255);
  return { ...composed, data: made };
}

// Pastes one head, frame after frame; `reset` before another clip.
export class Paster {
  constructor() {
    this.reset();
  }

  reset() {
    this.difference = null;
  }

  // A copy of the frame with the composition of `crop`, which `alignment` cut from it; `step` s since the last frame.
  paste(frame, composed, alignment, crop, step) {
    const [own, made] = [coarse(crop), coarse(composed)];
    let difference = own.map((value, i) => value - made[i]);
    const former = this.difference;
    if (former) {
      const jump = difference.reduce((sum, value, i) => sum + Math.abs(value - former[i]), 0) / difference.length;
      const part = 1 - Math.exp(-step / MEMORY_S);
      if (jump < CUT) difference = difference.map((value, i) => former[i] + (value - former[i]) * part);
    }
    this.difference = difference;
    const side = composed.width;
    return alignment.resized(side).paste(frame, matchBorder(composed, difference), headMask(side));
  }
}
