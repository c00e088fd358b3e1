// The One-Euro filter of runtime/face/smooth.py (Casiez, Roussel and Vogel 2012). A vector has one speed and one cutoff.

const SPEED_CUTOFF_HZ = 1.0; // of the low-pass filter on the speed; the authors' value

const weight = (cutoff, step) => 1 / (1 + 1 / (2 * Math.PI * cutoff * step));

export class OneEuro {
  // `cutoff`: Hz at rest. `beta`: how much it rises with each unit/s of the vector's root-mean-square speed.
  constructor(cutoff, beta) {
    Object.assign(this, { cutoff, beta, value: null, speed: null, time: 0 });
  }

  reset() {
    this.value = this.speed = null;
  }

  // The smoothed vector at a time in seconds, which must not run backwards.
  filter(value, time) {
    const step = time - this.time;
    if (!this.value) {
      this.value = Float64Array.from(value);
      this.speed = new Float64Array(value.length);
    } else if (step > 0) {
      const own = weight(SPEED_CUTOFF_HZ, step);
      let squares = 0;
      for (let i = 0; i < value.length; i++) {
        this.speed[i] += own * ((value[i] - this.value[i]) / step - this.speed[i]);
        squares += this.speed[i] ** 2;
      }
      const part = weight(this.cutoff + this.beta * Math.sqrt(squares / value.length), step);
      this.value = this.value.map((former, i) => former + part * (value[i] - former));
    }
    this.time = time;
    return this.value;
  }
}
