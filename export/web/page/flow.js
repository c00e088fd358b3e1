// Optical flow for the tracker: corners (Shi and Tomasi 1994), followed through a pyramid (Lucas and Kanade 1981, as in
// OpenCV), and the one similarity transform that most of them agree on. Grey images are {data, width, height}.

const QUALITY = 0.01; // of the best corner's smaller eigenvalue
const CORNER_GAP = 5; // px
const HALF_WINDOW = 10; // of 21 px
const LEVELS = 3; // of the pyramid above the image, as long as they are larger than the window
const STEPS = 30;
const SMALL_STEP = 0.01; // px
const MIN_EIGENVALUE = 1e-4 * 1024; // mean squared slope, intensity a px; OpenCV counts both in 1024ths
const CONFIDENCE = 0.99;
const MOST_TRIES = 2000;

export function grey({ data, width, height }) {
  const made = new Uint8Array(width * height);
  for (let i = 0, j = 0; i < made.length; i++, j += 3) made[i] = (data[j] * 9798 + data[j + 1] * 19235 + data[j + 2] * 3735 + 16384) >> 15;
  return { data: made, width, height, channels: 1 };
}

const mirrored = (at, size) => (at < 0 ? -at : at >= size ? 2 * size - 2 - at : at);

// At most `most` corners [[x, y], ...] where `mask` is not 0, the best first.
export function corners({ data, width, height }, most, mask) {
  const [xx, xy, yy] = [0, 1, 2].map(() => new Float32Array(data.length));
  const at = (x, y) => data[mirrored(y, height) * width + mirrored(x, width)];
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const dx = at(x + 1, y - 1) + 2 * at(x + 1, y) + at(x + 1, y + 1) - at(x - 1, y - 1) - 2 * at(x - 1, y) - at(x - 1, y + 1);
      const dy = at(x - 1, y + 1) + 2 * at(x, y + 1) + at(x + 1, y + 1) - at(x - 1, y - 1) - 2 * at(x, y - 1) - at(x + 1, y - 1);
      [xx[i], xy[i], yy[i]] = [dx * dx, dx * dy, dy * dy];
    }
  const value = new Float32Array(data.length);
  let top = 0;
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      let [a, b, c] = [0, 0, 0];
      for (let v = -1; v <= 1; v++)
        for (let u = -1; u <= 1; u++) {
          const j = mirrored(y + v, height) * width + mirrored(x + u, width);
          a += xx[j];
          b += xy[j];
          c += yy[j];
        }
      value[i] = (a + c) / 2 - Math.sqrt(((a - c) / 2) ** 2 + b * b);
      if (mask[i]) top = Math.max(top, value[i]);
    }
  const found = [];
  for (let y = 1; y < height - 1; y++)
    for (let x = 1; x < width - 1; x++) {
      const i = y * width + x;
      if (!mask[i] || value[i] <= QUALITY * top) continue;
      let highest = true;
      for (let v = -1; v <= 1 && highest; v++) for (let u = -1; u <= 1; u++) if (value[i + v * width + u] > value[i]) highest = false;
      if (highest) found.push([x, y, value[i]]);
    }
  const kept = [];
  for (const [x, y] of found.sort((a, b) => b[2] - a[2])) {
    if (kept.length === most) break;
    if (kept.every(([u, v]) => (u - x) ** 2 + (v - y) ** 2 >= CORNER_GAP ** 2)) kept.push([x, y]);
  }
  return kept;
}

function half({ data, width, height }) {
  const [w, h] = [(width + 1) >> 1, (height + 1) >> 1];
  const kernel = [1, 4, 6, 4, 1];
  const lines = new Float32Array(w * height);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < w; x++)
      for (let k = 0; k < 5; k++) lines[y * w + x] += kernel[k] * data[y * width + mirrored(2 * x + k - 2, width)];
  const made = new Float32Array(w * h);
  for (let y = 0; y < h; y++)
    for (let x = 0; x < w; x++) {
      let sum = 0;
      for (let k = 0; k < 5; k++) sum += kernel[k] * lines[mirrored(2 * y + k - 2, height) * w + x];
      made[y * w + x] = Math.round(sum / 256);
    }
  return { data: made, width: w, height: h };
}

function pyramid(base) {
  const levels = [base];
  while (levels.length <= LEVELS) {
    const next = half(levels.at(-1));
    if (Math.min(next.width, next.height) <= 2 * HALF_WINDOW + 1) break;
    levels.push(next);
  }
  return levels;
}

// Scharr's derivatives, intensity a px.
function slopes({ data, width, height }) {
  const [dx, dy] = [new Float32Array(data.length), new Float32Array(data.length)];
  const at = (x, y) => data[mirrored(y, height) * width + mirrored(x, width)];
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      dx[i] = (3 * (at(x + 1, y - 1) - at(x - 1, y - 1)) + 10 * (at(x + 1, y) - at(x - 1, y)) + 3 * (at(x + 1, y + 1) - at(x - 1, y + 1))) / 32;
      dy[i] = (3 * (at(x - 1, y + 1) - at(x - 1, y - 1)) + 10 * (at(x, y + 1) - at(x, y - 1)) + 3 * (at(x + 1, y + 1) - at(x + 1, y - 1))) / 32;
    }
  return { dx, dy };
}

