/**
 * Brings the bytes of a log, each once and in their order, across lost connections.
 *
 * A log has up to two places: `live`, which serves it while it is written and from any offset, and `artifact`, which
 * leads to the live place while there is one and afterwards to the stored log, which is read from its beginning.
 */

const FIRST_PAUSE = 500; // milliseconds
const LONGEST_PAUSE = 10000;
const BUSY = 12; // milliseconds of work before others get their turn

// How an attempt ends.
const ENDED = "ended";
const LOST = "lost"; // to be tried again
const MISSING = "missing"; // nothing is there, yet or any more

// Close codes of the live log's websocket.
const CLOSED_ENDED = 1000;
const CLOSED_DETACHED = 1001;
const CLOSED_ABNORMALLY = 1006;
const CLOSED_TOO_SLOW = 4008;

/** There is nothing more to come, for a reason that the reader should know. */
class CutOff extends Error {}

/** The network failed. */
class Lost extends Error {}

export class Source {
  #live;
  #artifact;
  #until;
  #store;
  #took;
  #tell;
  #hurry = () => {};

  /**
   * @param {{live: string | null, artifact: string | null, until: number}} places URLs, at least one; after `until`, in
   *   milliseconds since 1970, no artifact appears (NaN where that is not known)
   * @param {import("./store.js").Store} store takes the bytes; how many it has says where to go on
   * @param {() => void} took called when it has got some
   * @param {(state: string, detail: string) => void} tell called when the state changes: `connecting`, `waiting`,
   *   `live`, `loading`, `reconnecting`, `ended` or `cut off`
   */
  constructor({ live, artifact, until }, store, took, tell) {
    this.#live = live;
    this.#artifact = artifact;
    this.#until = until;
    this.#store = store;
    this.#took = took;
    let told = "";
    this.#tell = (state, detail) => {
      if (told !== (told = state + detail)) tell(state, detail);
    };
  }

  /** Where the log is served live, as far as that is known. */
  get live() {
    return this.#live;
  }

  /** Bring all of the log; returns at its end, or when no more can be had. */
  async run() {
    // A network that came back is better than one that seems to be still there.
    addEventListener("online", () => this.#hurry());
    this.#tell("connecting", "");
    for (let pause = FIRST_PAUSE; ; pause = Math.min(2 * pause, LONGEST_PAUSE)) {
      const before = this.#store.size;
      let end;
      try {
        end = await (this.#live === null ? this.#fromArtifact() : this.#fromLive());
      } catch (error) {
        if (error instanceof CutOff) return this.#tell("cut off", error.message);
        if (!(error instanceof Lost)) throw error;
        end = LOST;
      }
      if (end === ENDED) return this.#tell("ended", "");
      if (this.#store.size > before) pause = FIRST_PAUSE;
      this.#tell(end === MISSING && this.#store.size === 0 ? "waiting" : "reconnecting", "");
      await this.#rest(pause * (0.75 + Math.random() / 2));
    }
  }

  async #fromLive() {
    const url = new URL(this.#live);
    url.searchParams.set("offset", this.#store.size);
    const code = await this.#byWebSocket(url);
    if (code === CLOSED_ENDED) return ENDED;
    if (code === null) {
      // Not opened: a proxy may not let websockets through, or nothing is there.
      const response = await this.#fetch(url).catch((error) => this.#leave(error));
      if (response.ok) return this.#takeLive(response);
      if (this.#artifact === null && response.status >= 500) return LOST;
    } else if (code !== CLOSED_DETACHED && code !== CLOSED_TOO_SLOW) {
      return LOST;
    }
    if (this.#artifact === null) throw new CutOff("the worker serves this log no longer");
    return this.#askQueue();
  }

  #askQueue() {
    this.#live = null;
    return MISSING;
  }

  /** What could not be reached live is looked for by the artifact, where there is one. */
  #leave(error) {
    if (this.#artifact !== null) this.#live = null;
    throw error;
  }

  async #fromArtifact() {
    const response = await this.#fetch(this.#artifact);
    if (response.ok && response.headers.get("X-Streaming") === "true") {
      await response.body.cancel();
      this.#live = response.url;
      return this.#fromLive();
    }
    if (response.ok) {
      if (await this.#take(response, this.#store.size, "loading")) {
        throw new CutOff("the stored log is shorter than what was shown");
      }
      return ENDED;
    }
    await response.body?.cancel();
    if (response.status === 404 && Date.now() > this.#until) throw new CutOff("this run has no log");
    if (response.status === 404) return MISSING;
    if (response.status >= 500) return LOST;
    throw new CutOff(`the queue answers with status ${response.status}`);
  }

  /** The close code, or null where it could not be opened. */
  async #byWebSocket(url) {
    const target = new URL(url);
    target.protocol = url.protocol.replace("http", "ws");
    let socket;
    try {
      socket = new WebSocket(target);
    } catch {
      return null; // forbidden, as on a page of https to a log of http
    }
    socket.binaryType = "arraybuffer";
    const closed = await new Promise((resolve) => {
      let opened = false;
      this.#hurry = () => {
        // What still comes is dropped from here on, so that a code which comes with it would not be true.
        socket.onmessage = socket.onclose = null;
        socket.close();
        resolve(CLOSED_ABNORMALLY);
      };
      socket.onopen = () => {
        opened = true;
        this.#tell("live", "");
      };
      socket.onmessage = ({ data }) => {
        if (data instanceof ArrayBuffer) this.#append(new Uint8Array(data));
        if (this.#store.full) socket.close();
      };
      socket.onclose = ({ code }) => resolve(opened ? code : null);
    });
    this.#refuseFull();
    return closed;
  }

  async #fetch(url) {
    const abort = new AbortController();
    this.#hurry = () => abort.abort();
    try {
      return await fetch(url, { signal: abort.signal, cache: "no-store", credentials: "omit" });
    } catch (error) {
      throw new Lost(error.message);
    }
  }

  /**
   * A live answer may end as if it were whole where something on the way has broken, such as a tunnel: the log has ended
   * when an answer brings no more of it; the queue, where it is known, says so better, since a log may just be silent. A
   * server that does not say where its answer begins knows no offsets.
   */
  async #takeLive(response) {
    const before = this.#store.size;
    const missing = await this.#take(response, before - Number(response.headers.get("X-Offset")), "live");
    if (missing || this.#store.size > before) return LOST;
    return this.#artifact === null ? ENDED : this.#askQueue();
  }

  /** Read an answer to its end, but for the `skipped` bytes at its beginning; how many of these were missing. */
  async #take(response, skipped, state) {
    this.#tell(state, "");
    const reader = response.body.getReader();
    for (let since = performance.now(); ; ) {
      const { done, value } = await reader.read().catch((error) => {
        throw new Lost(error.message);
      });
      if (done) break;
      const known = Math.min(skipped, value.length);
      skipped -= known;
      if (known < value.length) this.#append(value.subarray(known));
      if (this.#store.full) await reader.cancel();
      this.#refuseFull();
      if (performance.now() - since < BUSY) continue;
      // What was received already comes without a pause, in which the page could not be used.
      await new Promise((resolve) => setTimeout(resolve));
      since = performance.now();
    }
    return skipped;
  }

  #append(bytes) {
    this.#store.append(bytes);
    this.#took();
  }

  #refuseFull() {
    if (this.#store.full) throw new CutOff("the log is longer than this page can hold");
  }

  #rest(milliseconds) {
    return new Promise((resolve) => {
      this.#hurry = resolve;
      setTimeout(resolve, milliseconds);
    });
  }
}
