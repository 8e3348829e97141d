/** Lines that tell of an error: how they are known, and the buttons that lead from one to the next. */

import { Finder } from "./finder.js";

const SIGN = new RegExp(
  [
    "\\[taskcluster:error\\]",
    "[Ee]rror:", // also fatal error: and ValueError:
    "\\b(?:ERROR|FATAL|CRITICAL|FAIL|FAILED|FAILURE)\\b", // also TEST-UNEXPECTED-FAIL
    "\\bTraceback \\(most recent call last\\)",
    "\\bpanic: |\\bpanicked at ",
    "\\bSegmentation fault\\b",
  ].join("|"),
);
const REMARK = "[taskcluster "; // the worker's own, which may quote anything

/** Whether a line tells of an error; docs/viewer.md has the list. */
export function tellsOfError(line) {
  return SIGN.test(line) && !line.startsWith(REMARK);
}

export class Problems {
  #finder;
  #jump;
  #parts;

  /** @param {Record<string, HTMLElement>} parts `count`, `next`, `previous` */
  constructor(store, jump, parts) {
    this.#finder = new Finder(store, SIGN, () => this.#tell(), REMARK);
    [this.#jump, this.#parts] = [jump, parts];
    parts.next.addEventListener("click", () => this.next());
    parts.previous.addEventListener("click", () => this.previous());
  }

  /** The log has grown. */
  update() {
    this.#finder.update();
  }

  next() {
    this.#go(this.#finder.from(this.#jump.next));
  }

  previous() {
    this.#go(this.#finder.before(this.#jump.line));
  }

  #go(line) {
    if (line !== null) this.#jump.to(line);
  }

  #tell() {
    const { count, next, previous } = this.#parts;
    const found = this.#finder.lines.length;
    count.textContent = `${found.toLocaleString("en")} ${found === 1 ? "error" : "errors"}`;
    next.disabled = previous.disabled = found === 0;
  }
}
