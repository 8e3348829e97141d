/** Leads to a line: shows it, marks it as the one where one is, and knows where one is. */

export class Jump {
  #list;
  #rows;
  #scroller;
  #told;
  #draw;

  /**
   * @param {HTMLElement} told says to screen readers which line it is: the keyboard stays where it is
   * @param {() => void} draw brings all lines into the list that there are
   */
  constructor(list, rows, scroller, told, draw) {
    [this.#list, this.#rows, this.#scroller, this.#told, this.#draw] = [list, rows, scroller, told, draw];
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
    this.#told.textContent = `Line ${line + 1}: ${this.#rows.plain(line)}`;
  }

  /** Give the log the keyboard. */
  focus() {
    this.#scroller.focus({ preventScroll: true });
  }
}
