/** The update of every layer at every query position, and what it is made from at the chosen one. */

import { NARROW, chart, colourKey, heatGrid, layerLabels, rowHeight } from "../charts.js";
import { clipped, s, widthOf } from "../dom.js";
import { formula, formulaSvg, plain } from "../numbers.js";
import { pair, relativeTo } from "../questions.js";
import { quoted, visible } from "../tokens_text.js";

const d3 = globalThis.d3;

/**
 * A column of bars beside the rows, one a layer.
 * @param {{x: number, y: number, width: number, height: number, title: string, domain: [number, number], kind: string, entries: Array<{layer: number, value: number | null, rows: Array<[string, unknown]>}>}} column
 * @param {number} col among the marks
 */
function bars({ x, y, width, height, title, domain, kind, entries }, col) {
  const scale = d3.scaleLinear(domain, [x, x + width - 40]).clamp(true);
  const marks = [];
  const group = s("g", {}, s("text", { x: x, y: y - 12, class: "strong", "font-size": 13 }, ...formulaSvg(title)), s("path", { class: "axis", d: `M${scale(0)} ${y}v${entries.length * height}` }));
  entries.forEach(({ layer, value, rows }, row) => {
    const middle = y + (row + 0.5) * height;
    const node = s("rect", { x, y: y + row * height, width, height, fill: "transparent" });
    const end = scale(value ?? 0);
    group.append(node);
    if (value !== null) {
      group.append(
        s("path", { d: `M${scale(0)} ${middle}H${end}`, class: "span", "pointer-events": "none" }),
        s("circle", { cx: end, cy: middle, r: height < 18 ? 3 : 4.5, class: kind, "pointer-events": "none" }));
    }
    if (height >= 14) group.append(s("text", { x: Math.max(end, scale(0)) + 9, y: middle, dy: "0.34em", class: "soft", "font-size": 12, "pointer-events": "none" }, plain(value, 2)));
    marks.push({ node, title: `layer ${layer}: ${title}`, rows, row, col });
  });
  return { element: group, marks };
}

