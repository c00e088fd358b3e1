// The mathematics of runtime/face/align.py in JavaScript: from five face points to the aligned crop, and back. A test
// holds both to the same numbers.
//
// An image is {data, width, height, channels}, data Uint8Array or Float32Array, rows of interleaved channels. A matrix is
// [a, b, c, d, e, f]: x' = a x + b y + c, y' = d x + e y + f. Points are [[x, y], ...], px, pixel centres at whole numbers.

export const CROP_SIZE = 256; // px, side of the aligned crop
const EYE_TO_EYE = 2.0; // the crop's half side is at least this many distances between the eyes
const EYE_TO_MOUTH = 1.8; // and at least this many distances from the eyes to the mouth
const CENTRE_DOWN = 0.1; // the crop's centre lies below the eyes by this part of the way to the mouth
const BLUR_BEYOND = 0.02; // sigma of the blur outside the photo, in sides of the crop
const BLUR_WITHIN = 0.1; // the blur is complete this far outside the photo, in sides of the crop
const FLAT_WITHIN = 0.3; // and all detail is gone here

export const clamp = (value, low, high) => (value < low ? low : value > high ? high : value);

// To the nearest whole number, halves to the even one, as NumPy and OpenCV round.
export function rint(value) {
  const below = Math.floor(value);
  const part = value - below;
  return part > 0.5 || (part === 0.5 && below % 2 !== 0) ? below + 1 : below;
}

export function image(width, height, channels, kind = Uint8Array) {
  return { data: new kind(width * height * channels), width, height, channels };
}

export function fromRgba({ data, width, height }) {
  const made = image(width, height, 3);
  for (let i = 0, j = 0; i < made.data.length; i += 3, j += 4) {
    made.data[i] = data[j];
    made.data[i + 1] = data[j + 1];
    made.data[i + 2] = data[j + 2];
  }
  return made;
}

export function toRgba({ data, width, height }) {
  const made = new ImageData(width, height);
  for (let i = 0, j = 0; i < data.length; i += 3, j += 4) {
    made.data[j] = data[i];
    made.data[j + 1] = data[i + 1];
    made.data[j + 2] = data[i + 2];
    made.data[j + 3] = 255;
  }
  return made;
}

export const transform = (m, points) => points.map(([x, y]) => [m[0] * x + m[1] * y + m[2], m[3] * x + m[4] * y + m[5]]);

export function invert([a, b, c, d, e, f]) {
  const det = a * e - b * d;
  const [p, q, r, s] = [e / det, -b / det, -d / det, a / det];
  return [p, q, -(p * c + q * f), r, s, -(r * c + s * f)];
}

// First `second`, then `first`: the product of the two.
export function compose(first, second) {
  const [a, b, c, d, e, f] = first;
  const [p, q, r, s, t, u] = second;
  return [a * p + b * s, a * q + b * t, a * r + b * u + c, d * p + e * s, d * q + e * t, d * r + e * u + f];
}

// The FFHQ alignment of five points: eye on the picture's left, other eye, nose tip, mouth corner on the left, other one.
export function align(points, size = CROP_SIZE) {
  const p = points.map(([x, y]) => [x + 0.5, y + 0.5]);
  const [left, right] = p;
  const eyes = [(left[0] + right[0]) / 2, (left[1] + right[1]) / 2];
  const mouth = [(p[3][0] + p[4][0]) / 2, (p[3][1] + p[4][1]) / 2];
  const eye = [right[0] - left[0], right[1] - left[1]];
  const down = [mouth[0] - eyes[0], mouth[1] - eyes[1]];
  const across = [eye[0] + down[1], eye[1] - down[0]];
  const length = Math.hypot(...across);
  const half = Math.max(Math.hypot(...eye) * EYE_TO_EYE, Math.hypot(...down) * EYE_TO_MOUTH);
  if (!p.flat().every(Number.isFinite) || length < 1e-6 || half < 1e-6)
    throw new Error("The five points of the face do not make a face.");
  const centre = [eyes[0] + CENTRE_DOWN * down[0], eyes[1] + CENTRE_DOWN * down[1]];
  const scale = size / (2 * half) / length;
  const [cosine, sine] = [across[0] * scale, across[1] * scale];
  const offset = [size / 2 - cosine * centre[0] - sine * centre[1], size / 2 + sine * centre[0] - cosine * centre[1]];
  return new Alignment(
    [cosine, sine, 0.5 * (cosine + sine) + offset[0] - 0.5, -sine, cosine, 0.5 * (cosine - sine) + offset[1] - 0.5],
    size,
  );
}

