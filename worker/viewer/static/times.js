/** When lines were written, as the worker tells while the log is live. */

export class Times {
  #offsets = [];
  #moments = [];

  /** Bytes of which all is known. */
  covered = 0;

  /** Whether anything is known. */
  get known() {
    return this.covered > 0;
  }

  /** Learn all of the first `size` bytes of the log at `live`; where nothing can be had what is known stays. */
  async refresh(live, size) {
    if (live === null || size <= this.covered) return;
    try {
      const last = this.#offsets[this.#offsets.length - 1] ?? -1;
      const url = new URL("times", live);
      url.searchParams.set("offset", Math.max(0, last));
      const response = await fetch(url, { cache: "no-store", credentials: "omit" });
      if (response.ok) this.#add((await response.json()).times, size);
    } catch {
      // The log is live no longer, or not reachable now: its reader is told so by the source.
    }
  }

  #add(times, size) {
    for (const [offset, moment] of times) {
      if (offset <= (this.#offsets[this.#offsets.length - 1] ?? -1)) continue;
      this.#offsets.push(offset);
      this.#moments.push(moment);
    }
    this.covered = Math.max(this.covered, size);
  }

  /** When the byte at `offset` was written, or null. */
  at(offset) {
    let [low, high] = [0, this.#offsets.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#offsets[middle] <= offset) low = middle + 1;
      else high = middle;
    }
    return low && offset < this.covered ? new Date(this.#moments[low - 1]) : null;
  }
}
