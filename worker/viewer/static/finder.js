/** Finds the lines that match a pattern, in small steps between which the page stays alive, and as the log grows. */

import { slice } from "./text.js";

const STEP = 8; // milliseconds of work before others get their turn

export class Finder {
  #store;
  #pattern;
  #changed;
  #except;
  #next = 0;
  #running = false;
  #stopped = false;

  /** The lines found so far, from 0, in their order. */
  lines = [];

  /**
   * @param {RegExp} pattern within one line
   * @param {() => void} changed called when more lines were found, or all of the log was looked at
   * @param {string | null} except lines that begin so are not meant
   */
  constructor(store, pattern, changed, except = null) {
    this.#store = store;
    this.#pattern = new RegExp(pattern, pattern.flags.replace("g", "") + "g");
    this.#changed = changed;
    this.#except = except;
    this.update();
  }

  /** Whether all complete lines were looked at. */
  get done() {
    return this.#next >= this.#store.complete;
  }

  /** Look at what the store has got since. */
  update() {
    if (!this.#running && !this.done) this.#run();
  }

  /** Look no further. */
  stop() {
    this.#stopped = true;
  }

  /** The first line found that is not before `line`; the first one of all where there is none; null without any. */
  from(line) {
    return this.lines[this.#position(line)] ?? this.lines[0] ?? null;
  }

  /** The last line found before `line`, or else the last one of all. */
  before(line) {
    return this.lines[this.#position(line) - 1] ?? this.lines[this.lines.length - 1] ?? null;
  }

  /** How many of the lines found come before `line`. */
  #position(line) {
    let [low, high] = [0, this.lines.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.lines[middle] < line) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** The number among the lines found, from 1, or 0. */
  rank(line) {
    const position = this.#position(line);
    return this.lines[position] === line ? position + 1 : 0;
  }

  async #run() {
    this.#running = true;
    await pause(); // several changes of the pattern in a row cost nothing
    while (!this.#stopped && !this.done) {
      const until = performance.now() + STEP;
      while (!this.done && performance.now() < until) this.#look();
      this.#changed();
      await pause();
    }
    this.#running = false;
  }

  #look() {
    const { text, next } = slice(this.#store, this.#next);
    const pattern = this.#pattern;
    let [line, begin] = [this.#next, 0];
    for (pattern.lastIndex = 0; ; ) {
      const match = pattern.exec(text);
      if (!match) break;
      for (let end; (end = text.indexOf("\n", begin)) !== -1 && end < match.index; begin = end + 1) line++;
      if (this.#except === null || !text.startsWith(this.#except, begin)) this.lines.push(line);
      const end = text.indexOf("\n", match.index);
      if (end === -1) break;
      pattern.lastIndex = end + 1;
    }
    this.#next = next;
  }
}

function pause() {
  return new Promise((resolve) => setTimeout(resolve));
}
