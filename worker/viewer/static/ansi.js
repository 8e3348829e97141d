/**
 * Terminal escape sequences (ECMA-48): colours and styles are read, all others and other control characters dropped.
 * Pure: text in, text with styles out.
 */

/** How text looks. A colour is null, a number of the palette of 256, or `#rrggbb`. */
export const PLAIN = Object.freeze({
  fg: null, bg: null, bold: false, dim: false, italic: false, underline: false, strike: false, inverse: false,
});

// Control sequences; strings such as titles and links, with their terminator; two-character sequences. None of them
// goes beyond its line, so one that never ends hides nothing but its own beginning.
const ESCAPE = /\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)|[ -/]*[0-~])/g;
const STYLE = /^\x1b\[([\d;:]*)m$/;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f-\x9f]/g;

/** `text` without escape sequences and control characters; tabs and newlines stay. */
export function strip(text) {
  return text.replace(ESCAPE, "").replace(CONTROL, "");
}

/** The parts of a line that look alike, from the style that it begins in: `[{text, style}]`, none of them empty. */
export function parse(line, style = PLAIN) {
  const spans = [];
  let at = 0;
  const add = (to) => {
    const text = line.slice(at, to).replace(CONTROL, "");
    const last = spans[spans.length - 1];
    if (last?.style === style) last.text += text;
    else if (text) spans.push({ text, style });
  };
  for (const escape of line.matchAll(ESCAPE)) {
    add(escape.index);
    at = escape.index + escape[0].length;
    const parameters = STYLE.exec(escape[0]);
    if (parameters) style = changed(style, parameters[1]);
  }
  add(line.length);
  return spans;
}

const SWITCHES = {
  1: { bold: true }, 2: { dim: true }, 3: { italic: true }, 4: { underline: true }, 7: { inverse: true },
  9: { strike: true }, 21: { underline: true }, 22: { bold: false, dim: false }, 23: { italic: false },
  24: { underline: false }, 27: { inverse: false }, 29: { strike: false }, 39: { fg: null }, 49: { bg: null },
};

/** The style after `ESC [ parameters m`; what is unknown in it changes nothing. The same style is the same object. */
export function changed(style, parameters) {
  const items = parameters.split(";");
  let now = style;
  for (let i = 0; i < items.length; i++) {
    const [code, ...details] = items[i].split(":").map(Number);
    if (code === 38 || code === 48) {
      // 38;5;N and 38;2;R;G;B, or with colons, where a colour space may come before R.
      const [kind, ...rest] = details.length ? details : items.slice(i + 1, i + 5).map(Number);
      if (!details.length) i += { 5: 2, 2: 4 }[kind] ?? 1;
      const value = colour(kind, kind === 2 && details.length > 4 ? rest.slice(1) : rest);
      if (value !== null) now = { ...now, [code === 38 ? "fg" : "bg"]: value };
    } else if (code === 0) {
      now = PLAIN;
    } else if (code === 4 && details[0] === 0) {
      now = { ...now, underline: false };
    } else if (SWITCHES[code]) {
      now = { ...now, ...SWITCHES[code] };
    } else {
      now = basic(now, code);
    }
  }
  return same(now, style) ? style : now;
}

function basic(style, code) {
  const number = code % 10 + (code >= 90 ? 8 : 0);
  if (number % 8 !== code % 10) return style;
  if ((code >= 30 && code < 38) || (code >= 90 && code < 98)) return { ...style, fg: number };
  if ((code >= 40 && code < 48) || (code >= 100 && code < 108)) return { ...style, bg: number };
  return style;
}

function colour(kind, values) {
  const isByte = (value) => Number.isInteger(value) && value >= 0 && value < 256;
  if (kind === 5 && isByte(values[0])) return values[0];
  if (kind !== 2 || values.length < 3 || !values.slice(0, 3).every(isByte)) return null;
  return hex(values.slice(0, 3));
}

/** A colour of the palette of 256 beyond the 16 named ones, as `#rrggbb`. */
export function paletteColour(number) {
  if (number >= 232) return hex([0, 1, 2].map(() => 8 + 10 * (number - 232)));
  const cube = number - 16;
  return hex([36, 6, 1].map((unit) => Math.floor(cube / unit) % 6).map((step) => (step ? 55 + 40 * step : 0)));
}

function hex(values) {
  return `#${values.map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

function same(one, other) {
  return Object.keys(PLAIN).every((key) => one[key] === other[key]);
}
