/**
 * Shows a part of a list that is too long for a page: only the rows in sight and some around them are elements.
 *
 * The rows lie in normal flow inside of a layer, so that their heights may differ. The spacer is as high as all rows
 * would be, or as high as browsers permit; then, as with rows that are wrapped, the scroll bar tells where one is by
 * share of lines, while scrolling moves the rows by pixels as anywhere else.
 */

// Pixels. Firefox cannot lay out more than 17.8 million, Chromium and Safari 33.5 million.
const TALLEST = 15_000_000;
const MARGIN = 400; // pixels of rows beyond what is in sight
const REST = 300; // milliseconds without scrolling after which it has ended, in browsers that do not tell

export class VirtualList {
  #scroller;
  #spacer;
  #layer;
  #make;
  #rowHeight;
  #wrapped = false;
  #first = 0; // the rows that are there: from this line
  #rows = []; // on
  #top = 0; // pixels from the spacer's to the first row's upper edge
  #height = 0; // of the spacer
  #timer = 0;
  #lastScroll = 0;
  #widest = 0;
  #following = false;
  #followed;
  #downwards = false; // somebody is on the way down, perhaps to the end
  #lastUp = -REST; // when it last moved up, other than by #moveTo
  #ended = false;

  /** How many lines there are. */
  count = 0;

