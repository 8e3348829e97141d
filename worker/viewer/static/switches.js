/** Buttons that are pressed or not. */

export class Switch {
  #button;
  #changed;

  /** @param {(pressed: boolean) => void} changed called when somebody has pressed it */
  constructor(button, changed) {
    [this.#button, this.#changed] = [button, changed];
    button.addEventListener("click", () => this.toggle());
  }

  get pressed() {
    return this.#button.ariaPressed === "true";
  }

  /** How it looks; nobody is told. */
  show(pressed) {
    this.#button.ariaPressed = String(pressed);
  }

  /** As if somebody had pressed it, unless it is disabled. */
  toggle() {
    if (this.#button.disabled) return;
    this.show(!this.pressed);
    this.#changed(this.pressed);
  }

  disable(disabled) {
    this.#button.disabled = disabled;
  }
}
