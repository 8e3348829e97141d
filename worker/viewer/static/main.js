/** Puts the page together: the source fills the store, and what has grown is drawn, searched and told. */

import { Address } from "./address.js";
import { Jump } from "./jump.js";
import { listen } from "./keys.js";
import { VirtualList } from "./list.js";
import { Problems } from "./problems.js";
import { Rows } from "./rows.js";
import { saveAs } from "./save.js";
import { Search } from "./search.js";
import { load, save } from "./settings.js";
import { Source } from "./source.js";
import { Store } from "./store.js";
import { Styles } from "./styles.js";
import { Switch } from "./switches.js";
import { Times } from "./times.js";

// A page that holds much more is ended by the browser.
const MOST_BYTES = 1 << 30;
const MOST_LINES = 10_000_000;
// Milliseconds between two requests for the times of new lines; who does not look at them may want to afterwards.
const TIMES_PAUSE = { seen: 1000, hidden: 10_000 };

const part = (id) => document.getElementById(id);
const parts = (ids) => Object.fromEntries(Object.entries(ids).map(([name, id]) => [name, part(id)]));
const place = (name) => name && new URL(name, location.href).href;
const { live, artifact, until } = document.body.dataset;
const places = { live: place(live) || null, artifact: place(artifact) || null, until: Date.parse(until) };
const settings = load();

const store = new Store(MOST_BYTES, MOST_LINES);
const styles = new Styles(store);
const times = new Times();
const rows = new Rows(store, styles, times);
const list = new VirtualList(part("log"), part("spacer"), part("layer"), (line) => rows.make(line), (following) => {
  follow.show(following);
  if (following) search.stay();
});
const jump = new Jump(list, rows, part("log"), part("told"), draw);
const source = new Source(places, store, took, tell);
const address = new Address(list, rows, jump, part("layer"), part("goto"));
const problems = new Problems(
  store, jump, parts({ count: "problems", next: "next-problem", previous: "previous-problem" }),
);
const search = new Search(
  store,
  jump,
  parts({ form: "search", query: "query", matchCase: "case", found: "found", next: "next", previous: "previous" }),
  (pattern) => {
    rows.pattern = pattern;
    list.refresh();
  },
);

const follow = new Switch(part("follow"), (on) => list.follow(on));
const wrap = new Switch(part("wrap"), (on) => {
  list.wrap(on);
  settings.wrap = on;
  save(settings);
});
const timed = new Switch(part("times"), (on) => {
  part("log").classList.toggle("timed", on);
  list.refresh();
  clearTimeout(resting);
  resting = 0;
  askTimes();
});

let drawn = 0; // lines that were complete when they were drawn
let drawing = false;
let resting = 0;

function took() {
  styles.update();
  problems.update();
  search.update();
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(draw);
}

function draw() {
  drawing = false;
  const known = drawn;
  drawn = store.complete;
  list.grow(store.lines, known);
  if (rows.ended) list.end();
  const size = store.size < 1e6 ? `${(store.size / 1e3).toFixed(1)} kB` : `${(store.size / 1e6).toFixed(1)} MB`;
  part("size").textContent = `${store.lines.toLocaleString("en")} lines, ${size}`;
  address.update();
  askTimes();
}

async function askTimes() {
  if (resting || rows.ended || source.live === null) return;
  const again = () => {
    resting = 0;
    if (times.covered < store.size) askTimes();
  };
  resting = setTimeout(again, timed.pressed ? TIMES_PAUSE.seen : TIMES_PAUSE.hidden);
  await times.refresh(source.live, store.size);
  // Rows that have their time stay as they are: somebody may be reading or selecting them.
  const untimed = part("layer").querySelector(".row:has(time:empty)");
  if (timed.pressed && untimed) list.refresh(untimed.ariaPosInSet - 1);
}

const WORDS = {
  "connecting": "connecting",
  "waiting": "waiting: there is no log yet",
  "live": "live",
  "loading": "loading",
  "reconnecting": "reconnecting",
  "ended": "ended",
  "cut off": "cut off: reload",
};

async function tell(state, detail) {
  const status = part("status");
  status.dataset.state = state;
  status.textContent = WORDS[state] + (detail && ` (${detail})`);
  part("reload").hidden = state !== "cut off";
  if (state !== "ended" && state !== "cut off") return;
  store.end();
  rows.ended = true;
  follow.disable(true);
  took();
  // The last chance: the worker forgets when lines were written.
  await times.refresh(source.live, store.size);
  timed.disable(!times.known);
  list.refresh();
}

part("reload").addEventListener("click", () => location.reload());
part("help").addEventListener("click", () => part("shortcuts").showModal());
part("raw").href = places.artifact ?? places.live;
part("save").addEventListener("click", () => saveAs("live.log", store.file()));
part("keys").checked = settings.keys;
part("keys").addEventListener("change", () => {
  settings.keys = part("keys").checked;
  save(settings);
});
listen(
  {
    "/": () => search.focus(),
    "n": () => search.next(),
    "N": () => search.previous(),
    "e": () => problems.next(),
    "E": () => problems.previous(),
    "f": () => follow.toggle(),
    "w": () => wrap.toggle(),
    "t": () => timed.toggle(),
    "l": () => part("line").select(),
    "?": () => part("shortcuts").showModal(),
  },
  () => settings.keys,
);

if (settings.wrap) wrap.toggle();
if (location.hash) address.read();
else list.follow(true);
jump.focus();
source.run();
