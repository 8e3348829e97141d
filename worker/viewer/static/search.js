/** The search field: finds while one types and while the log grows, and leads from one found line to the next. */

import { Finder } from "./finder.js";
import { Switch } from "./switches.js";

const TOLD = 300; // milliseconds between two counts while it looks

export class Search {
  #store;
  #jump;
  #parts;
  #matchCase;
  #found;
  #finder = null;
  #origin = null; // the line from which the first match is still to be shown
  #told = 0;

  /**
   * @param {import("./jump.js").Jump} jump leads to lines
   * @param {Record<string, HTMLElement>} parts `form`, `query`, `matchCase`, `found`, `next`, `previous`
   * @param {(pattern: RegExp | null) => void} found told what to mark
   */
  constructor(store, jump, parts, found) {
    [this.#store, this.#jump, this.#parts, this.#found] = [store, jump, parts, found];
    parts.form.addEventListener("submit", (event) => event.preventDefault());
    parts.query.addEventListener("input", () => this.#begin());
    parts.query.addEventListener("keydown", (event) => this.#key(event));
    this.#matchCase = new Switch(parts.matchCase, () => this.#begin());
    parts.next.addEventListener("click", () => this.next());
    parts.previous.addEventListener("click", () => this.previous());
  }

  focus() {
    this.#parts.query.focus();
    this.#parts.query.select();
  }

  /** The log has grown. */
  update() {
    this.#finder?.update();
  }

  /** A match that comes later leads nobody away from where they are. */
  stay() {
    this.#origin = null;
  }

  next() {
    this.stay();
    this.#go(this.#finder?.from(this.#jump.next));
  }

  previous() {
    this.stay();
    this.#go(this.#finder?.before(this.#jump.line));
  }

  #go(line) {
    if (line !== null && line !== undefined) this.#jump.to(line);
    this.#tell();
  }

  #key(event) {
    if (event.key === "Enter") {
      if (event.shiftKey) this.previous();
      else this.next();
    } else if (event.key === "Escape") {
      this.#parts.query.value = "";
      this.#begin();
      this.#jump.focus();
    } else {
      return;
    }
    event.preventDefault();
  }

  #begin() {
    this.#finder?.stop();
    const query = this.#parts.query.value;
    const flags = this.#matchCase.pressed ? "g" : "gi";
    const pattern = query ? new RegExp(query.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"), flags) : null;
    this.#origin = this.#jump.line;
    this.#finder = pattern && new Finder(this.#store, pattern, () => this.#changed());
    this.#found(pattern);
    this.#tell();
  }

  #changed() {
    const line = this.#origin === null ? null : this.#finder.from(this.#origin);
    if (line !== null && (line >= this.#origin || this.#finder.done)) {
      this.stay();
      this.#go(line);
    } else if (this.#finder.done || performance.now() - this.#told > TOLD) {
      if (this.#finder.done) this.stay();
      this.#tell();
    }
  }

  #tell() {
    this.#told = performance.now();
    const { found, next, previous } = this.#parts;
    const count = this.#finder?.lines.length ?? 0;
    next.disabled = previous.disabled = count === 0;
    found.textContent = this.#finder === null ? "" : this.#words(count);
  }

  #words(count) {
    const more = this.#finder.done ? "" : "…";
    if (count === 0) return more ? "searching…" : "not found";
    const rank = this.#finder.rank(this.#jump.line);
    const all = `${count.toLocaleString("en")}${more} ${count === 1 ? "line" : "lines"}`;
    return rank ? `${rank.toLocaleString("en")} of ${all}` : all;
  }
}
