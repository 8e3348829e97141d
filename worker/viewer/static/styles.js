/** In which style each line begins: a colour goes on over newlines until it is reset. */

import { PLAIN, changed } from "./ansi.js";

const STEP = 256; // lines between those whose style is kept
const WINDOW = 64 * 1024; // bytes that are looked at at once
const LONGEST = 64; // bytes of a sequence
const [ESCAPE, BRACKET, LETTER_M] = [0x1b, 0x5b, 0x6d];

export class Styles {
  #store;
  #kept = [PLAIN];
  #last = { line: 0, style: PLAIN };

  constructor(store) {
    this.#store = store;
  }

  /** Take in what the store has got since the last call. */
  update() {
    while (this.#kept.length * STEP <= this.#store.complete) {
      const line = this.#kept.length * STEP;
      this.#kept.push(this.#after(this.#kept[this.#kept.length - 1], line - STEP, line));
    }
  }

  /** The style in which a line begins. */
  at(line) {
    const step = Math.min(Math.floor(line / STEP), this.#kept.length - 1);
    if (this.#last.line > line || this.#last.line < step * STEP) {
      this.#last = { line: step * STEP, style: this.#kept[step] };
    }
    const { line: from, style } = this.#last;
    this.#last = { line, style: this.#after(style, from, line) };
    return this.#last.style;
  }

  #after(style, fromLine, toLine) {
    const to = this.#store.start(toLine);
    for (let at = this.#store.start(fromLine); at < to; at += WINDOW) {
      const bytes = this.#store.bytes(at, Math.min(at + WINDOW + LONGEST, to));
      for (let i = bytes.indexOf(ESCAPE); i !== -1 && i < WINDOW; i = bytes.indexOf(ESCAPE, i + 1)) {
        style = read(style, bytes, i);
      }
    }
    return style;
  }
}

/** The style after the sequence at `at`, which is one of style if it is `ESC [`, parameters and `m`. */
function read(style, bytes, at) {
  if (bytes[at + 1] !== BRACKET) return style;
  let end = at + 2;
  while (bytes[end] >= 0x30 && bytes[end] <= 0x3b && end - at < LONGEST) end++;
  return bytes[end] === LETTER_M ? changed(style, String.fromCharCode(...bytes.subarray(at + 2, end))) : style;
}
