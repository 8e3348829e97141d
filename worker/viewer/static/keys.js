/** Shortcuts of a single key, which can be turned off: speech input, for one, would set them off by chance. */

const TYPING = "input, textarea, select, dialog";

/** Call what `shortcuts` has for a key, unless somebody types or `enabled` says no. */
export function listen(shortcuts, enabled) {
  document.addEventListener("keydown", (event) => {
    const action = Object.hasOwn(shortcuts, event.key) ? shortcuts[event.key] : undefined;
    const modified = event.ctrlKey || event.altKey || event.metaKey;
    if (!action || modified || event.defaultPrevented || event.target.closest?.(TYPING) || !enabled()) return;
    event.preventDefault();
    action();
  });
}
