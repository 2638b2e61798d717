/** The verdict: each block's error with its patch, beside the controls, which must be far worse. */

import { h } from "../dom.js";
import { raised, times } from "../numbers.js";
import { placed, relativeTo, withoutControls } from "../questions.js";
import { quoted } from "../tokens_text.js";
import { drawChecks } from "./equivalence_chart.js";

const PLAIN = [
  "layer",
  "position",
  "verdict",
  "relative_error",
  "tolerance",
  "unpatched_relative_error",
  "improvement",
  "magnitude",
  "error",
  "max_abs_error",
  "bias_only_relative_error",
];

/**
 * The check whose error is nearest to its tolerance, or farthest above it.
 * @param {any} answer
 */
function worst({ checks }) {
  const share = ({ relative_error, tolerance }) => (relative_error ?? 0) / tolerance;
  return checks.reduce((one, other) => (share(other) > share(one) ? other : one));
}

/**
 * The sentence after the verdict's word.
 * @param {any} answer
 * @returns {Array<Node | string>}
 */
function claim(answer) {
  const check = worst(answer);
  const error = h("b", {}, ...raised(check.relative_error));
  const known = answer.checks.map(({ improvement }) => improvement).filter((value) => value !== null);
  switch (answer.verdict) {
    case "holds":
      return ["error ", error, ", ", h("b", {}, times(Math.min(...known))), " below the unpatched"];
    case "fails":
      return ["error ", error, ` at layer ${check.layer}, above the tolerance `, ...raised(check.tolerance)];
    default:
      return [
        "the context changes too little to tell: unpatched error ",
        ...raised(check.unpatched_relative_error),
        ", tolerance ",
        ...raised(check.tolerance),
      ];
  }
}

/** @type {import("../figure.js").View} */
export const equivalence = {
  id: "equivalence",
  title: "Does the patch replace the context?",
  path: "v1/equivalence-checks",
  request: (state) => ({
    ...placed(state),
    scope: "block",
    form: state.form,
    precision: state.precision,
    controls: true,
  }),
  ...withoutControls,
  heading(answer) {
    const { verdict } = answer;
    const word = verdict[0].toUpperCase() + verdict.slice(1);
    return h(
      "span",
      { class: "verdict" },
      h("span", { class: "word", "data-verdict": verdict }, word),
      " ",
      h("span", { class: "claim" }, ...claim(answer)),
    );
  },
  caption(answer) {
    const { layer, position, bias_only_relative_error } = worst(answer);
    // The MLP of a parallel block does not read the attention output, so there is no such run.
    const exact = bias_only_relative_error === null ? "" : " Δh at attention without ΔW is no control: it is exact too.";
    return [
      "The output of each block with ΔW and Δh, against the block's output with the context: ‖actual − expected‖ / ‖expected‖. ",
      `The worst is layer ${layer}, after ${quoted(answer.tokens.query[position])}; `,
      `${relativeTo(answer)}. The errors of the controls must be far larger.${exact}`,
    ];
  },
  draw: (answer, _state, width) => drawChecks(answer, width),
  table({ checks }) {
    const names = [...new Set(checks.flatMap(({ controls }) => Object.keys(controls ?? {})))];
    const row = (check) => [
      ...PLAIN.map((name) => check[name]),
      ...names.map((name) => check.controls[name] ?? null),
    ];
    return { columns: [...PLAIN, ...names], rows: checks.map(row) };
  },
};
