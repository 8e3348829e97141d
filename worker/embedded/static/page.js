/** Keeps a page's part that changes as it is in the queue; the page is whole without it. */

const WAIT = 20; // seconds for which the queue may hold back its answer, until something has changed
const PAUSE = 1000; // milliseconds between two answers, and after none
const LIMIT = 30000; // milliseconds after which there will be no answer

const live = document.getElementById("live");
const connection = document.getElementById("connection");
let hidden = new AbortController();

document.addEventListener("visibilitychange", () => {
  if (document.hidden) hidden.abort();
});

async function watch(version) {
  for (;;) {
    await visible();
    const answer = await ask(version);
    // Hidden, nobody needs an answer, and a browser has few connections.
    if (answer !== null || !document.hidden) connection.textContent = warning(answer);
    if (answer?.status === 200 && !chosen()) {
      replace(answer.html);
      version = answer.version;
    }
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
}

/** The whole answer, or null where there was none while the page could be seen. */
async function ask(version) {
  hidden = new AbortController();
  try {
    const response = await fetch(location.href, {
      headers: { "If-None-Match": version, "Prefer": `wait=${WAIT}` },
      cache: "no-store",
      signal: AbortSignal.any([hidden.signal, AbortSignal.timeout(LIMIT)]),
    });
    return { status: response.status, html: await response.text(), version: response.headers.get("ETag") };
  } catch {
    return null;
  }
}

/** What is wrong with an answer: empty where what is shown is new, or has not changed. */
function warning(answer) {
  if (answer === null) return "The queue does not answer; this is how it was.";
  return [200, 304].includes(answer.status) ? "" : `The queue answers with status ${answer.status}; this is how it was.`;
}

/** Returns when the page can be seen. */
async function visible() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

/** Whether somebody has chosen text, to copy it. */
function chosen() {
  const selection = getSelection();
  return !selection.isCollapsed && live.contains(selection.anchorNode);
}

function replace(html) {
  const changed = new DOMParser().parseFromString(html, "text/html").getElementById("live");
  for (const { id } of live.querySelectorAll("details[open]")) changed.querySelector(`#${id}`)?.setAttribute("open", "");
  const place = [...live.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
  const href = document.activeElement?.href;
  live.replaceChildren(...changed.childNodes);
  if (place === -1) return;
  // What had the focus is there again, or something else in its place.
  const all = [...live.querySelectorAll(FOCUSABLE)];
  (all.find((each) => href && each.href === href) ?? all[Math.min(place, all.length - 1)])?.focus();
}

const FOCUSABLE = "a, button, summary, pre";

if (document.body.dataset.version) watch(document.body.dataset.version);