  /**
   * @param {HTMLElement} scroller shows a part of
   * @param {HTMLElement} spacer which holds
   * @param {HTMLElement} layer the rows
   * @param {(line: number) => HTMLElement} make a row
   * @param {(following: boolean) => void} followed called when that begins or ends
   */
  constructor(scroller, spacer, layer, make, followed) {
    [this.#scroller, this.#spacer, this.#layer, this.#make] = [scroller, spacer, layer, make];
    this.#followed = followed;
    this.#rowHeight = parseFloat(getComputedStyle(layer).lineHeight);
    scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    if ("onscrollend" in scroller) scroller.addEventListener("scrollend", () => this.#rested());
    scroller.addEventListener("keydown", (event) => this.#key(event));
    scroller.addEventListener("wheel", ({ deltaY }) => this.#head(deltaY > 0, deltaY < 0), { passive: true });
    scroller.addEventListener("touchmove", () => this.#head(true, true), { passive: true });
    // The scroll bar.
    scroller.addEventListener("pointerdown", ({ target }) => target === scroller && this.#head(true, true));
    document.addEventListener("selectionchange", () => this.#selected());
    new ResizeObserver(() => this.#resized()).observe(scroller);
  }

  /** Whether the last line stays in sight while the list grows. */
  get following() {
    return this.#following;
  }

  /** Bring the last line into sight, and keep it there unless the list has ended; or let it go. */
  follow(wanted) {
    const following = wanted && !this.#ended;
    if (following !== this.#following) this.#followed(following);
    this.#following = following;
    this.#downwards = false;
    if (wanted) this.#toEnd();
  }

  /** The list grows no more. */
  end() {
    this.#ended = true;
    this.follow(false);
  }

  /**
   * Somebody is about to scroll. What they do tells it before the view has moved: a log that grows fast would hold them
   * at the end.
   */
  #head(down, up) {
    if (up && this.#scroll > 0) this.follow(false);
    this.#downwards = down;
  }

  /** Who selects lines reads them. Where the rows of a selection went, its ends lie in the layer itself. */
  #selected() {
    const { isCollapsed, anchorNode, focusNode } = getSelection();
    const inRow = (node) => node !== this.#layer && this.#layer.contains(node);
    if (!isCollapsed && inRow(anchorNode) && inRow(focusNode)) this.follow(false);
  }

  /** The ends are reached in one step, however far they are. */
  #key(event) {
    if (event.target !== this.#scroller || event.altKey || event.metaKey) return;
    const key = event.shiftKey ? event.key === " " && "PageUp" : event.key;
    this.#head(["PageDown", "ArrowDown", " "].includes(key), ["Home", "PageUp", "ArrowUp"].includes(key));
    if (key === "Home") this.#restart(0, 0);
    else if (key === "End") this.follow(true);
    else return;
    event.preventDefault();
  }

  get #atEnd() {
    return this.#scroll + this.#view >= this.#height - 2;
  }

  /** The first and the last line that can be seen. */
  get visible() {
    const { top, bottom } = this.#scroller.getBoundingClientRect();
    const seen = this.#rows.findIndex((row) => row.getBoundingClientRect().bottom > top + 1);
    const hidden = this.#rows.findIndex((row) => row.getBoundingClientRect().top >= bottom - 1);
    const last = hidden === -1 ? this.#rows.length : hidden;
    return { first: this.#first + Math.max(0, seen), last: this.#first + Math.max(0, last - 1) };
  }

  get #view() {
    return this.#scroller.clientHeight;
  }

  get #scroll() {
    return this.#scroller.scrollTop;
  }

  /** Pixels of the scroll bar for a line that is not there. */
  get #share() {
    return Math.min(this.#rowHeight, TALLEST / Math.max(1, this.count));
  }

  /** There are `count` lines now, and those from `changed` on are not what they were. */
  grow(count, changed) {
    this.count = count;
    this.refresh(changed);
    if (this.#following) this.#toEnd();
    else this.#update();
  }

  /** Make rows anew, from a line on. */
  refresh(from = 0) {
    for (let i = Math.max(0, from - this.#first); i < this.#rows.length; i++) {
      const row = this.#make(this.#first + i);
      this.#rows[i].replaceWith(row);
      this.#rows[i] = row;
    }
  }

  /** Let long lines go on below, or not. */
  wrap(wrapped) {
    const { first } = this.visible;
    this.#wrapped = wrapped;
    this.#scroller.classList.toggle("wrapped", wrapped);
    this.#resized();
    if (!this.#following) this.#restart(first, 0);
  }

  /** Bring a line into sight, if it is not; then a third of the view is above it. Following ends. */
  reveal(line) {
    this.follow(false);
    const { first, last } = this.visible;
    if (line <= first || line >= last) this.#restart(line, this.#view / 3);
  }

  #toEnd() {
    const missing = this.count - this.#first - this.#rows.length;
    if (missing * this.#rowHeight > this.#view || !this.#rows.length) this.#restart(this.count, this.#view);
    let left = 10;
    do {
      this.#moveTo(this.#height);
      this.#update();
      // What is below may be higher than was thought before it was there.
    } while (!this.#atEnd && --left);
  }

  #resized() {
    this.#widest = 0;
    this.#layer.style.minWidth = "";
    if (this.#following) this.#restart(this.count, this.#view);
    else this.#update();
  }

  /** Begin anew with a line that is `below` pixels below the view's upper edge. */
  #restart(line, below) {
    this.#clear(line);
    this.#top = this.#first * this.#share;
    this.#setHeight();
    this.#moveTo(this.#top - below);
    this.#update();
  }

  #clear(first) {
    this.#layer.replaceChildren();
    this.#rows = [];
    this.#first = Math.min(first, this.count);
  }

  #scrolled() {
    const moved = this.#scroll - this.#lastScroll;
    this.#update();
    this.#lastScroll = this.#scroll;
    if (this.#following && !this.#atEnd) {
      // Screen readers, searches of the browser and the middle button scroll up without a sign of it before. What began
      // to go up before the end was wished for is on its way for a while, however.
      if (moved < 0 && performance.now() - this.#lastUp > REST) this.follow(false);
      else this.#toEnd();
    }
    if (moved < 0) this.#lastUp = performance.now();
    if (!this.#following && this.#atEnd && this.#downwards && moved > 0) this.follow(true);
    if ("onscrollend" in this.#scroller) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#rested(), REST);
  }

  /** Begin anew where the scroll bar was moved to: near an end from there, so that it is met, and else by share. */
  #jump() {
    const near = 3 * this.#view;
    if (this.#scroll < near) {
      this.#clear(0);
      this.#top = 0;
    } else if (this.#height - this.#view - this.#scroll < near) {
      this.#clear(this.count);
      this.#top = this.#height;
    } else {
      this.#clear(Math.floor(this.#scroll / this.#share));
      this.#top = this.#first * this.#share;
    }
  }

  #rested() {
    // To move the view ends what moves it, as a key that was pressed a moment ago. Small differences are not seen.
    if (Math.abs(this.#first * this.#share - this.#top) > 4 * this.#view) this.#settle();
  }

  /** Let the scroll bar tell by share where one is. */
  #settle() {
    this.#shift(this.#first * this.#share - this.#top);
  }

  /** Have rows for all that is in sight, and not many more. */
  #update() {
    const end = this.#top + this.#measure();
    if (this.#scroll > end + MARGIN || this.#scroll + this.#view < this.#top - MARGIN) this.#jump();
    const [from, to] = [this.#scroll - MARGIN, this.#scroll + this.#view + MARGIN];
    let bottom = this.#top + this.#measure();
    while (bottom < to && this.#first + this.#rows.length < this.count) {
      bottom += this.#append(Math.ceil((to - bottom) / this.#rowHeight));
    }
    while (this.#top > from && this.#first > 0) {
      this.#top -= this.#prepend(Math.ceil((this.#top - from) / this.#rowHeight));
    }
    this.#trim(from - MARGIN, to + MARGIN, bottom);
    if (this.#top < 0 || (this.#first === 0 && this.#top !== 0)) this.#settle();
    else this.#place();
  }

  #append(most) {
    const line = this.#first + this.#rows.length;
    const rows = this.#many(line, Math.min(most, this.count - line));
    this.#layer.append(...rows);
    this.#rows.push(...rows);
    return this.#measure(rows);
  }

  #prepend(most) {
    const count = Math.min(most, this.#first);
    this.#first -= count;
    const rows = this.#many(this.#first, count);
    this.#layer.prepend(...rows);
    this.#rows.unshift(...rows);
    return this.#measure(rows);
  }

  #many(line, count) {
    return Array.from({ length: count }, (_, i) => this.#make(line + i));
  }

  #trim(from, to, bottom) {
    let [above, below] = [0, this.#rows.length];
    const height = (row) => (this.#wrapped ? row.offsetHeight : this.#rowHeight);
    for (let h; above < below && this.#top + (h = height(this.#rows[above])) < from; above++) this.#top += h;
    for (let h; below > above && bottom - (h = height(this.#rows[below - 1])) > to; below--) bottom -= h;
    for (const row of [...this.#rows.slice(0, above), ...this.#rows.slice(below)]) row.remove();
    this.#rows = this.#rows.slice(above, below);
    this.#first += above;
  }

  /** Pixels that consecutive rows take up. */
  #measure(rows = this.#rows) {
    if (!this.#wrapped || !rows.length) return rows.length * this.#rowHeight;
    return rows[rows.length - 1].getBoundingClientRect().bottom - rows[0].getBoundingClientRect().top;
  }

  /** Move rows and view together: nothing that is seen moves. */
  #shift(distance) {
    this.#top += distance;
    this.#place();
    if (Math.abs(distance) >= 1) this.#moveTo(this.#scroll + distance);
  }

  #moveTo(scroll) {
    this.#scroller.scrollTop = scroll;
    this.#lastScroll = this.#scroll;
  }

  #place() {
    this.#layer.style.top = `${this.#top}px`;
    this.#setHeight();
    // What was once wide stays so: a scroll bar that changes by itself cannot be used.
    if (this.#wrapped || this.#layer.offsetWidth <= this.#widest) return;
    this.#widest = this.#layer.offsetWidth;
    this.#layer.style.minWidth = `${this.#widest}px`;
  }

  #setHeight() {
    const missing = this.count - this.#first - this.#rows.length;
    this.#height = this.#top + this.#measure() + missing * this.#share;
    this.#spacer.style.height = `${this.#height}px`;
  }
}
