/** The elements of lines. What a log says becomes text nodes, never markup. */

import { PLAIN, paletteColour, parse, strip } from "./ansi.js";
import { tellsOfError } from "./problems.js";
import { shown } from "./text.js";

const MOST_SPANS = 200; // in a line; what follows looks like the last one
const NAMED = 16; // colours that the style sheet defines

export class Rows {
  #store;
  #styles;
  #times;

  /** What is found in lines, as a pattern with the flag `g`, or null. */
  pattern = null;
  /** The lines that the page's address names, `{first, last}`, or null. */
  selected = null;
  /** The line that the search or the jump to an error is at, or null. */
  current = null;
  /** Whether there will be no more lines. */
  ended = false;

  constructor(store, styles, times) {
    this.#store = store;
    this.#styles = styles;
    this.#times = times;
  }

  /** What is shown of a line, as plain text. */
  plain(line) {
    return strip(shown(this.#store, line).text);
  }

  /** The element of a line. */
  make(line) {
    const { text, cut } = shown(this.#store, line);
    const spans = few(parse(text, this.#styles.at(line)));
    const plain = spans.map((span) => span.text).join("");
    const matches = this.pattern ? [...plain.matchAll(this.pattern)].filter((match) => match[0]) : [];

    const row = element("div", "row");
    row.role = "listitem";
    row.ariaPosInSet = line + 1;
    row.ariaSetSize = this.ended ? this.#store.lines : -1;
    row.classList.toggle("problem", tellsOfError(plain));
    row.classList.toggle("selected", this.selected !== null && line >= this.selected.first && line <= this.selected.last);
    if (line === this.current) row.ariaCurrent = "true";
    row.append(number(line), time(this.#times.at(this.#store.start(line))));
    const body = element("span", "text");
    body.append(...marked(spans, matches));
    if (cut) body.append(element("span", "cut", ` … ${cut.toLocaleString("en")} bytes more: see the raw log`));
    row.append(body);
    return row;
  }
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function number(line) {
  const link = element("a", "number", String(line + 1));
  link.href = `#L${line + 1}`;
  link.ariaLabel = `Line ${line + 1}`;
  link.tabIndex = -1; // the field for a line's number is the keyboard's way
  return link;
}

function time(moment) {
  const made = element("time", "time", moment ? moment.toISOString().slice(11, 23) : "");
  if (moment) made.dateTime = made.title = moment.toISOString();
  return made;
}

function few(spans) {
  if (spans.length <= MOST_SPANS) return spans;
  const rest = spans.slice(MOST_SPANS - 1);
  return [...spans.slice(0, MOST_SPANS - 1), { text: rest.map((span) => span.text).join(""), style: rest[0].style }];
}

/** The spans' elements, cut where matches begin and end. */
function* marked(spans, matches) {
  let at = 0;
  let next = 0;
  for (const { text, style } of spans) {
    const end = at + text.length;
    while (at < end) {
      while (next < matches.length && matches[next].index + matches[next][0].length <= at) next++;
      const from = matches[next]?.index ?? Infinity;
      const to = from <= at ? from + matches[next][0].length : from;
      const part = text.slice(text.length - (end - at), text.length - (end - Math.min(to, end)));
      // Colours of a match are the page's own: it must be seen on any.
      yield from <= at ? shaped(element("mark", "", part), style) : plainOr(part, style);
      at += part.length;
    }
  }
}

function plainOr(text, style) {
  return style === PLAIN ? document.createTextNode(text) : styled(element("span", "", text), style);
}

function shaped(made, style) {
  for (const name of ["bold", "dim", "italic", "underline", "strike"]) made.classList.toggle(name, style[name]);
  return made;
}

function styled(made, style) {
  shaped(made, style);
  let { fg, bg } = style;
  if (style.inverse) [fg, bg] = [bg ?? "page", fg ?? "text"];
  paint(made, "fg", "color", fg);
  paint(made, "bg", "backgroundColor", bg);
  return made;
}

function paint(made, prefix, property, colour) {
  if (colour === null) return;
  if (typeof colour === "string" && colour.startsWith("#")) made.style[property] = colour;
  else if (colour >= NAMED) made.style[property] = paletteColour(colour);
  else made.classList.add(`${prefix}-${colour}`);
  if (prefix === "bg") made.classList.add("bg");
}
