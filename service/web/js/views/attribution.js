/** What each sentence of the context contributes: coloured into the text, and layer by layer. */

import { NARROW, chart, colourKey, heatGrid, layerLabels, rowHeight } from "../charts.js";
import { clipped, h, s, widthOf } from "../dom.js";
import { percent, plain } from "../numbers.js";
import { heat, inkOn } from "../palette.js";
import { deviation, read, relativeTo } from "../questions.js";
import { spelled } from "../tokens_text.js";

/** @param {any} answer @param {{span: [number, number]}} part */
function text(answer, { span }) {
  return spelled(answer.tokens.context.slice(...span));
}

/**
 * The context in the colours of one layer's shares.
 * @param {any} answer
 * @param {any} entry of the layer
 * @param {number} max share of the strongest colour
 */
function reading(answer, entry, max) {
  const before = answer.tokens.context.slice(0, entry.spans[0].span[0]);
  const pieces = entry.spans.map((part) => {
    const colour = heat((part.share ?? 0) / max);
    const piece = h("span", { class: part.share < 0 ? "piece anti" : "piece", title: `share ${part.share}, alone ‖ΔW‖ ${part.only_this_span}, left out ‖ΔW‖ ${part.leave_one_out}` }, text(answer, part), h("span", { class: "share" }, percent(part.share)));
    piece.style.backgroundColor = colour;
    piece.style.color = inkOn(colour);
    return piece;
  });
  return h("p", { class: "reading", tabindex: 0, role: "region", "aria-label": "Context, coloured by share" }, ...before.map((token) => h("span", { class: "chip special" }, token.text)), ...pieces, h("span", { class: "query" }, spelled(answer.tokens.query)));
}

/** @type {import("../figure.js").View} */
export const attribution = {
  id: "attribution",
  title: "Which part of the context",
  path: "v1/attributions",
  request: (state) => read(state),
  caption: (answer, state) => [
    `The share of a sentence: ⟨ΔW of the sentence alone, ΔW⟩ / ‖ΔW‖², its position kept. Sentences act on each other through attention, so shares need not add up to 100 %; ${relativeTo(answer)}.${deviation(state, answer)}`,
  ],
  controls(answer, state, act) {
    const chosen = Math.min(state.layer ?? Infinity, answer.layers.at(-1).layer);
    const { order_effect } = answer.layers.find(({ layer }) => layer === chosen);
    const select = h("select", { id: "attribution-layer", on: { change: (event) => act.look(Number(event.target.value)) } },
      ...answer.layers.map(({ layer }) => h("option", { value: layer, ...(layer === chosen ? { selected: true } : {}) }, layer)));
    return h("span", {}, h("label", { for: "attribution-layer" }, "Text coloured for layer "), select, h("span", { class: "badge" }, ` order effect ‖ΔW − ΔW reversed‖ / ‖ΔW‖: ${plain(order_effect)}`));
  },
  draw(answer, state, width, act) {
    const narrow = width < NARROW;
    const { layers } = answer;
    const chosen = Math.min(state.layer ?? Infinity, layers.at(-1).layer);
    const shares = layers.flatMap(({ spans }) => spans.map(({ share }) => share ?? 0));
    const [min, max] = [Math.min(0, ...shares), Math.max(1, ...shares)];
    const parts = layers[0].spans;
    const left = narrow ? 30 : 62;
    const cell = Math.max(26, Math.min(240, (width - left) / parts.length));
    const height = rowHeight(layers.length, 28);
    const top = 26;
    const grid = heatGrid({ x: left, y: top, cell, height, max, cells: layers.map(({ layer, spans, norm, below_noise }) => spans.map((part) => ({
      value: part.share, text: part.share === null ? "none" : percent(part.share), noise: below_noise, title: `layer ${layer}, “${clipped(text(answer, part).trim(), 220)}”`, pick: () => act.look(layer),
      rows: [["share", part.share], ["‖ΔW‖ of it alone", part.only_this_span], ["‖ΔW‖ that it adds to the rest", part.leave_one_out], ["cosine to the whole", part.cosine_to_total], ["‖ΔW‖ of all", norm]],
    }))) });
    const heads = s("g", {}, ...parts.map((part, i) => {
      const name = widthOf(text(answer, part), "sans", 12) < cell - 6 || cell > 90 ? clipped(text(answer, part).trim().replaceAll("\n", "↵"), cell - 10, "sans", 12) : String(i + 1);
      return s("text", { x: left + (i + 0.5) * cell, y: top - 9, "text-anchor": "middle", class: "small" }, name);
    }));
    const row = layers.findIndex(({ layer }) => layer === chosen);
    const frame = s("rect", { class: "cursor", x: left - 1, y: top + row * height - 0.5, width: parts.length * cell + 2, height: height + 1, rx: 4 });
    const bottom = top + layers.length * height;
    const key = colourKey({ x: left, y: bottom + 12, width: narrow ? 90 : 130, max, min, label: "share of ΔW" });
    const label = `Shares by layer and sentence. Layer ${chosen}: ${layers[row].spans.map((part) => `“${text(answer, part).trim()}” ${percent(part.share)}`).join(", ")}.`;
    const svg = chart(Math.max(width, left + parts.length * cell + 2), bottom + 40, label, layerLabels(layers.map(({ layer }) => layer), { x: left - 10, y: top, height, narrow, chosen }), grid.element, heads, frame, key);
    return { element: h("div", { class: "attribution" }, reading(answer, layers[row], max), svg), svg, marks: grid.marks };
  },
  table: (answer) => ({
    columns: ["layer", "position", "from", "to", "text", "share", "only_this_span", "leave_one_out", "cosine_to_total", "norm", "order_effect"],
    rows: answer.layers.flatMap(({ layer, position, norm, order_effect, spans }) => spans.map((part) => [layer, position, ...part.span, text(answer, part), part.share, part.only_this_span, part.leave_one_out, part.cosine_to_total, norm, order_effect])),
  }),
};
