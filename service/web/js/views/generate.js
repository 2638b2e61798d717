/** Three generated texts: with the context, without it under recomputed patches, and with neither, token by token. */

import { h } from "../dom.js";
import { choice, field } from "../fields.js";
import { raised } from "../numbers.js";
import { baseline } from "../questions.js";
import { quoted } from "../tokens_text.js";
import { drawTexts, runsOf } from "./generate_chart.js";

const MEANT = {
  new: " Each token’s row ran under its own update, so no single set of weights gives the text.",
  all: " At each token, one set of weights acted on the whole text.",
};

/** @param {import("./generate_chart.js").RunText} run */
function parting({ parts, tokens }) {
  if (parts === tokens.length) return "writes the same tokens";
  return parts ? `first differs from it at token ${parts + 1}, ${quoted(tokens[parts])}` : "differs from it at the first token";
}

/** @type {import("../figure.js").View} */
export const generate = {
  id: "generate",
  title: "What it writes",
  path: "v1/completions",
  fields: h(
    "form",
    { class: "fields line", "aria-label": "Generated text" },
    choice("recompute", "Patched rows", { new: "the new row", all: "all rows" }),
    h(
      "div",
      { class: "numbers" },
      field("max_tokens", "Tokens"),
      field("temperature", "Temperature"),
      field("seed", "Seed"),
    ),
  ),
  async request(state, answerOf) {
    await null; // wait until every view has sent its request
    const { context, query } = await answerOf("tokens");
    const ids = [...context.tokens, ...query.tokens].map(({ id }) => id);
    const { max_tokens, temperature } = state;
    const how = { max_tokens, temperature, ...(temperature && { seed: state.seed }), logprobs: 0 };
    const patch = { context: state.context, baseline: baseline(state), recompute: state.recompute };
    return [
      { prompt: ids, ...how },
      { prompt: state.query, patch, agreement: true, ...how },
      { prompt: state.query, ...how },
    ];
  },
  caption(answers, state) {
    const [whole, patched, neither] = runsOf(answers);
    const largest = Math.max(0, ...patched.tokens.map(({ kl }) => kl));
    const count = whole.tokens.length;
    return [
      `With the context, the model continues the query by ${count} token${count === 1 ? "" : "s"}, `,
      state.temperature
        ? `sampled at temperature ${state.temperature} with the same random numbers in each run. `
        : "the likeliest each time. ",
      `The run without the context, under recomputed patches, ${parting(patched)}, with a KL of at most `,
      ...raised(largest),
      ` nats. The query alone, without a patch, ${parting(neither)}.`,
      MEANT[answers[1].one_set_of_weights ? "all" : "new"],
    ];
  },
  draw: (answers, _state, width) => drawTexts(answers, width),
  table: (answers) => ({
    columns: ["run", "token", "id", "text", "logprob", "kl", "margin", "same_token", "rows_patched"],
    rows: runsOf(answers).flatMap(({ name, tokens }) =>
      tokens.map(({ id, text, logprob, kl, margin, same_token, rows_patched }, i) => [
        ...[name, i, id, text, logprob],
        ...[kl, margin, same_token, rows_patched],
      ]),
    ),
  }),
};
