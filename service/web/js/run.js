/** A question to the service: all views at once, each filled as its answer comes; a newer one drops it. */

import { ask, Problem } from "./api.js";

/** @typedef {import("./figure.js").Figure} Figure */
/** @typedef {import("./state.js").State} State */

/**
 * @typedef {object} Progress
 * @property {number} done answers and problems so far
 * @property {number} all
 * @property {boolean} loading whether the service is still loading its model
 * @property {boolean} ended
 * @property {Problem[]} problems
 * @property {number} seconds since the question
 */

/**
 * A fault of the page itself, as a problem; the console has where it happened.
 * @param {Error} error
 */
function fault(error) {
  console.error(error);
  return new Problem({ title: "Not drawn", detail: `A fault of this page: ${error.message}`, code: "page" });
}

/** Asks one question at a time. */
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

  /** Drop the requests that are under way. */
  cancel() {
    this.controller?.abort();
    this.controller = null;
    for (const figure of this.figures) {
      if (figure.element.hasAttribute("aria-busy")) figure.dropped();
    }
  }

  /**
   * Ask. A figure that shows the answer to the very same body keeps it.
   * @param {State} state
   * @param {{afresh?: boolean}} [how] `afresh` asks for every answer again
   * @returns {Promise<void>} when every answer is there, or a newer question has been asked
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
    const one = async (figure) => {
      const { view } = figure;
      const asked = view.request(state, answerOf);
      if (!(asked instanceof Promise) && !afresh && figure.shows === JSON.stringify(asked)) {
        figure.show(asked, figure.answer, state);
        return figure.answer;
      }
      figure.busy();
      const body = await asked;
      const answer = await ask(view.path, body, controller.signal, waiting);
      if (current()) figure.show(body, answer, state);
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
