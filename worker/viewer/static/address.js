/** The lines that the page's address names: chosen by clicks, by a field, or by whoever has made the link. */

import { fragment, parseLines } from "./links.js";

export class Address {
  #list;
  #rows;
  #jump;
  #wanted = null; // lines to be shown as soon as they are there

  /**
   * @param {import("./jump.js").Jump} jump leads to lines
   * @param {HTMLElement} layer holds the rows, whose numbers are links
   * @param {HTMLFormElement} form with the field `line`
   */
  constructor(list, rows, jump, layer, form) {
    [this.#list, this.#rows, this.#jump] = [list, rows, jump];
    addEventListener("hashchange", () => this.read());
    layer.addEventListener("click", (event) => this.#clicked(event));
    form.addEventListener("submit", (event) => this.#entered(event, form.elements.line));
    form.elements.line.addEventListener("input", () => form.elements.line.setCustomValidity(""));
  }

  /** Show the lines that the address names now. */
  read() {
    this.#rows.selected = this.#wanted = parseLines(location.hash);
    this.#list.refresh();
    this.update();
  }

  /** The log has grown. */
  update() {
    if (this.#wanted === null || this.#list.count <= this.#wanted.first) return;
    this.#jump.to(this.#wanted.first);
    this.#wanted = null;
  }

  #clicked(event) {
    const link = event.target.closest("a");
    if (!link) return;
    event.preventDefault();
    const [lines, selected] = [parseLines(link.hash), parseLines(location.hash)];
    if (event.shiftKey && selected) {
      lines.last = Math.max(lines.first, selected.last);
      lines.first = Math.min(lines.first, selected.first);
    }
    this.#go(lines);
  }

  #entered(event, field) {
    event.preventDefault();
    const lines = parseLines(field.value);
    field.setCustomValidity(lines ? "" : "A line's number, as 12, or lines, as 10-20");
    if (field.reportValidity()) this.#go(lines);
  }

  #go(lines) {
    if (location.hash === fragment(lines)) this.read();
    location.hash = fragment(lines);
    this.#jump.focus();
  }
}