export class Alignment {
  constructor(matrix, size = CROP_SIZE) {
    this.matrix = matrix;
    this.size = size;
  }

  get inverse() {
    return invert(this.matrix);
  }

  get side() {
    return this.size / Math.hypot(this.matrix[0], this.matrix[3]); // px of the photo
  }

  get roll() {
    return -Math.atan2(this.matrix[3], this.matrix[0]); // radians, clockwise
  }

  resized(size) {
    const factor = size / this.size;
    const shift = (factor - 1) / 2;
    return new Alignment(this.matrix.map((value, i) => factor * value + (i % 3 === 2 ? shift : 0)), size);
  }

  // The aligned crop; what lies outside the photo is its mirror image, fading into a blur and then into one colour.
  crop(photo) {
    const { size } = this;
    const warped = warp(photo, this.matrix, size, size);
    const outside = this.outside(photo.height, photo.width);
    if (outside.reduce((most, value) => Math.max(most, value), -Infinity) <= 1) return warped;
    const flat = medians(warped, outside.some((value) => value <= 0) ? outside : null);
    const soft = gaussianBlur(warped, BLUR_BEYOND * size);
    const { data } = warped;
    for (let i = 0; i < outside.length; i++) {
      const blurred = clamp(outside[i] / (BLUR_WITHIN * size), 0, 1);
      const gone = clamp(outside[i] / (FLAT_WITHIN * size), 0, 1);
      if (blurred === 0) continue;
      for (let c = 0; c < 3; c++) {
        let value = data[3 * i + c];
        value += (soft.data[3 * i + c] - value) * blurred;
        value += (flat[c] - value) * gone;
        data[3 * i + c] = clamp(rint(value), 0, 255);
      }
    }
    return warped;
  }

  // A copy of the photo with the crop put back; `mask` Float32Array [size * size] is the crop's opacity.
  paste(photo, crop, mask) {
    const { size } = this;
    const corners = [[0, 0], [1, 0], [1, 1], [0, 1]].map(([x, y]) => [x * size - 0.5, y * size - 0.5]);
    const around = transform(this.inverse, corners);
    const [xs, ys] = [around.map(([x]) => x), around.map(([, y]) => y)];
    const [left, top] = [clamp(Math.floor(Math.min(...xs)), 0, photo.width), clamp(Math.floor(Math.min(...ys)), 0, photo.height)];
    const right = clamp(Math.ceil(Math.max(...xs)) + 1, 0, photo.width);
    const bottom = clamp(Math.ceil(Math.max(...ys)) + 1, 0, photo.height);
    const result = { ...photo, data: photo.data.slice() };
    if (left >= right || top >= bottom) return result;
    const region = this.inverse.map((value, i) => value - (i === 2 ? left : i === 5 ? top : 0));
    const [width, height] = [right - left, bottom - top];
    const inner = warp(crop, region, width, height);
    const alpha = warpLinear(mask, size, region, width, height);
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++) {
        const a = alpha[y * width + x];
        if (a === 0) continue;
        const at = 3 * ((top + y) * photo.width + left + x);
        const from = 3 * (y * width + x);
        for (let c = 0; c < 3; c++)
          result.data[at + c] = toByte((inner.data[from + c] * a + result.data[at + c] * (1 - a)) / (1 + 1e-5));
      }
    return result;
  }

  // How far each pixel of the crop is outside the photo, in px of the crop; < 0 inside.
  outside(height, width) {
    const m = this.inverse;
    const scale = this.size / this.side;
    const beyond = new Float32Array(this.size * this.size);
    for (let row = 0, i = 0; row < this.size; row++)
      for (let column = 0; column < this.size; column++, i++) {
        const x = m[0] * column + m[1] * row + m[2];
        const y = m[3] * column + m[4] * row + m[5];
        beyond[i] = scale * Math.max(-0.5 - x, x - (width - 0.5), -0.5 - y, y - (height - 0.5));
      }
    return beyond;
  }
}

