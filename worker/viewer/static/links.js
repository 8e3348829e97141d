/** Links to lines: `#L12`, or `#L10-L20`; people count lines from 1, the program from 0. Pure. */

/** The first and last line of a link's fragment or of what somebody typed, from 0; null where it is none. */
export function parseLines(text) {
  const match = /^#?L?(\d{1,12})(?:-L?(\d{1,12}))?$/i.exec(text.trim());
  if (!match) return null;
  const [one, other] = [Number(match[1]), Number(match[2] ?? match[1])];
  const [first, last] = [Math.min(one, other), Math.max(one, other)];
  return first > 0 ? { first: first - 1, last: last - 1 } : null;
}

/** The fragment that leads to lines. */
export function fragment({ first, last }) {
  return first === last ? `#L${first + 1}` : `#L${first + 1}-L${last + 1}`;
}
