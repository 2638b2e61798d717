/** The next token in three runs: with the context, with every block patched and no context, and with neither. */

import { NARROW, chart } from "../charts.js";
import { clipped, s } from "../dom.js";
import { percent, plain, raised } from "../numbers.js";
import { placed, relativeTo, withoutControls } from "../questions.js";
import { quoted, visible } from "../tokens_text.js";

const RUNS = [
  ["with_context", "with context", "bar"],
  ["patched", "patched, no context", "bar accent"],
  ["without_context", "without context", "bar"],
];
/** The runs' names for screen readers. They avoid “context” and “query”, which name the form's fields. */
const SPOKEN = ["after reading", "patched instead", "with neither"];

/** @type {import("../figure.js").View} */
export const nextTokens = {
  id: "next-tokens",
  title: "What comes next",
  path: "v1/equivalence-checks",
  request: (state) => ({
    ...placed(state),
    stream: "sequential",
    scope: "model",
    form: state.form,
    precision: state.precision,
    controls: true,
  }),
  ...withoutControls,
  caption(answer) {
    const [logits] = answer.logits;
    return [
      `Probability of the next token after ${quoted(answer.tokens.query[logits.position])}, with every block patched at once. KL from the run with context: patched `,
      ...raised(logits.kl_divergence),
      " nats, without context ",
      ...raised(logits.unpatched_kl_divergence),
      " nats. Logits’ relative error ",
      ...raised(logits.relative_error),
      `: ${logits.verdict}; ${relativeTo(answer)}.`,
    ];
  },
  draw(answer, _state, width) {
    const [{ top_tokens, position }] = answer.logits;
    const narrow = width < NARROW;
    const [gap, count, height] = [narrow ? 14 : 36, narrow ? 5 : 6, 33];
    const column = (width - 2 * gap) / 3;
    const marks = [];
    const groups = RUNS.map(([name, title, kind], col) => {
      const x = col * (column + gap);
      const group = s(
        "g",
        {},
        s(
          "text",
          { x, y: 13, class: name === "patched" ? "strong accent" : "strong", "font-size": narrow ? 12 : 14 },
          narrow ? title.split(",")[0] : title,
        ),
      );
      top_tokens[name].slice(0, count).forEach((token, row) => {
        const y = 30 + row * height;
        const said = percent(token.probability);
        const node = s("rect", { x, y, width: column, height: height - 5, fill: "transparent" });
        group.append(
          s("rect", { x, y: y + 20, width: column, height: 4, rx: 2, class: "track" }),
          s("rect", {
            x,
            y: y + 20,
            width: Math.max(1, column * token.probability),
            height: 4,
            rx: 2,
            class: kind,
          }),
          s("text", { x, y: y + 12, class: "token" }, clipped(visible(token), column - 52, "mono", 12)),
          s(
            "text",
            {
              x: x + column,
              y: y + 12,
              "text-anchor": "end",
              "font-size": 12.5,
              class: row ? "soft" : "strong",
            },
            said,
          ),
          node,
        );
        marks.push({
          node,
          title: `${title}: ${quoted(token)}`,
          rows: [
            ["probability", token.probability],
            ["id", token.id],
            ["query position", position],
          ],
          row,
          col,
        });
      });
      return group;
    });
    const label = RUNS.map(
      ([name], i) =>
        `${SPOKEN[i]}: ${top_tokens[name]
          .slice(0, 3)
          .map((token) => `${quoted(token)} ${plain(token.probability)}`)
          .join(", ")}.`,
    ).join(" ");
    const svg = chart(width, 30 + count * height, label, ...groups);
    return { element: svg, svg, marks };
  },
  table: ({ logits }) => ({
    columns: ["run", "rank", "id", "text", "probability"],
    rows: logits.flatMap(({ top_tokens }) =>
      RUNS.flatMap(([name]) =>
        top_tokens[name].map(({ id, text, probability }, i) => [name, i + 1, id, text, probability]),
      ),
    ),
  }),
};