// Through a similarity transform into width x height: averaged down first where it shrinks, then cubic at about 1:1.
export function warp(source, matrix, width, height) {
  let m = matrix;
  const scale = Math.hypot(m[0], m[3]);
  if (scale < 1) {
    const corners = transform(invert(m), [[0, 0], [width, 0], [width, height], [0, height]].map(([x, y]) => [x - 0.5, y - 0.5]));
    const [xs, ys] = [corners.map(([x]) => x), corners.map(([, y]) => y)];
    const margin = 3 / scale; // px of the source: the reach of the cubic kernel
    const left = clamp(Math.floor(Math.min(...xs) - margin), 0, source.width);
    const top = clamp(Math.floor(Math.min(...ys) - margin), 0, source.height);
    const right = clamp(Math.ceil(Math.max(...xs) + margin), 0, source.width);
    const bottom = clamp(Math.ceil(Math.max(...ys) + margin), 0, source.height);
    if (left < right && top < bottom) {
      const small = [Math.max(1, rint((right - left) * scale)), Math.max(1, rint((bottom - top) * scale))];
      const part = cut(source, left, top, right, bottom);
      const ratio = [(right - left) / small[0], (bottom - top) / small[1]];
      m = compose(m, [ratio[0], 0, ratio[0] / 2 - 0.5 + left, 0, ratio[1], ratio[1] / 2 - 0.5 + top]);
      source = resizeArea(part, ...small);
    }
  }
  return warpCubic(source, m, width, height);
}

function cut(source, left, top, right, bottom) {
  if (left === 0 && top === 0 && right === source.width && bottom === source.height) return source;
  const { channels } = source;
  const made = image(right - left, bottom - top, channels, source.data.constructor);
  for (let y = top; y < bottom; y++) {
    const start = channels * (y * source.width + left);
    made.data.set(source.data.subarray(start, start + channels * made.width), channels * (y - top) * made.width);
  }
  return made;
}

// Weights of the four neighbours at a position between the second and the third, into `out`; a = -0.75 as in OpenCV.
function cubic(x, out) {
  const A = -0.75;
  out[0] = ((A * (x + 1) - 5 * A) * (x + 1) + 8 * A) * (x + 1) - 4 * A;
  out[1] = ((A + 2) * x - (A + 3)) * x * x + 1;
  out[2] = ((A + 2) * (1 - x) - (A + 3)) * (1 - x) * (1 - x) + 1;
  out[3] = 1 - out[0] - out[1] - out[2];
}

function reflect(at, size) {
  if (size === 1) return 0;
  while (at < 0 || at >= size) at = at < 0 ? -at : 2 * size - 2 - at;
  return at;
}

function warpCubic(source, matrix, width, height) {
  const m = invert(matrix);
  const { data, width: w, height: h, channels } = source;
  const made = image(width, height, channels, data.constructor);
  const out = made.data;
  const bytes = data instanceof Uint8Array;
  const line = channels * w;
  const [wx, wy] = [new Float64Array(4), new Float64Array(4)];
  const [columns, rows] = [new Int32Array(4), new Int32Array(4)];
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const u = m[0] * x + m[1] * y + m[2];
      const v = m[3] * x + m[4] * y + m[5];
      const sx = Math.floor(u) - 1;
      const sy = Math.floor(v) - 1;
      cubic(u - sx - 1, wx);
      cubic(v - sy - 1, wy);
      if (sx >= 0 && sy >= 0 && sx + 3 < w && sy + 3 < h)
        for (let i = 0; i < 4; i++) {
          columns[i] = channels * (sx + i);
          rows[i] = line * (sy + i);
        }
      else
        for (let i = 0; i < 4; i++) {
          columns[i] = channels * reflect(sx + i, w);
          rows[i] = line * reflect(sy + i, h);
        }
      const a = wx[0];
      const b = wx[1];
      const c = wx[2];
      const d = wx[3];
      for (let k = 0; k < channels; k++) {
        let sum = 0;
        for (let i = 0; i < 4; i++) {
          const r = rows[i] + k;
          sum += wy[i] * (a * data[r + columns[0]] + b * data[r + columns[1]] + c * data[r + columns[2]] + d * data[r + columns[3]]);
        }
        out[at++] = bytes ? toByte(sum) : sum;
      }
    }
  return made;
}

