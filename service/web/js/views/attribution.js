/** The contribution of each sentence of the context: as colours of the text, and layer by layer. */

import { h } from "../dom.js";
import { inParts, sentences } from "../fitting.js";
import { percent, plain } from "../numbers.js";
import { heat, inkOn } from "../palette.js";
import { deviation, read, relativeTo } from "../questions.js";
import { spelled } from "../tokens_text.js";
import { drawShares, shareRange } from "./attribution_chart.js";

const NUMBERS = ["share", "only_this_span", "leave_one_out", "cosine_to_total"];

/**
 * The entry of the layer shown.
 * @param {any} answer
 * @param {import("../state.js").State} state
 */
function chosen({ layers }, state) {
  return layers.find(({ layer }) => layer === state.layer) ?? layers.at(-1);
}

/**
 * The context in the colours of one layer's shares, followed by the query.
 * @param {any} answer
 * @param {any} entry of the layer
 */
function reading(answer, entry) {
  const { context, query } = answer.tokens;
  const [, most] = shareRange(answer);
  const pieces = entry.spans.map(({ span, share, only_this_span, leave_one_out }) => {
    const title = `share ${share}, ‖ΔW‖ of this sentence alone ${only_this_span}, ‖ΔW‖ that it adds to the rest ${leave_one_out}`;
    const said = h("span", { class: "share" }, percent(share));
    const piece = h("span", { class: "piece", title }, spelled(context.slice(...span)), said);
    piece.classList.toggle("anti", share < 0);
    if (share !== null) {
      piece.style.backgroundColor = heat(share / most);
      piece.style.color = inkOn(heat(share / most));
    }
    return piece;
  });
  const anchor = context.slice(0, entry.spans[0].span[0]);
  return h(
    "p",
    { class: "reading", tabindex: 0, role: "region", "aria-label": "Text read, coloured by share" },
    ...anchor.map(({ text }) => h("span", { class: "chip special" }, text)),
    ...pieces,
    h("span", { class: "query" }, spelled(query)),
  );
}

/** @type {import("../figure.js").View} */
export const attribution = {
  id: "attribution",
  title: "Which part of the context",
  path: "v1/attributions",
  request: (state) => read(state),
  smaller(body, times, tokens) {
    const spans = body.spans ?? sentences(tokens);
    if (spans.length === 1) return null;
    return inParts(spans, times).map((part) => ({ ...body, spans: part }));
  },
  merge([first, ...others]) {
    const layers = first.layers.map((layer, i) => ({
      ...layer,
      // Each part reversed its own sentences only.
      order_effect: undefined,
      spans: [layer, ...others.map(({ layers }) => layers[i])].flatMap(({ spans }) => spans),
    }));
    return { ...first, layers };
  },
  splitNote: (bodies) =>
    `All sentences in one request exceed its limit, so the page sent ${bodies.length} requests with some sentences each. ` +
    "The order effect needs all sentences in one request, so it is left out.",
  caption: (answer, state) => [
    "The share of a sentence is ⟨ΔW of the sentence alone, ΔW⟩ / ‖ΔW‖², with its position kept. Sentences act on each ",
    `other through attention, so shares need not add up to 100 %; ${relativeTo(answer)}.`,
    deviation(state, answer),
  ],
  controls(answer, state, act) {
    const { layer: now, order_effect } = chosen(answer, state);
    const options = answer.layers.map(({ layer }) =>
      h("option", { value: layer, selected: layer === now }, layer),
    );
    const on = { change: (event) => act.look(Number(event.target.value)) };
    const effect = ` order effect ‖ΔW − ΔW reversed‖ / ‖ΔW‖: ${plain(order_effect)}`;
    return h(
      "span",
      {},
      h("label", { for: "attribution-layer" }, "Text coloured for layer "),
      h("select", { id: "attribution-layer", on }, ...options),
      order_effect !== undefined && h("span", { class: "badge" }, effect),
    );
  },
  draw(answer, state, width, act) {
    const entry = chosen(answer, state);
    const { svg, marks } = drawShares(answer, entry.layer, width, act);
    const text = reading(answer, entry);
    text.style.maxWidth = `${width}px`;
    return { element: h("div", { class: "attribution" }, text, svg), svg, marks };
  },
  table(answer) {
    const text = ({ span }) => spelled(answer.tokens.context.slice(...span));
    const whole = ["norm", "order_effect"].filter((name) => answer.layers[0][name] !== undefined);
    return {
      columns: ["layer", "position", "from", "to", "text", ...NUMBERS, ...whole],
      rows: answer.layers.flatMap((entry) =>
        entry.spans.map((part) => [
          ...[entry.layer, entry.position, ...part.span, text(part)],
          ...[...NUMBERS.map((name) => part[name]), ...whole.map((name) => entry[name])],
        ]),
      ),
    };
  },
};
