/** The update of every layer at every query position, and its inputs at the chosen position. */

import { inParts } from "../fitting.js";
import { formula } from "../numbers.js";
import { pair, relativeTo } from "../questions.js";
import { drawUpdates } from "./updates_chart.js";

/** The table's columns, and the field of an update and of one of its weights that each shows. */
const COLUMNS = {
  layer: ({ layer }) => layer,
  position: ({ position }) => position,
  norm: ({ norm }) => norm,
  weight: (_, { name }) => name,
  weight_norm: (_, { norm }) => norm,
  relative_norm: (_, { relative_norm }) => relative_norm,
  spectral_share: (_, { spectral_share }) => spectral_share,
  below_noise: ({ below_noise }) => below_noise,
  mlp_in_cosine: ({ mlp_in }) => mlp_in.cosine,
  mlp_in_norm_difference: ({ mlp_in }) => mlp_in.norm_difference,
  mlp_in_norm_with_context: ({ mlp_in }) => mlp_in.norm_with_context,
  mlp_in_norm_baseline: ({ mlp_in }) => mlp_in.norm_baseline,
  resid_mid_norm_difference: ({ resid_mid }) => resid_mid.norm_difference,
  resid_mid_norm_with_context: ({ resid_mid }) => resid_mid.norm_with_context,
  resid_mid_norm_baseline: ({ resid_mid }) => resid_mid.norm_baseline,
};

/** @type {import("../figure.js").View} */
export const updates = {
  id: "updates",
  title: "The update, layer by layer",
  path: "v1/weight-updates",
  request: (state) => ({ ...pair(state), positions: "all", include: ["next_tokens"] }),
  smaller(body, times, { query }) {
    const positions = body.positions === "all" ? query.map((_, i) => i) : body.positions;
    if (positions.length === 1) return null;
    return inParts(positions, times).map((part) => ({ ...body, positions: part }));
  },
  merge(answers) {
    const all = answers.flatMap(({ updates }) => updates);
    return {
      ...answers[0],
      // The sort is stable, so positions stay in ascending order.
      updates: all.sort((one, other) => one.layer - other.layer),
      next_tokens: answers.flatMap(({ next_tokens }) => next_tokens),
    };
  },
  splitNote: (bodies) =>
    `All positions in one request exceed its limit, so the page sent ${bodies.length} requests with some positions each.`,
  caption: (answer) =>
    formula(
      "Colour: ‖ΔW‖_F / ‖W‖_F of each MLP’s first weights together, for each token of the query. Bars, at the chosen " +
        "token: the cosine between mlp_in with the context and in the baseline, and ‖Δh‖ / ‖h‖ of the residual " +
        "stream after attention" +
        (answer.updates[0].weights.length > 1 ? ", and the ratios of gate and up separately" : "") +
        `; ${relativeTo(answer)}.`,
    ),
  draw: (answer, state, width, act) => drawUpdates(answer, state, width, act),
  table: ({ updates: list }) => ({
    columns: Object.keys(COLUMNS),
    rows: list.flatMap((update) =>
      update.weights.map((weight) => Object.values(COLUMNS).map((read) => read(update, weight))),
    ),
  }),
};
