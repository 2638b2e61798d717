/** Request bodies from a state, with the fields of the API. */

/** @typedef {import("./state.js").State} State */

/** The baselines that trajectories and attributions support. */
const READ = ["default", "matched", "anchored"];

/**
 * The state's baseline as a field of a request. Null is the default of the model.
 * @param {State} state
 */
export function baseline(state) {
  if (state.baseline === "default") return null;
  return state.baseline === "other" ? { context: state.other } : state.baseline;
}

/**
 * The position shown, as a field of a request.
 * @param {State} state
 */
export function at(state) {
  return state.position === null ? "last" : [state.position];
}

/**
 * The fields that every comparison of two runs has.
 * @param {State} state
 */
export function pair(state) {
  return { context: state.context, query: state.query, baseline: baseline(state), stream: state.stream };
}

/**
 * The same fields, at the position shown.
 * @param {State} state
 */
export function placed(state) {
  return { ...pair(state), positions: at(state) };
}

/** The parts of a check's view that take a request that exceeds a limit: it is sent without controls. */
export const withoutControls = {
  smaller: (body) => (body.controls ? [{ ...body, controls: false }] : null),
  splitNote: () => "The check with its controls exceeds the limit of one request, so they are left out.",
};

/**
 * The fields of trajectories and attributions, which support only the free stream and the baselines in `READ`.
 * @param {State} state
 */
export function read(state) {
  return {
    context: state.context,
    query: state.query,
    baseline: READ.includes(state.baseline) ? baseline(state) : "matched",
    stream: "free",
    positions: at(state),
  };
}

/**
 * A phrase that says what an answer's numbers are relative to.
 * @param {{baseline: unknown, stream: string, model: {dtype: string}, precision?: string, form?: string, position_shift: number}} answer
 * @returns {string}
 */
export function relativeTo(answer) {
  const name = typeof answer.baseline === "string" ? answer.baseline : "the other context";
  const shift = answer.position_shift ? `, position shift ${answer.position_shift}` : "";
  const form = answer.form === "weights" ? ", Δh in the weights" : "";
  return `baseline ${name}, stream ${answer.stream}, ${answer.precision ?? answer.model.dtype}${shift}${form}`;
}

/**
 * A sentence that names the baseline or stream of a view if it is not the chosen one; else empty.
 * @param {State} state
 * @param {{baseline: unknown, stream: string}} answer
 * @returns {string}
 */
export function deviation(state, answer) {
  const other = READ.includes(state.baseline) ? "" : `baseline ${answer.baseline}`;
  const stream = state.stream === answer.stream ? "" : `the ${answer.stream} stream`;
  const both = [other, stream].filter(Boolean).join(" and ");
  return both && ` This view exists with ${both}.`;
}
