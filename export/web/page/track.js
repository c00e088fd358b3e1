// Following one face from frame to frame, as runtime/face/track.py does: detected every few frames, carried between by
// optical flow, smoothed.

import { Alignment, align, transform, warp } from "./geometry.js";
import { MAX_YAW_DEGREES, MIN_FACE_PX, area, yaw } from "./detect.js";
import { commonMotion, corners, follow, grey } from "./flow.js";
import { OneEuro } from "./smooth.js";

const EVERY = 4; // frames from one detection to the next
const VIEWS = [[256, false], [256, true], [320, false], [320, true]]; // side in px, mirrored: they take turns
const FIND_SIDE = 320; // px, longest side of the whole frame when a face is looked for
const [FAR_SIDE, FAR_EVERY] = [640, 8]; // px, frames: now and then a closer look, for small faces
const FLOW_SIDE = 160; // px, side of the aligned view in which flow is measured
const [CORNERS, MIN_CORNERS] = [70, 12];
const FLOW_ERROR_PX = 1.5; // of the view: further off the common motion, a point is no witness
const MIN_AGREEMENT = 0.5; // of the points must agree on one motion
const PULL = 0.12; // of the way to a detection that is near
const [NEAR, FAR] = [0.03, 0.08]; // mean distance of the points, in sides of the crop: up to here PULL, from there all
const PATIENCE = 2; // detections that may fail in a row while flow still agrees
const FACE_PART = 0.45; // width of a face's box, in sides of its crop
const [CUTOFF_HZ, BETA] = [0.5, 14.0];

const innerFace = (() => {
  const mask = new Uint8Array(FLOW_SIDE * FLOW_SIDE);
  const [cx, cy] = [FLOW_SIDE / 2, Math.round(0.55 * FLOW_SIDE)];
  const [rx, ry] = [Math.round(0.27 * FLOW_SIDE), Math.round(0.33 * FLOW_SIDE)];
  return mask.map((_, i) => (((i % FLOW_SIDE) - cx) / rx) ** 2 + ((Math.floor(i / FLOW_SIDE) - cy) / ry) ** 2 <= 1);
})();

const usable = (points) => Math.abs(yaw(points)) <= MAX_YAW_DEGREES && align(points).side * FACE_PART >= MIN_FACE_PX;

export class Tracker {
  constructor(detector) {
    Object.assign(this, { detector, filter: new OneEuro(CUTOFF_HZ, BETA), points: null, grey: null, unit: 1, count: 0, failed: 0 });
  }

  reset() {
    this.points = null;
  }

  // The smoothed alignment of the largest face of the next frame at its time in seconds; null while there is none.
  async next(frame, time) {
    this.count++;
    const now = grey(frame);
    const before = this.grey;
    this.grey = now;
    if (this.points && before?.width === now.width && before.height === now.height) {
      const carried = this.flow(before, now, this.points);
      const due = !carried || this.count % EVERY === 0;
      this.points = due ? await this.correct(frame, this.points, carried) : carried;
    } else this.points = null;
    if (!this.points) {
      const face = await this.find(frame);
      if (!face) return null;
      this.points = await this.detector.refine(frame, face);
      this.unit = align(this.points).side;
      this.failed = 0;
      this.filter.reset();
    }
    return usable(this.points) ? this.smoothed(align(this.points), time) : null;
  }

  async find(frame) {
    const longest = Math.max(frame.width, frame.height);
    const closer = this.count % FAR_EVERY === 0 && longest > FIND_SIDE;
    const faces = await this.detector.search(frame, closer ? Math.min(FAR_SIDE, longest) : FIND_SIDE);
    const fit = faces.filter((face) => face.box[2] >= MIN_FACE_PX && Math.abs(yaw(face.points)) <= MAX_YAW_DEGREES);
    return fit.reduce((a, b) => (a && area(a) >= area(b) ? a : b), null);
  }

  flow(before, now, points) {
    const alignment = align(points, FLOW_SIDE);
    const [old, fresh] = [before, now].map((one) => warp(one, alignment.matrix, FLOW_SIDE, FLOW_SIDE));
    const seen = corners(old, CORNERS, innerFace);
    if (seen.length < MIN_CORNERS) return null;
    const moved = follow(old, fresh, seen);
    const kept = seen.filter((_, i) => moved[i]);
    if (kept.length < MIN_CORNERS) return null;
    const motion = commonMotion(kept, moved.filter(Boolean), FLOW_ERROR_PX);
    if (!motion || motion.agree < Math.max(MIN_CORNERS, MIN_AGREEMENT * seen.length)) return null;
    const grown = Math.hypot(motion.matrix[0], motion.matrix[3]);
    if (!(grown > 0.8 && grown < 1.25)) return null;
    return transform(alignment.inverse, transform(motion.matrix, transform(alignment.matrix, points)));
  }

  async correct(frame, last, carried) {
    const [side, mirrored] = VIEWS[Math.floor(this.count / EVERY) % VIEWS.length];
    const measured = await this.detector.measure(frame, carried || last, side, mirrored);
    if (!measured) {
      this.failed++;
      return this.failed >= PATIENCE ? null : carried;
    }
    this.failed = 0;
    if (!carried) return measured;
    const gap = measured.reduce((sum, [x, y], i) => sum + Math.hypot(x - carried[i][0], y - carried[i][1]), 0) / 5;
    const off = gap / align(carried).side;
    const part = PULL + (1 - PULL) * Math.min(Math.max((off - NEAR) / (FAR - NEAR), 0), 1);
    return carried.map(([x, y], i) => [x + (measured[i][0] - x) * part, y + (measured[i][1] - y) * part]);
  }

  smoothed(alignment, time) {
    const middle = (alignment.size - 1) / 2;
    const [centre] = transform(alignment.inverse, [[middle, middle]]);
    let turn = alignment.roll;
    if (this.filter.value) {
      const former = this.filter.value[3]; // no jump by a full circle
      const gap = (turn - former + Math.PI) % (2 * Math.PI);
      turn = former + (gap < 0 ? gap + 2 * Math.PI : gap) - Math.PI;
    }
    const { unit } = this;
    const [x, y, size, roll] = this.filter.filter([centre[0] / unit, centre[1] / unit, Math.log(alignment.side / unit), turn], time);
    const scale = alignment.size / (Math.exp(size) * unit);
    const [cosine, sine] = [scale * Math.cos(roll), scale * Math.sin(roll)];
    const [u, v] = [x * unit, y * unit];
    return new Alignment([cosine, sine, middle - cosine * u - sine * v, -sine, cosine, middle + sine * u - cosine * v], alignment.size);
  }
}