// The window around (x, y) of one array, between pixels; mirrored at the edges.
function window(data, width, height, x, y, out) {
  const side = 2 * HALF_WINDOW + 1;
  const left = Math.floor(x) - HALF_WINDOW;
  const top = Math.floor(y) - HALF_WINDOW;
  const p = x - Math.floor(x);
  const q = y - Math.floor(y);
  const [a, b, c, d] = [(1 - q) * (1 - p), (1 - q) * p, q * (1 - p), q * p];
  const inside = left >= 0 && top >= 0 && left + side < width && top + side < height;
  for (let v = 0, i = 0; v < side; v++) {
    if (inside) {
      for (let u = 0, at = (top + v) * width + left; u < side; u++, i++, at++)
        out[i] = a * data[at] + b * data[at + 1] + c * data[at + width] + d * data[at + width + 1];
      continue;
    }
    const above = within(top + v, height) * width;
    const below = within(top + v + 1, height) * width;
    for (let u = 0; u < side; u++, i++) {
      const l = within(left + u, width);
      const r = within(left + u + 1, width);
      out[i] = a * data[above + l] + b * data[above + r] + c * data[below + l] + d * data[below + r];
    }
  }
  return out;
}

const within = (at, size) => Math.min(Math.max(mirrored(at, size), 0), size - 1);

// Where points [[x, y], ...] of `before` are in `now`; null for one that is lost.
export function follow(before, now, points) {
  const [old, fresh] = [pyramid(before), pyramid(now)];
  const gradients = old.map(slopes);
  const size = (2 * HALF_WINDOW + 1) ** 2;
  const [I, gx, gy, J] = [0, 1, 2, 3].map(() => new Float32Array(size));
  return points.map((point) => {
    let moved = point.map((value) => value / 2 ** (old.length - 1));
    for (let level = old.length - 1; level >= 0; level--) {
      const { data, width, height } = old[level];
      const [x, y] = point.map((value) => value / 2 ** level);
      if (level < old.length - 1) moved = moved.map((value) => 2 * value);
      window(data, width, height, x, y, I);
      window(gradients[level].dx, width, height, x, y, gx);
      window(gradients[level].dy, width, height, x, y, gy);
      let [a, b, c] = [0, 0, 0];
      for (let i = 0; i < size; i++) {
        a += gx[i] * gx[i];
        b += gx[i] * gy[i];
        c += gy[i] * gy[i];
      }
      const det = a * c - b * b;
      const smaller = (a + c - Math.sqrt((a - c) ** 2 + 4 * b * b)) / (2 * size);
      if (smaller < MIN_EIGENVALUE || det < 1e-7) {
        if (level === 0) return null;
        continue;
      }
      let last = [0, 0];
      for (let step = 0; step < STEPS; step++) {
        if (moved[0] < -HALF_WINDOW || moved[1] < -HALF_WINDOW || moved[0] >= width + HALF_WINDOW || moved[1] >= height + HALF_WINDOW) {
          if (level === 0) return null;
          break;
        }
        window(fresh[level].data, width, height, moved[0], moved[1], J);
        let [p, q] = [0, 0];
        for (let i = 0; i < size; i++) {
          const off = J[i] - I[i];
          p += off * gx[i];
          q += off * gy[i];
        }
        const delta = [(b * q - c * p) / det, (b * p - a * q) / det];
        moved = [moved[0] + delta[0], moved[1] + delta[1]];
        if (delta[0] ** 2 + delta[1] ** 2 <= SMALL_STEP ** 2) break;
        if (step > 0 && Math.abs(delta[0] + last[0]) < SMALL_STEP && Math.abs(delta[1] + last[1]) < SMALL_STEP) {
          moved = [moved[0] - delta[0] / 2, moved[1] - delta[1] / 2];
          break;
        }
        last = delta;
      }
    }
    return moved;
  });
}

// The similarity transform from points to points, least squares (Umeyama in the plane): `fit_similarity` of align.py.
export function fitSimilarity(source, target) {
  const mean = (points, k) => points.reduce((sum, point) => sum + point[k], 0) / points.length;
  const [zx, zy, tx, ty] = [mean(source, 0), mean(source, 1), mean(target, 0), mean(target, 1)];
  let [re, im, squares] = [0, 0, 0];
  source.forEach(([x, y], i) => {
    const [u, v, p, q] = [x - zx, y - zy, target[i][0] - tx, target[i][1] - ty];
    re += u * p + v * q;
    im += u * q - v * p;
    squares += u * u + v * v;
  });
  [re, im] = [re / squares, im / squares];
  return [re, -im, tx - re * zx + im * zy, im, re, ty - im * zx - re * zy];
}

// The similarity transform that most pairs agree on within `limit` px (RANSAC): {matrix, agree}, or null.
export function commonMotion(source, target, limit) {
  let seed = 12345;
  const random = (below) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 4294967296) * below);
  };
  let best = [];
  for (let tries = 0, needed = MOST_TRIES; tries < needed; tries++) {
    const [i, j] = [random(source.length), random(source.length)];
    if (i === j || Math.hypot(source[i][0] - source[j][0], source[i][1] - source[j][1]) < 1e-6) continue;
    const m = fitSimilarity([source[i], source[j]], [target[i], target[j]]);
    const agree = [];
    source.forEach(([x, y], k) => {
      const off = (m[0] * x + m[1] * y + m[2] - target[k][0]) ** 2 + (m[3] * x + m[4] * y + m[5] - target[k][1]) ** 2;
      if (off <= limit * limit) agree.push(k);
    });
    if (agree.length <= best.length) continue;
    best = agree;
    const share = (agree.length / source.length) ** 2;
    needed = share >= 1 ? 0 : Math.min(MOST_TRIES, Math.ceil(Math.log(1 - CONFIDENCE) / Math.log(1 - share)));
  }
  if (best.length < 2) return null;
  return { matrix: fitSimilarity(best.map((k) => source[k]), best.map((k) => target[k])), agree: best.length };
}
