/** The form: reads its fields into a state, and writes a state into its fields. */

import { byId, h } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { radios } from "./fields.js";
import { CHOICES } from "./state.js";

/** @typedef {import("./state.js").State} State */

const LABELS = {
  baseline: { default: "default", matched: "matched", alone: "alone", anchored: "anchored", other: "other" },
  stream: { free: "free", sequential: "sequential" },
  form: { bias: "bias", weights: "weights" },
  precision: { model: "model", float64: "float64" },
};
const TEXTS = ["context", "query", "other"];

/** @param {string} name */
const text = (name) => /** @type {HTMLInputElement} */ (byId(name));

/** Update the explanations of the choices, and mark the chosen example. */
function explain() {
  const chosen = read();
  for (const name of Object.keys(LABELS)) byId(`${name}-note`).textContent = CHOICES[name][chosen[name]];
  byId("other-field").hidden = chosen.baseline !== "other";
  [...byId("examples").children].forEach((button, i) => {
    const { context, query } = EXAMPLES[i];
    button.setAttribute("aria-pressed", String(context === chosen.context && query === chosen.query));
  });
}

/**
 * The fields of the form as a state.
 * @returns {Pick<State, "context" | "query" | "other" | "baseline" | "stream" | "form" | "precision">}
 */
export function read() {
  const form = new FormData(/** @type {HTMLFormElement} */ (byId("question")));
  const state = {};
  for (const name of Object.keys(LABELS)) state[name] = form.get(name);
  for (const name of TEXTS) state[name] = text(name).value;
  return /** @type {any} */ (state);
}

/**
 * Write a state into the form.
 * @param {State} state
 */
export function write(state) {
  for (const name of TEXTS) text(name).value = state[name];
  for (const name of Object.keys(LABELS)) {
    /** @type {HTMLInputElement} */ (byId(`${name}-${state[name]}`)).checked = true;
  }
  explain();
}

/**
 * Build the form's choices and add its event listeners.
 * @param {{changed: () => void, run: () => void, example: (question: {context: string, query: string}) => void}} hear
 */
export function listen({ changed, run, example }) {
  for (const [name, labels] of Object.entries(LABELS)) byId(name).append(...radios(name, labels));
  byId("examples").append(
    ...EXAMPLES.map(({ name, context, query }) =>
      h("button", { type: "button", on: { click: () => example({ context, query }) } }, name),
    ),
  );
  const form = byId("question");
  form.addEventListener("input", () => {
    explain();
    changed();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  form.addEventListener("keydown", (event) => {
    const runs = event.target.id === "query" && !event.shiftKey;
    if (event.key === "Enter" && (runs || event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      run();
    }
  });
}
