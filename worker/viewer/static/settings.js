/** What somebody has chosen, kept by the browser where it permits that. */

const KEY = "log-viewer";

export function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return { wrap: kept?.wrap === true, keys: kept?.keys !== false };
  } catch {
    return { wrap: false, keys: true }; // no storage, or not ours
  }
}

export function save(settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // No storage: it is for this page alone then.
  }
}
