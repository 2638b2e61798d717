/** The state of the question, and its form in the fragment of the address. */

import { EXAMPLES } from "./examples.js";

/**
 * @typedef {object} State
 * @property {string} context
 * @property {string} query
 * @property {"default" | "matched" | "alone" | "anchored" | "other"} baseline
 * @property {string} other the other context, used if the baseline is `other`
 * @property {"free" | "sequential"} stream
 * @property {"bias" | "weights"} form the carrier of Δh in the equivalence check
 * @property {"model" | "float64"} precision of the equivalence check
 * @property {number | null} position index into the query; null is the last
 * @property {number | null} layer that is shown; null is the last
 * @property {"tokens" | "sentences"} steps of the trajectory
 * @property {"new" | "all"} recompute the rows that the patches of a generated text act on
 * @property {number} max_tokens of a generated text
 * @property {number} temperature of a generated text
 * @property {number} seed of a generated text
 * @property {"static" | "token"} kind of adapter
 * @property {string} queries that a static adapter is fitted to, one per line
 * @property {string} held_out queries that measure it, one per line; if empty, a third of `queries`
 * @property {"output_ridge" | "mean_output"} recipe of a static adapter
 * @property {string} name of the adapter
 */

/** The choices of each field, with their explanations. */
export const CHOICES = {
  baseline: {
    default: "The default of the model: matched for absolute positions, anchored for relative ones.",
    matched: "The query at the same position, without the context. The difference is the content alone.",
    alone:
      "The query from position 0. The difference is content, position and first-token artefact together.",
    anchored:
      "The model’s anchor token first in both runs. The difference is content, without the first-token artefact.",
    other: "Another context before the query. The difference is one context against the other.",
  },
  stream: {
    free: "Each layer against the unpatched run.",
    sequential: "Each layer with all layers below patched; the patches compose.",
  },
  form: {
    bias: "Δh is a bias at the block’s output.",
    weights: "The MLP’s second weight carries Δh, with the gain of a norm after it.",
  },
  precision: {
    model: "The dtype of the loaded model.",
    float64: "Both runs in float64.",
  },
  steps: { tokens: "each token", sentences: "each sentence" },
  recompute: {
    new: "Only the newest token’s row runs, under its own update. This is fast, but no single set of weights gives the text.",
    all: "For each token, the whole text runs again under one set of weights.",
  },
  kind: {
    static:
      "Fitted to many queries and measured on others. It reproduces what the context does to such queries approximately.",
    token: "Exact for this context and this query at the position shown. It is not made for any other query.",
  },
  recipe: {
    output_ridge: "A ridge regression on each MLP’s second weight, layer by layer.",
    mean_output: "The mean difference of each block’s output, as a bias: a steering vector per layer.",
  },
};
/** The fields that are texts. */
const TEXTS = ["context", "query", "other", "queries", "held_out", "name"];
/** The fields that are numbers, with the numbers that they may be. */
export const NUMBERS = {
  position: { min: 0, max: 999999, step: 1 },
  layer: { min: 0, max: 999999, step: 1 },
  max_tokens: { min: 1, max: 64, step: 1 },
  temperature: { min: 0, max: 100, step: 0.1 },
  seed: { min: 0, max: 2 ** 53 - 1, step: 1 },
};

/**
 * Whether a number may be the value of a field.
 * @param {keyof typeof NUMBERS} name
 * @param {number} value
 */
function isAllowed(name, value) {
  const { min, max, step } = NUMBERS[name];
  return value >= min && value <= max && (step < 1 || Number.isInteger(value));
}

/** @returns {State} The seed experiment's question. */
export function initial() {
  const { context, query } = EXAMPLES[0];
  return {
    context,
    query,
    baseline: "default",
    other: "",
    stream: "free",
    form: "bias",
    precision: "model",
    position: null,
    layer: null,
    steps: "tokens",
    recompute: "new",
    max_tokens: 8,
    temperature: 0,
    seed: 0,
    kind: "static",
    queries: "",
    held_out: "",
    recipe: "output_ridge",
    name: "",
  };
}

/**
 * Read a fragment. A missing field or an invalid choice gets its value from the seed experiment's question.
 * @param {string} fragment with or without `#`
 * @returns {State}
 */
export function fromFragment(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = initial();
  for (const name of TEXTS) {
    if (given.has(name)) state[name] = given.get(name).replace(/\r\n?/g, "\n");
  }
  for (const name of Object.keys(CHOICES)) {
    if (Object.hasOwn(CHOICES[name], given.get(name) ?? "")) state[name] = given.get(name);
  }
  for (const name of Object.keys(NUMBERS)) {
    const text = given.get(name) ?? "";
    if (/^[\d.]+$/.test(text) && isAllowed(name, Number(text))) state[name] = Number(text);
  }
  return state;
}

/**
 * Write a fragment that `fromFragment` reads as the same state.
 * @param {State} state
 * @returns {string} without `#`
 */
export function toFragment(state) {
  const standard = initial();
  const kept = Object.entries(state).filter(
    ([name, value]) => name === "context" || name === "query" || value !== standard[name],
  );
  return new URLSearchParams(kept.map(([name, value]) => [name, String(value)])).toString();
}

/** The fields of a state that the form edits. */
export const ASKED = ["context", "query", "baseline", "other", "stream", "form", "precision"];

/**
 * Whether two states ask the same question, regardless of the layer and position shown.
 * @param {State} one
 * @param {State} two
 */
export function sameQuestion(one, two) {
  return ASKED.every(
    (name) =>
      one[name] === two[name] || (name === "other" && one.baseline !== "other" && two.baseline !== "other"),
  );
}
