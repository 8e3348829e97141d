/** Leads to a line: shows it, marks it as the one where one is, and knows where one is. */

export class Jump {
  #list;
  #rows;
  #scroller;
  #draw;

  /** @param {() => void} draw brings all lines into the list that there are */
  constructor(list, rows, scroller, draw) {
    [this.#list, this.#rows, this.#scroller, this.#draw] = [list, rows, scroller, draw];
  }

  /** The line where one is, from 0: the one jumped to while it is in sight, else the first one in sight. */
  get line() {
    const { first, last } = this.#list.visible;
    const { current } = this.#rows;
    return current !== null && current >= first && current <= last ? current : first;
  }

  /** The first line that is still ahead. */
  get next() {
    return this.line === this.#rows.current ? this.line + 1 : this.line;
  }

  to(line) {
    if (line >= this.#list.count) this.#draw();
    this.#rows.current = line;
    this.#list.reveal(line);
    this.#list.refresh();
  }

  /** Give the log the keyboard. */
  focus() {
    this.#scroller.focus({ preventScroll: true });
  }
}
