/** The question as it is asked, and as it stands in the address behind `#`. */

import { EXAMPLES } from "./examples.js";

/**
 * @typedef {object} State
 * @property {string} context
 * @property {string} query
 * @property {"matched" | "alone" | "anchored" | "other"} baseline
 * @property {string} other the other context, where the baseline is one
 * @property {"free" | "sequential"} stream
 * @property {"model" | "float64"} precision of the equivalence check
 * @property {number | null} position index into the query; null is the last
 * @property {number | null} layer that is looked at; null is the last
 * @property {"tokens" | "sentences"} steps of the trajectory
 */

/** What may be chosen, and what each choice means. */
export const CHOICES = {
  baseline: {
    matched: "The query at its place, no context: the difference holds content alone.",
    alone: "The query from position 0: content, position and first-token artefact together.",
    anchored: "<|endoftext|> first in both runs: content, without the first-token artefact.",
    other: "Another context before the query: the one against the other.",
  },
  stream: {
    free: "Layers compared one by one.",
    sequential: "Patches that compose.",
  },
  precision: {
    model: "The model’s own type.",
    float64: "Both runs in double.",
  },
  steps: { tokens: "each token", sentences: "each sentence" },
};

/** @returns {State} The seed's question. */
export function initial() {
  const { context, query } = EXAMPLES[0];
  return {
    context,
    query,
    baseline: "matched",
    other: "",
    stream: "free",
    precision: "model",
    position: null,
    layer: null,
    steps: "tokens",
  };
}

/**
 * Read a fragment; what is missing or is no choice is as in the seed's question.
 * @param {string} fragment with or without `#`
 * @returns {State}
 */
export function fromFragment(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = initial();
  for (const name of ["context", "query", "other"]) {
    if (given.has(name)) state[name] = given.get(name).replace(/\r\n?/g, "\n");
  }
  for (const name of Object.keys(CHOICES)) {
    if (Object.hasOwn(CHOICES[name], given.get(name) ?? "")) state[name] = given.get(name);
  }
  for (const name of ["position", "layer"]) {
    if (/^\d{1,6}$/.test(given.get(name) ?? "")) state[name] = Number(given.get(name));
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

/** The part of a state that a person types and chooses in the form. */
export const ASKED = ["context", "query", "baseline", "other", "stream", "precision"];

/**
 * Whether two states ask the same, whatever is looked at.
 * @param {State} one
 * @param {State} two
 */
export function sameQuestion(one, two) {
  return ASKED.every(
    (name) =>
      one[name] === two[name] || (name === "other" && one.baseline !== "other" && two.baseline !== "other"),
  );
}