/** @type {import("../figure.js").View} */
export const updates = {
  id: "updates",
  title: "The update, layer by layer",
  path: "v1/weight-updates",
  request: (state) => ({ ...pair(state), positions: "all", include: ["next_tokens"] }),
  caption: (answer) => formula(
    `Colour: ‖ΔW‖_F / ‖W‖_F of each MLP’s first weight, a rank-1 update for each token of the query. Beside it, at the chosen token: the cosine of mlp_in with and without the context, and ‖Δh‖ / ‖h‖ of the stream before it; ${relativeTo(answer)}.`,
  ),
  draw(answer, state, width, act) {
    const narrow = width < NARROW;
    const count = answer.tokens.query.length;
    const layers = [...new Set(answer.updates.map(({ layer }) => layer))];
    const chosen = Math.min(state.position ?? count - 1, count - 1);
    const at = new Map(answer.updates.map((update) => [`${update.layer},${update.position}`, update]));
    const of = (layer, position) => at.get(`${layer},${position}`);
    const [left, gap] = [narrow ? 30 : 62, narrow ? 18 : 34];
    const sides = narrow ? 0 : 2 * (150 + gap);
    const cell = Math.max(17, Math.min(narrow ? 64 : 92, (width - left - sides) / count));
    const height = rowHeight(layers.length);
    const longest = Math.max(...answer.tokens.query.map((token) => widthOf(visible(token), "mono", 12)));
    const slanted = longest > cell - 4;
    const top = slanted ? Math.min(110, 30 + longest * 0.72) : 44;
    const bottom = top + layers.length * height;
    const max = Math.max(...answer.updates.map(({ relative_norm }) => relative_norm ?? 0));

    const grid = heatGrid({ x: left, y: top, cell, height, max, cells: layers.map((layer) => answer.tokens.query.map((token, position) => {
      const { relative_norm, norm, spectral_share, below_noise, mlp_in, resid_mid, weight } = of(layer, position);
      return { value: relative_norm, text: plain(relative_norm, 2), noise: below_noise, title: `layer ${layer}, ${quoted(token)}`, pick: () => act.place(position),
        rows: [["‖ΔW‖_F / ‖W‖_F", relative_norm], ["‖ΔW‖", norm], ["‖ΔW‖₂ / ‖W‖₂", spectral_share], ["cos(n_C, n)", mlp_in.cosine], ["‖Δh‖", resid_mid.norm_difference], ["below noise", String(below_noise)], ["weight", weight]] };
    })) });
    const heads = s("g", {}, ...answer.tokens.query.map((token, position) => {
      const [x, y] = [left + (position + 0.5) * cell, top - 12];
      const slant = slanted ? { transform: `translate(${x + 2} ${y}) rotate(-46)` } : { x, y, "text-anchor": "middle" };
      return s("text", { ...slant, class: position === chosen ? "token accent strong" : "token" }, slanted ? clipped(visible(token), 104, "mono", 12) : visible(token));
    }), s("path", { class: "axis", d: `M${left + chosen * cell + 2} ${top - 4}h${cell - 4}`, stroke: "currentColor" }));
    const frame = s("rect", { class: "cursor", x: left + chosen * cell - 0.5, y: top - 1, width: cell + 1, height: layers.length * height + 2, rx: 4 });
    if (count === 1) frame.remove();

    const extra = s("g", {});
    let under = bottom + 8;
    if (count > 1 && cell >= 44) {
      const lines = [["next", ({ with_context: [best] }) => clipped(visible(best), cell - 8, "mono", 12), "token"], ["KL", ({ kl_divergence }) => plain(kl_divergence, 2), "soft small"]];
      for (const [name, text, kind] of lines) {
        extra.append(s("text", { x: left - 10, y: under + 10, "text-anchor": "end", class: "soft small" }, name),
          ...answer.next_tokens.map((entry) => s("text", { x: left + (entry.position + 0.5) * cell, y: under + 10, "text-anchor": "middle", class: kind }, text(entry))));
        under += 20;
      }
    }
    const key = colourKey({ x: left, y: under + 8, width: narrow ? 90 : 130, max, label: "‖ΔW‖_F / ‖W‖_F" });

    const sideTop = narrow ? under + 84 : top;
    const sideLeft = narrow ? left : left + count * cell + gap;
    const sideWidth = narrow ? (width - left - gap) / 2 : Math.max(150, Math.min(320, (width - sideLeft - gap) / 2));
    const entries = layers.map((layer) => of(layer, chosen));
    const cosines = bars({ x: sideLeft, y: sideTop, width: sideWidth, height, title: "cos(n_C, n)", kind: "dot",
      domain: [Math.min(0, ...entries.map(({ mlp_in }) => mlp_in.cosine ?? 0)), 1],
      entries: entries.map(({ layer, mlp_in }) => ({ layer, value: mlp_in.cosine, rows: [["cosine", mlp_in.cosine], ["‖n_C‖", mlp_in.norm_with_context], ["‖n‖", mlp_in.norm_baseline], ["‖Δn‖", mlp_in.norm_difference]] })) }, count);
    const shifts = entries.map(({ layer, resid_mid }) => ({ layer, value: resid_mid.norm_baseline ? resid_mid.norm_difference / resid_mid.norm_baseline : null,
      rows: [["‖Δh‖ / ‖h‖", resid_mid.norm_baseline ? resid_mid.norm_difference / resid_mid.norm_baseline : null], ["‖Δh‖", resid_mid.norm_difference], ["‖h_C‖", resid_mid.norm_with_context], ["‖h‖", resid_mid.norm_baseline], ["cos(h_C, h)", resid_mid.cosine]] }));
    const bias = bars({ x: sideLeft + sideWidth + gap, y: sideTop, width: sideWidth, height, title: "‖Δh‖ / ‖h‖", kind: "unpatched", domain: [0, Math.max(...shifts.map(({ value }) => value ?? 0)) || 1], entries: shifts }, count + 1);

    const total = Math.max(narrow ? width : sideLeft + 2 * sideWidth + gap, left + count * cell + 4);
    const end = narrow ? sideTop + layers.length * height + 6 : under + 36;
    const label = `Relative norm of the update by layer and query token. At ${quoted(answer.tokens.query[chosen])}: ${entries.map(({ layer, relative_norm }) => `layer ${layer} ${plain(relative_norm, 2)}`).join(", ")}.`;
    const names = { x: left - 10, height, narrow };
    const svg = chart(total, end, label, layerLabels(layers, { ...names, y: top }), grid.element, heads, ...(count > 1 ? [frame] : []), extra, key,
      ...(narrow ? [layerLabels(layers, { ...names, y: sideTop })] : []), cosines.element, bias.element);
    return { element: svg, svg, marks: [...grid.marks, ...cosines.marks, ...bias.marks] };
  },
  table: ({ updates: list }) => ({
    columns: ["layer", "position", "relative_norm", "norm", "spectral_share", "below_noise", "mlp_in_cosine", "mlp_in_norm_difference", "mlp_in_norm_with_context", "mlp_in_norm_baseline", "resid_mid_norm_difference", "resid_mid_norm_with_context", "resid_mid_norm_baseline"],
    rows: list.map(({ layer, position, relative_norm, norm, spectral_share, below_noise, mlp_in, resid_mid }) => [layer, position, relative_norm, norm, spectral_share, below_noise, mlp_in.cosine, mlp_in.norm_difference, mlp_in.norm_with_context, mlp_in.norm_baseline, resid_mid.norm_difference, resid_mid.norm_with_context, resid_mid.norm_baseline]),
  }),
};
