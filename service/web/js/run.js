/** Runs a question: sends the requests of all views at once and fills each when its answer arrives. A newer question cancels it. */

import { ask, Problem } from "./api.js";
import { askFitting } from "./fitting.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {import("./state.js").State} State */

/**
 * @typedef {object} Progress
 * @property {number} done answers and problems so far
 * @property {number} all
 * @property {boolean} loading whether the service is still loading its model
 * @property {boolean} ended
 * @property {Problem[]} problems
 * @property {number} seconds since the question was sent
 */

/**
 * A problem for a fault of this page. The console shows the stack.
 * @param {Error} error
 */
function fault(error) {
  console.error(error);
  return new Problem({ title: "Not drawn", detail: `A fault of this page: ${error.message}`, code: "page" });
}

/** Runs one question at a time. */
export class Run {
  /**
   * @param {Figure[]} figures
   * @param {(progress: Progress) => void} tell
   */
  constructor(figures, tell) {
    this.figures = figures;
    this.tell = tell;
    this.controller = /** @type {AbortController | null} */ (null);
  }

  /** Cancel the requests in flight. */
  cancel() {
    this.controller?.abort();
    this.controller = null;
    for (const figure of this.figures) {
      if (figure.element.hasAttribute("aria-busy")) figure.dropped();
    }
  }

  /**
   * Run a question. A figure that already shows the answer to the same body keeps it.
   * @param {State} state
   * @param {{afresh?: boolean}} [how] `afresh` sends every request again
   * @returns {Promise<void>} resolves when every answer has arrived, or a newer question has started
   */
  async ask(state, { afresh = false } = {}) {
    this.controller?.abort();
    const controller = (this.controller = new AbortController());
    const current = () => this.controller === controller;
    const progress = {
      done: 0,
      all: this.figures.length,
      loading: false,
      ended: false,
      problems: [],
      seconds: 0,
    };
    const start = performance.now();
    const told = () => {
      progress.seconds = (performance.now() - start) / 1000;
      this.tell({ ...progress });
    };
    /** @type {Record<string, Promise<any>>} */
    const answers = {};
    const answerOf = (id) => answers[id];
    const waiting = () => {
      if (!current() || progress.loading) return;
      progress.loading = true;
      told();
    };
    const send = (path, body) => ask(path, body, controller.signal, waiting);
    const one = async (figure) => {
      const { view } = figure;
      const asked = view.request(state, answerOf);
      if (asked instanceof Promise) figure.busy();
      const body = await asked;
      if (!afresh && current() && figure.shows === JSON.stringify(body)) {
        figure.show(body, figure.answer, state);
        return figure.answer;
      }
      if (current()) figure.busy();
      const told = (done, all) => current() && figure.progress(done, all);
      const { answer, bodies } = await askFitting(view, body, send, told, controller.signal);
      if (current()) figure.show(body, answer, state, bodies);
      return answer;
    };
    told();
    await Promise.all(
      this.figures.map(async (figure) => {
        answers[figure.view.id] = one(figure);
        try {
          await answers[figure.view.id];
        } catch (error) {
          if (!current()) return;
          const problem = error instanceof Problem ? error : fault(error);
          figure.fail(problem);
          progress.problems.push(problem);
        }
        if (!current()) return;
        progress.loading = false;
        progress.done += 1;
        progress.ended = progress.done === progress.all;
        told();
      }),
    );
  }
}