// The nearest whole number in 0..255; halves go up, which only a sum that ends in .5 exactly can tell from `rint`.
function toByte(value) {
  return value <= 0 ? 0 : value >= 255 ? 255 : (value + 0.5) | 0;
}

// Of one channel [size, size], 0 outside of it.
function warpLinear(data, size, matrix, width, height) {
  const m = invert(matrix);
  const made = new Float32Array(width * height);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const u = m[0] * x + m[1] * y + m[2];
      const v = m[3] * x + m[4] * y + m[5];
      const left = Math.floor(u);
      const top = Math.floor(v);
      if (left < -1 || top < -1 || left >= size || top >= size) continue;
      const p = u - left;
      const q = v - top;
      const at = top * size + left;
      const west = left >= 0;
      const east = left + 1 < size;
      const north = top >= 0;
      const south = top + 1 < size;
      let sum = 0;
      if (north && west) sum += (1 - q) * (1 - p) * data[at];
      if (north && east) sum += (1 - q) * p * data[at + 1];
      if (south && west) sum += q * (1 - p) * data[at + size];
      if (south && east) sum += q * p * data[at + size + 1];
      made[i] = sum;
    }
  return made;
}

// Exact means over areas; `width` and `height` are no more than the source's.
export function resizeArea(source, width, height) {
  if (width === source.width && height === source.height) return source;
  const [columns, rows] = [areaTaps(source.width, width), areaTaps(source.height, height)];
  const { data, channels } = source;
  const bytes = data instanceof Uint8Array;
  const made = image(width, height, channels, data.constructor);
  const [line, sums] = [new Float32Array(width * channels), new Float32Array(width * channels)];
  for (let y = 0; y < height; y++) {
    sums.fill(0);
    for (let k = rows.start[y]; k < rows.start[y + 1]; k++) {
      line.fill(0);
      const start = rows.index[k] * source.width * channels;
      if (channels === 3) areaLine(data, start, columns, width, line);
      else
        for (let x = 0; x < width; x++)
          for (let j = columns.start[x]; j < columns.start[x + 1]; j++)
            for (let c = 0; c < channels; c++)
              line[x * channels + c] += columns.weight[j] * data[start + columns.index[j] * channels + c];
      const weight = rows.weight[k];
      for (let i = 0; i < sums.length; i++) sums[i] += weight * line[i];
    }
    const at = y * width * channels;
    for (let i = 0; i < sums.length; i++) made.data[at + i] = bytes ? rint(sums[i]) : sums[i];
  }
  return made;
}

// One row of three channels, from `start` of the data on, averaged into `line`.
function areaLine(data, start, { start: begin, index, weight }, width, line) {
  for (let x = 0, j = begin[0], out = 0; x < width; x++, out += 3) {
    let red = 0;
    let green = 0;
    let blue = 0;
    for (const end = begin[x + 1]; j < end; j++) {
      const part = weight[j];
      const from = start + 3 * index[j];
      red += part * data[from];
      green += part * data[from + 1];
      blue += part * data[from + 2];
    }
    line[out] = red;
    line[out + 1] = green;
    line[out + 2] = blue;
  }
}

