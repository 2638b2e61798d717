/** A figure: heading, caption, plot, and its actions (numbers, curl, files). */

import { curl } from "./api.js";
import { h } from "./dom.js";
import { commandOf, numbersOf } from "./drawers.js";
import { csv, save, savePng, saveSvg } from "./exports.js";
import { alertOf } from "./problem.js";
import { tells } from "./tooltip.js";

/** @typedef {import("./state.js").State} State */

/**
 * @typedef {object} Drawn
 * @property {Element} element
 * @property {SVGSVGElement} [svg] the chart, if the figure can export one
 * @property {import("./tooltip.js").Mark[]} [marks]
 */

/**
 * @typedef {object} Table
 * @property {string[]} columns
 * @property {unknown[][]} rows
 */

/**
 * @typedef {object} View
 * @property {string} id
 * @property {string} title
 * @property {string} path of its resource
 * @property {(state: State, answerOf: (id: string) => Promise<any>) => object | Promise<object>} request its body, or a list of
 *   bodies that are sent at once
 * @property {HTMLFormElement} [fields] inputs of this view alone, which stay while it is computed and if it fails
 * @property {(answer: any, state: State) => Array<Node | string>} caption says what the numbers are relative to
 * @property {(answer: any, state: State, width: number, act: Act) => Drawn} draw
 * @property {(answer: any, state: State) => Table} table every number, exactly
 * @property {(answer: any, state: State, act: Act) => Element | null} [controls]
 * @property {(answer: any) => Element} [heading] replaces the title
 * @property {(body: any, times: number, tokens: import("./fitting.js").Read) => object[] | null} [smaller] requests in place of
 *   one that exceeds a limit so many times; null if nothing smaller can be asked
 * @property {(answers: any[]) => any} [merge] one answer of the answers to several such requests
 * @property {(bodies: any[]) => string} [splitNote] says what the smaller requests change
 */

/**
 * @typedef {object} Act
 * @property {(position: number) => void} place show another position of the query
 * @property {(layer: number) => void} look show another layer
 * @property {(fields: Partial<State>) => void} set change other fields of the state and ask again
 */

/** One figure on the page. */
export class Figure {
  /**
   * @param {View} view
   * @param {Act} act
   */
  constructor(view, act) {
    this.view = view;
    this.act = act;
    /** The request body, as JSON, of the answer shown; empty if none is shown. */
    this.shows = "";
    /** The requests whose answer is shown. @type {object[]} */
    this.bodies = [];
    this.answer = null;
    this.drawn = /** @type {Drawn | null} */ (null);
    this.badge = h("span", { class: "badge" });
    this.title = h("h2", { id: `${view.id}-title` }, view.title);
    this.caption = h("p", { class: "caption" });
    this.controls = h("div", { class: "controls", hidden: true });
    this.plot = h("div", { class: "plot" });
    this.drawers = {
      numbers: h("div", {
        class: "drawer",
        hidden: true,
        tabindex: 0,
        role: "region",
        "aria-label": `${view.id}: numbers`,
        id: `${view.id}-numbers`,
      }),
      curl: h("div", {
        class: "drawer",
        hidden: true,
        tabindex: 0,
        role: "region",
        "aria-label": `${view.id}: curl`,
        id: `${view.id}-curl`,
      }),
    };
    this.actions = h("div", { class: "actions", hidden: true });
    this.element = h(
      "section",
      { class: "figure", id: view.id, "data-state": "empty" },
      h("header", {}, this.title, this.badge),
      view.fields,
      this.caption,
      this.controls,
      this.plot,
      this.actions,
      ...Object.values(this.drawers),
    );
    this.#makeActions();
    this.width = 0;
    new ResizeObserver(() => {
      if (Math.abs(this.plot.clientWidth - this.width) > 1) this.redraw();
    }).observe(this.plot);
  }

