/**
 * The bytes of a log, as they came, and where its lines begin. It knows neither text nor page.
 *
 * They lie in blocks of fixed size, so that no line costs an object, and nothing is copied when the log grows.
 */

const BLOCK = 1 << 20;
const NEWLINE = 10;

export class Store {
  #blocks = [];
  #starts = [0];
  #ended = false;
  #mostBytes;
  #mostLines;

  /** Bytes so far. */
  size = 0;

  /** It takes up to `mostBytes`, and up to about `mostLines`. */
  constructor(mostBytes, mostLines = Infinity) {
    [this.#mostBytes, this.#mostLines] = [mostBytes, mostLines];
  }

  /** How many lines there are; what follows the last newline counts unless it is empty. */
  get lines() {
    const begun = this.#starts.length;
    return this.#starts[begun - 1] === this.size ? begun - 1 : begun;
  }

  /** How many lines change no more. */
  get complete() {
    return this.#ended ? this.lines : this.#starts.length - 1;
  }

  /** Whether there is room for more. */
  get full() {
    return this.size >= this.#mostBytes || this.#starts.length > this.#mostLines;
  }

  /** Add what follows; what is beyond the limits is dropped. */
  append(bytes) {
    for (let from = 0; from < bytes.length && !this.full; ) {
      const at = this.size % BLOCK;
      if (at === 0) this.#blocks.push(new Uint8Array(BLOCK));
      const part = bytes.subarray(from, from + Math.min(BLOCK - at, this.#mostBytes - this.size));
      this.#blocks[this.#blocks.length - 1].set(part, at);
      for (let i = part.indexOf(NEWLINE); i !== -1; i = part.indexOf(NEWLINE, i + 1)) {
        this.#starts.push(this.size + i + 1);
      }
      this.size += part.length;
      from += part.length;
    }
  }

  /** The log grows no more. */
  end() {
    this.#ended = true;
  }

  /** The offset at which a line begins, from 0; that of `lines` is where the log ends. */
  start(line) {
    return line < this.#starts.length ? this.#starts[line] : this.size;
  }

  /** The offset at which a line ends, its newline not included. */
  stop(line) {
    return line + 1 < this.#starts.length ? this.#starts[line + 1] - 1 : this.size;
  }

  /** The bytes of a range; not to be changed. */
  bytes(from, to) {
    const first = Math.floor(from / BLOCK);
    if (to <= (first + 1) * BLOCK) {
      return from < to ? this.#blocks[first].subarray(from % BLOCK, from % BLOCK + to - from) : new Uint8Array();
    }
    const joined = new Uint8Array(to - from);
    for (const [offset, part] of this.#parts(from, to)) joined.set(part, offset - from);
    return joined;
  }

  *#parts(from, to) {
    for (let at = from; at < to; ) {
      const next = Math.min(to, (Math.floor(at / BLOCK) + 1) * BLOCK);
      yield [at, this.bytes(at, next)];
      at = next;
    }
  }

  /** All bytes as a file. */
  file() {
    return new Blob([...this.#parts(0, this.size)].map(([, part]) => part), { type: "application/octet-stream" });
  }
}