// Which of `from` cells make up each of `to` cells: those of cell i are start[i] to start[i + 1], with index and weight.
function areaTaps(from, to) {
  const scale = from / to;
  const [start, index, weight] = [[0], [], []];
  const tap = (at, part) => {
    index.push(at);
    weight.push(part);
  };
  for (let i = 0; i < to; i++) {
    const [begin, end] = [i * scale, (i + 1) * scale];
    const cell = Math.min(scale, from - begin);
    const last = Math.min(Math.floor(end), from - 1);
    const first = Math.min(Math.ceil(begin), last);
    if (first - begin > 1e-3) tap(first - 1, (first - begin) / cell);
    for (let k = first; k < last; k++) tap(k, 1 / cell);
    if (end - last > 1e-3) tap(last, Math.min(end - last, 1, cell) / cell);
    start.push(index.length);
  }
  return { start: Int32Array.from(start), index: Int32Array.from(index), weight: Float32Array.from(weight) };
}

// Straight between neighbours; the outer edges stay on each other.
export function resizeLinear(source, width, height) {
  const { data, channels, width: w, height: h } = source;
  const bytes = data instanceof Uint8Array;
  const made = image(width, height, channels, data.constructor);
  const [columns, rows] = [linearTaps(w, width), linearTaps(h, height)];
  for (let y = 0, out = 0; y < height; y++) {
    const above = channels * rows.low[y] * w;
    const below = channels * rows.high[y] * w;
    const q = rows.part[y];
    for (let x = 0; x < width; x++) {
      const left = channels * columns.low[x];
      const right = channels * columns.high[x];
      const p = columns.part[x];
      for (let c = 0; c < channels; c++) {
        const one = data[above + left + c] * (1 - p) + data[above + right + c] * p;
        const two = data[below + left + c] * (1 - p) + data[below + right + c] * p;
        const value = one * (1 - q) + two * q;
        made.data[out++] = bytes ? toByte(value) : value;
      }
    }
  }
  return made;
}

function linearTaps(from, to) {
  const at = Float64Array.from({ length: to }, (_, i) => clamp(((i + 0.5) * from) / to - 0.5, 0, from - 1));
  const low = Int32Array.from(at, Math.floor);
  return { low, high: low.map((one) => Math.min(one + 1, from - 1)), part: at.map((one, i) => one - low[i]) };
}

function gaussianBlur(source, sigma) {
  const reach = (rint(sigma * 6 + 1) | 1) >> 1;
  const kernel = Array.from({ length: 2 * reach + 1 }, (_, i) => Math.exp(-((i - reach) ** 2) / (2 * sigma * sigma)));
  const total = kernel.reduce((a, b) => a + b);
  const { width, height, channels } = source;
  const pass = (data, along, across, step, stride) => {
    const out = new Float32Array(data.length);
    for (let j = 0; j < across; j++)
      for (let i = 0; i < along; i++)
        for (let c = 0; c < channels; c++) {
          let sum = 0;
          for (let k = -reach; k <= reach; k++) sum += kernel[k + reach] * data[j * stride + reflect(i + k, along) * step + c];
          out[j * stride + i * step + c] = sum / total;
        }
    return out;
  };
  const lines = pass(source.data, width, height, channels, width * channels);
  return { ...source, data: pass(lines, height, width, width * channels, channels).map(rint) };
}

// Of each channel, over the pixels where `outside` is 0 or less (over all without it).
function medians({ data }, outside) {
  const counts = [0, 1, 2].map(() => new Uint32Array(256));
  let number = 0;
  for (let i = 0; i < data.length / 3; i++) {
    if (outside && outside[i] > 0) continue;
    number++;
    for (let c = 0; c < 3; c++) counts[c][data[3 * i + c]]++;
  }
  return counts.map((count) => {
    const at = (rank) => {
      let value = 0;
      for (let seen = count[0]; seen <= rank; seen += count[++value]);
      return value;
    };
    return (at((number - 1) >> 1) + at(number >> 1)) / 2;
  });
}

// The middle square at `side` px.
export function square(source, side) {
  const small = Math.min(source.width, source.height);
  const [top, left] = [(source.height - small) >> 1, (source.width - small) >> 1];
  return resize(cut(source, left, top, left + small, top + small), side, side);
}

// Averaged where it shrinks, linear where it grows.
export function resize(source, width, height) {
  if (width <= source.width && height <= source.height) return resizeArea(source, width, height);
  return resizeLinear(source, width, height);
}