  #makeActions() {
    const act = (label, what, attributes = {}) =>
      h("button", { type: "button", class: "plain", on: { click: what }, ...attributes }, label);
    const drawer = (label, name) => {
      const button = act(
        label,
        () => {
          const open = this.drawers[name].hidden;
          this.drawers[name].hidden = !open;
          button.setAttribute("aria-expanded", String(open));
          if (open) this.#fillDrawers();
        },
        { "aria-expanded": "false", "aria-controls": `${this.view.id}-${name}` },
      );
      return button;
    };
    const name = `deltaw-${this.view.id}`;
    this.files = [
      act("SVG", () => saveSvg(this.drawn.svg, name, this.view.title), {
        "aria-label": `${this.view.id}: save as SVG`,
      }),
      act("PNG", () => savePng(this.drawn.svg, name, this.view.title), {
        "aria-label": `${this.view.id}: save as PNG`,
      }),
    ];
    const data = act("CSV", () => save(new Blob([csv(this.#table())], { type: "text/csv" }), `${name}.csv`), {
      "aria-label": `${this.view.id}: save the data as CSV`,
    });
    this.actions.append(
      drawer("Numbers", "numbers"),
      drawer("curl", "curl"),
      h("span", { class: "gap" }),
      ...this.files,
      data,
    );
  }

  /** @returns {Table} */
  #table() {
    return this.view.table(this.answer, this.state);
  }

  #fillDrawers() {
    const { numbers, curl: command } = this.drawers;
    if (!numbers.hidden) numbers.replaceChildren(...numbersOf(this.#table()));
    if (!command.hidden)
      command.replaceChildren(
        ...commandOf(this.bodies.map((body) => curl(this.view.path, body)).join("\n\n")),
      );
  }

  /** Mark the figure as computing, and dim the previous answer. */
  busy() {
    this.element.dataset.state = this.answer ? "busy" : "empty";
    if (!this.answer) this.plot.replaceChildren();
    this.element.setAttribute("aria-busy", "true");
    this.badge.textContent = "computing … ";
  }

  /**
   * Show how many parts of a split request are answered.
   * @param {number} done
   * @param {number} all
   */
  progress(done, all) {
    this.badge.textContent = `computing … ${done} of ${all} parts `;
  }

  /** Keep the previous answer, because the request was cancelled. */
  dropped() {
    this.element.removeAttribute("aria-busy");
    this.badge.textContent = "";
    if (this.answer) {
      this.shows = "";
      this.element.dataset.state = "busy";
      this.badge.textContent = "not computed ";
    }
  }

  /**
   * Show an answer.
   * @param {object} body of the request
   * @param {any} answer
   * @param {State} state
   * @param {object[]} [bodies] the smaller requests that were answered in its place
   */
  show(body, answer, state, bodies = this.bodies) {
    this.shows = JSON.stringify(body);
    this.bodies = bodies;
    this.answer = answer;
    this.state = state;
    this.element.dataset.state = "done";
    this.element.removeAttribute("aria-busy");
    this.badge.textContent = "";
    this.actions.hidden = false;
    if (this.view.heading) this.title.replaceChildren(this.view.heading(answer));
    const split = JSON.stringify(bodies) !== JSON.stringify([body].flat());
    const note = split ? ` ${this.view.splitNote(bodies)}` : "";
    this.caption.replaceChildren(...this.view.caption(answer, state), note);
    this.redraw();
  }

  /**
   * Show a problem in place of an answer.
   * @param {import("./api.js").Problem} problem
   */
  fail(problem) {
    this.shows = "";
    this.answer = null;
    this.drawn = null;
    this.element.dataset.state = "failed";
    this.element.removeAttribute("aria-busy");
    this.badge.textContent = "";
    this.title.replaceChildren(this.view.title);
    this.caption.replaceChildren();
    this.actions.hidden =
      this.controls.hidden =
      this.drawers.numbers.hidden =
      this.drawers.curl.hidden =
        true;
    for (const button of this.actions.querySelectorAll("[aria-expanded]"))
      button.setAttribute("aria-expanded", "false");
    this.plot.replaceChildren(h("div", { class: "alert" }, ...alertOf(problem)));
  }

  /**
   * Redraw after a change of width, theme or layer.
   * @param {State} [state]
   */
  redraw(state = this.state) {
    this.width = this.plot.clientWidth;
    if (!this.answer || !this.width) return;
    this.state = state;
    const focused = this.controls.contains(document.activeElement) && document.activeElement.id;
    const control = this.view.controls?.(this.answer, state, this.act);
    this.controls.replaceChildren(...(control ? [control] : []));
    this.controls.hidden = !control;
    if (focused) document.getElementById(focused)?.focus();
    const scrolled = this.plot.scrollLeft;
    const held = this.plot.contains(document.activeElement);
    this.drawn = this.view.draw(this.answer, state, this.width, this.act);
    this.plot.replaceChildren(this.drawn.element);
    this.plot.scrollLeft = scrolled;
    if (held) this.plot.querySelector("[aria-pressed=true], [tabindex='0']")?.focus();
    const wide = this.plot.scrollWidth > this.plot.clientWidth + 1;
    for (const [name, value] of [
      ["tabindex", "0"],
      ["role", "region"],
      ["aria-label", `${this.view.id}: chart, scrolls sideways`],
    ]) {
      if (wide) this.plot.setAttribute(name, value);
      else this.plot.removeAttribute(name);
    }
    for (const button of this.files) button.hidden = !this.drawn.svg;
    if (this.drawn.svg) tells(this.drawn.svg, this.drawn.marks ?? []);
    this.#fillDrawers();
  }
}
