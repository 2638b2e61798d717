/** The chart of shares: a heat map of layer × sentence. */

import { NARROW, chart, colourKey, heatGrid, layerLabels, rowHeight } from "../charts.js";
import { clipped, s } from "../dom.js";
import { percent } from "../numbers.js";
import { spelled } from "../tokens_text.js";

const TOP = 26;

/**
 * The range of the shares, extended to include 0 and 1.
 * @param {any} answer
 * @returns {[number, number]}
 */
export function shareRange({ layers }) {
  const shares = layers.flatMap(({ spans }) => spans.map(({ share }) => share ?? 0));
  return [Math.min(0, ...shares), Math.max(1, ...shares)];
}

/**
 * The chart of an answer's shares.
 * @param {any} answer
 * @param {number} chosen layer
 * @param {number} width
 * @param {import("../figure.js").Act} act
 */
export function drawShares(answer, chosen, width, act) {
  const narrow = width < NARROW;
  const { layers } = answer;
  const [min, max] = shareRange(answer);
  const texts = layers[0].spans.map(({ span }) =>
    spelled(answer.tokens.context.slice(...span))
      .trim()
      .replaceAll("\n", "↵"),
  );
  const left = narrow ? 30 : 62;
  const cell = Math.max(26, Math.min(240, (width - left) / texts.length));
  const height = rowHeight(layers.length, 28);
  const cells = layers.map(({ layer, spans, norm, below_noise }) =>
    spans.map(({ share, only_this_span, leave_one_out, cosine_to_total }, i) => ({
      value: share,
      // In narrow cells only the short ones would fit, as if they were special.
      text: cell < 44 ? undefined : percent(share),
      noise: below_noise,
      title: `layer ${layer}, “${clipped(texts[i], 220)}”`,
      pick: () => act.look(layer),
      rows: [
        ["share", share],
        ["‖ΔW‖ of this sentence alone", only_this_span],
        ["‖ΔW‖ that it adds to the rest", leave_one_out],
        ["cosine to the whole ΔW", cosine_to_total],
        ["‖ΔW‖ of the whole context", norm],
      ],
    })),
  );
  const grid = heatGrid({ x: left, y: TOP, cell, height, max, cells });
  const heads = texts.map((text, i) => {
    const place = { x: left + (i + 0.5) * cell, y: TOP - 9, "text-anchor": "middle", class: "small" };
    return s("text", place, cell > 90 ? clipped(text, cell - 10, "sans", 12) : i + 1);
  });
  const row = layers.findIndex(({ layer }) => layer === chosen);
  const frame = {
    x: left - 1,
    y: TOP + row * height - 0.5,
    width: texts.length * cell + 2,
    height: height + 1,
  };
  const bottom = TOP + layers.length * height;
  const read = layers[row].spans.map(({ share }, i) => `“${texts[i]}” ${percent(share)}`);
  const svg = chart(
    Math.max(width, left + texts.length * cell + 2),
    bottom + 40,
    `Shares by layer and sentence. Layer ${chosen}: ${read.join(", ")}.`,
    layerLabels(
      layers.map(({ layer }) => layer),
      { x: left - 10, y: TOP, height, narrow, chosen },
    ),
    grid.element,
    ...heads,
    s("rect", { class: "frame", ...frame, rx: 4 }),
    colourKey({ x: left, y: bottom + 12, width: narrow ? 90 : 130, max, min, label: "share of ΔW" }),
  );
  return { svg, marks: grid.marks };
}
