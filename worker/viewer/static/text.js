/** From bytes to what can be read of a line. */

import { strip } from "./ansi.js";

/** Bytes of a line that are shown; a browser would take seconds to lay out a line of megabytes. */
export const SHOWN = 8192;
/** Bytes that are decoded at once to be searched; of a longer line the first ones are. */
const SLICE = 256 * 1024;

const RETURN = 13;
const decoder = new TextDecoder("utf-8", { ignoreBOM: true });

/** The text of a line, escape sequences included, and how many bytes of it are left out. */
export function shown(store, line) {
  let [from, to] = [store.start(line), store.stop(line)];
  // Of what a progress bar has overwritten the last counts. A line without end is not looked through.
  const tail = store.bytes(Math.max(from, to - SLICE), to);
  const [begin, end] = left(tail, RETURN);
  [from, to] = [begin ? to - tail.length + begin : from, to - tail.length + end];
  const cut = Math.max(0, to - from - SHOWN);
  // The last character may have been cut apart: a stream's decoder keeps its beginning to itself.
  const text = cut ? new TextDecoder().decode(store.bytes(from, from + SHOWN), { stream: true }) : null;
  return { text: text ?? decoder.decode(store.bytes(from, to)), cut };
}

/** Complete lines from `line` on as plain text, one below the other, and which one comes next. */
export function slice(store, line) {
  const from = store.start(line);
  let next = line + 1;
  while (next < store.complete && store.start(next + 1) - from <= SLICE) next++;
  const to = Math.min(store.stop(next - 1), from + SLICE);
  return { text: strip(withoutOverwritten(decoder.decode(store.bytes(from, to)))), next };
}

function withoutOverwritten(text) {
  if (!text.includes("\r")) return text;
  const lines = text.split("\n").map((line) => {
    const [begin, end] = left(line, "\r");
    return line.slice(begin, end);
  });
  return lines.join("\n");
}

/** Where in a line, bytes or text, what is not overwritten begins and ends; it may end in several of `mark`. */
function left(line, mark) {
  let end = line.length;
  while (end && line[end - 1] === mark) end--;
  return [end && line.lastIndexOf(mark, end - 1) + 1, end];
}
