// The standard normal noise of torch.Generator().manual_seed(seed) on a CPU, so that a seed means here what it means
// in Python: MT19937 (Matsumoto and Nishimura 1998), whose numbers are exact, and Box-Muller as torch.randn has it,
// which agrees to 3e-7.

const LENGTH = 624;
const MIDDLE = 397;

export class TorchGenerator {
  /** @param {number} seed - a whole number from 0 to 2**32 - 1 */
  constructor(seed) {
    this.state = new Uint32Array(LENGTH);
    this.state[0] = seed;
    for (let i = 1; i < LENGTH; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.index = LENGTH;
  }

  /** A whole number from 0 to 2**32 - 1. */
  next() {
    if (this.index === LENGTH) this.#twist();
    let y = this.state[this.index++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  #twist() {
    const state = this.state;
    for (let i = 0; i < LENGTH; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % LENGTH] & 0x7fffffff);
      state[i] = state[(i + MIDDLE) % LENGTH] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.index = 0;
  }

  /** torch.randn(count, generator=...), where count is 16 or more. */
  normal(count) {
    const out = new Float32Array(count);
    const uniform = (from) => {
      for (let i = from; i < count; i++) out[i] = (this.next() & 0xffffff) / 2 ** 24;
    };
    uniform(0);
    for (let i = 0; i + 16 <= count; i += 16) boxMuller(out, i);
    if (count % 16) {
      // The last 16 numbers are drawn again.
      uniform(count - 16);
      boxMuller(out, count - 16);
    }
    return out;
  }
}

/** 16 uniform numbers to normal ones, in place: the i-th and the (i + 8)-th are a pair. In single precision, as there. */
function boxMuller(x, start) {
  const single = Math.fround;
  for (let i = start; i < start + 8; i++) {
    const radius = single(Math.sqrt(single(-2 * single(Math.log(1 - x[i])))));
    const angle = single(single(2 * Math.PI) * x[i + 8]);
    x[i] = radius * Math.cos(angle);
    x[i + 8] = radius * Math.sin(angle);
  }
}
