/** The chart of updates: a heat map of layer × query token, and bars with the cosine and Δh of the chosen token. */

import { NARROW, chart, colourKey, heatGrid, layerLabels, rowHeight } from "../charts.js";
import { clipped, s, widthOf } from "../dom.js";
import { formulaSvg, plain } from "../numbers.js";
import { quoted, visible } from "../tokens_text.js";

const d3 = globalThis.d3;
const SIDE = 150;

/**
 * @typedef {object} Bars
 * @property {string} title
 * @property {string} kind class of the dots
 * @property {[number, number]} domain
 * @property {Array<{layer: number, value: number | null, also?: number | null, text?: string, rows: Array<[string, unknown]>}>} entries
 *   `also` is the value of a second dot, `text` replaces the number beside the dots
 * @property {number} [room] width of the text
 */

/**
 * A column of bars beside the rows, one per layer.
 * @param {Bars} column
 * @param {{x: number, y: number, width: number, height: number, col: number}} place `col` is among the marks
 */
function bars({ title, kind, domain, entries, room = 40 }, { x, y, width, height, col }) {
  const scale = d3.scaleLinear(domain, [x, x + width - room]).clamp(true);
  const still = { "pointer-events": "none" };
  const marks = [];
  const group = s(
    "g",
    {},
    s("text", { x, y: y - 12, class: "strong", "font-size": 13 }, ...formulaSvg(title)),
    s("path", { class: "axis", d: `M${scale(0)} ${y}v${entries.length * height}` }),
  );
  entries.forEach(({ layer, value, also, text, rows }, row) => {
    const middle = y + (row + 0.5) * height;
    const node = s("rect", { x, y: y + row * height, width, height, fill: "transparent" });
    const end = scale(Math.max(value ?? 0, also ?? 0));
    group.append(node);
    if (value !== null) {
      const at = { cy: middle, r: height < 18 ? 3 : 4.5, ...still };
      group.append(
        s("path", { d: `M${scale(0)} ${middle}H${end}`, class: "span", ...still }),
        ...(also ? [s("circle", { cx: scale(also), class: "unpatched", ...at })] : []),
        s("circle", { cx: scale(value), class: kind, ...at }),
      );
    }
    const beside = { x: Math.max(end, scale(0)) + 9, y: middle, dy: "0.34em", class: "soft small" };
    group.append(s("text", { ...beside, ...still }, text ?? plain(value, 2)));
    marks.push({ node, title: `layer ${layer}: ${title}`, rows, row, col });
  });
  return { element: group, marks };
}

/**
 * Bars with the cosine between mlp_in of the two runs.
 * @param {any[]} updates of one position, a layer each
 * @returns {Bars}
 */
function cosines(updates) {
  const entries = updates.map(({ layer, mlp_in }) => ({
    layer,
    value: mlp_in.cosine,
    rows: [
      ["cosine", mlp_in.cosine],
      ["‖n_C‖", mlp_in.norm_with_context],
      ["‖n‖", mlp_in.norm_baseline],
      ["‖Δn‖", mlp_in.norm_difference],
    ],
  }));
  const least = Math.min(0, ...entries.map(({ value }) => value ?? 0));
  return { title: "cos(n_C, n)", kind: "dot", domain: [least, 1], entries };
}

/**
 * Bars with ‖Δh‖ / ‖h‖, the shift of the residual stream.
 * @param {any[]} updates of one position, a layer each
 * @returns {Bars}
 */
function shifts(updates) {
  const entries = updates.map(({ layer, resid_mid }) => {
    const { norm_difference, norm_baseline, norm_with_context, cosine } = resid_mid;
    const value = norm_baseline ? norm_difference / norm_baseline : null;
    return {
      layer,
      value,
      rows: [
        ["‖Δh‖ / ‖h‖", value],
        ["‖Δh‖", norm_difference],
        ["‖h_C‖", norm_with_context],
        ["‖h‖", norm_baseline],
        ["cos(h_C, h)", cosine],
      ],
    };
  });
  const most = Math.max(...entries.map(({ value }) => value ?? 0)) || 1;
  return { title: "‖Δh‖ / ‖h‖", kind: "unpatched", domain: [0, most], entries };
}

/**
 * Bars with the relative norm of each first weight of a gated MLP.
 * @param {any[]} updates of one position, a layer each
 * @returns {Bars}
 */
function gateAndUp(updates) {
  const entries = updates.map((update) => {
    const [gate, up] = update.weights.map(({ relative_norm }) => relative_norm);
    const text = `gate ${plain(gate, 2)}, up ${plain(up, 2)}`;
    return { layer: update.layer, value: gate, also: up, text, rows: weightRows(update) };
  });
  const most = Math.max(...entries.map(({ value, also }) => Math.max(value ?? 0, also ?? 0))) || 1;
  return { title: "‖ΔW‖_F / ‖W‖_F", kind: "dot", domain: [0, most], entries, room: 126 };
}

/**
 * ‖ΔW‖_F / ‖W‖_F of the first weights together.
 * @param {any} update
 * @returns {number | null}
 */
function relativeNorm({ norm, weights }) {
  if (weights.length === 1 || norm === 0) return weights[0].relative_norm;
  // ‖W‖² of all is the sum of the weights' ‖W‖². A weight without a ratio is zero.
  const squares = weights.map((weight) => (weight.relative_norm ? weight.norm / weight.relative_norm : 0) ** 2);
  return norm / Math.sqrt(squares.reduce((sum, square) => sum + square, 0));
}

/**
 * The numbers of an update's first weights. Several are told apart by the names of their modules.
 * @param {any} update
 * @returns {Array<[string, unknown]>}
 */
function weightRows({ weights }) {
  if (weights.length === 1) {
    const [{ name, spectral_share }] = weights;
    return [
      ["‖ΔW‖₂ / ‖W‖₂", spectral_share],
      ["weight", name],
    ];
  }
  return weights.flatMap(({ name, norm, relative_norm, spectral_share }) => {
    const module = name.split(".").at(-2);
    return [
      [`${module}: ‖ΔW‖`, norm],
      [`${module}: ‖ΔW‖_F / ‖W‖_F`, relative_norm],
      [`${module}: ‖ΔW‖₂ / ‖W‖₂`, spectral_share],
    ];
  });
}

/**
 * One cell of the heat map.
 * @param {any} update
 * @param {import("../tokens_text.js").Token} token
 * @param {() => void} pick
 */
function cellOf(update, token, pick) {
  const { layer, norm, below_noise, mlp_in, resid_mid } = update;
  const relative = relativeNorm(update);
  return {
    value: relative,
    text: plain(relative, 2),
    noise: below_noise,
    title: `layer ${layer}, ${quoted(token)}`,
    pick,
    rows: [
      ["‖ΔW‖_F / ‖W‖_F", relative],
      ["‖ΔW‖", norm],
      ["cos(n_C, n)", mlp_in.cosine],
      ["‖Δh‖", resid_mid.norm_difference],
      ["below noise", String(below_noise)],
      ...weightRows(update),
    ],
  };
}

/**
 * The query's tokens above their columns, slanted if there is little room.
 * @param {any[]} tokens
 * @param {{left: number, top: number, cell: number, slanted: boolean, chosen: number}} place
 */
function heads(tokens, { left, top, cell, slanted, chosen }) {
  return tokens.map((token, position) => {
    const [x, y] = [left + (position + 0.5) * cell, top - 12];
    const place = slanted
      ? { transform: `translate(${x + 2} ${y}) rotate(-46)` }
      : { x, y, "text-anchor": "middle" };
    const kind = position === chosen ? "token accent strong" : "token";
    return s("text", { ...place, class: kind }, clipped(visible(token), slanted ? 104 : cell, "mono", 12));
  });
}

/**
 * The likeliest next token after each token of the query, and its KL divergence from the baseline.
 * @param {any[]} nextTokens
 * @param {{left: number, y: number, cell: number}} place
 */
function nextRows(nextTokens, { left, y, cell }) {
  const lines = [
    ["next", ({ with_context: [best] }) => clipped(visible(best), cell - 8, "mono", 12), "token"],
    ["KL", ({ kl_divergence }) => plain(kl_divergence, 2), "soft small"],
  ];
  return lines.flatMap(([name, text, kind], line) => {
    const at = { y: y + line * 20, class: kind };
    const entry = (next) =>
      s("text", { ...at, x: left + (next.position + 0.5) * cell, "text-anchor": "middle" }, text(next));
    const label = s("text", { ...at, x: left - 10, "text-anchor": "end", class: "soft small" }, name);
    return [label, ...nextTokens.map(entry)];
  });
}

/**
 * The chart of an answer's updates.
 * @param {any} answer
 * @param {import("../state.js").State} state
 * @param {number} width
 * @param {import("../figure.js").Act} act
 * @returns {import("../figure.js").Drawn}
 */
export function drawUpdates(answer, state, width, act) {
  const narrow = width < NARROW;
  const tokens = answer.tokens.query;
  const count = tokens.length;
  const layers = [...new Set(answer.updates.map(({ layer }) => layer))];
  const chosen = Math.min(state.position ?? count - 1, count - 1);
  const found = new Map(answer.updates.map((update) => [`${update.layer},${update.position}`, update]));
  const of = (layer, position) => found.get(`${layer},${position}`);

  const [left, gap] = [narrow ? 30 : 62, narrow ? 18 : 34];
  const gated = answer.updates[0].weights.length > 1;
  const sides = [cosines, shifts, ...(gated ? [gateAndUp] : [])];
  const beside = narrow ? 0 : sides.length * (SIDE + gap);
  const cell = Math.max(17, Math.min(narrow ? 64 : 92, (width - left - beside) / count));
  const height = rowHeight(layers.length);
  const tall = layers.length * height;
  const longest = Math.max(...tokens.map((token) => widthOf(visible(token), "mono", 12)));
  const slanted = longest > cell - 4;
  const top = slanted ? Math.min(110, 30 + longest * 0.72) : 40;
  const max = Math.max(...answer.updates.map((update) => relativeNorm(update) ?? 0));
  const cells = layers.map((layer) =>
    tokens.map((token, position) => cellOf(of(layer, position), token, () => act.place(position))),
  );
  const grid = heatGrid({ x: left, y: top, cell, height, max, cells });
  const column = { x: left + chosen * cell - 0.5, y: top - 1, width: cell + 1, height: tall + 2, rx: 4 };

  const hasNext = count > 1 && cell >= 44;
  const keyTop = top + tall + (hasNext ? 56 : 16);
  const key = colourKey({ x: left, y: keyTop, width: narrow ? 90 : 130, max, label: "‖ΔW‖_F / ‖W‖_F" });

  const sideTop = narrow ? keyTop + 74 : top;
  const sideLeft = narrow ? left : left + count * cell + gap;
  const room = (width - sideLeft - (sides.length - 1) * gap) / sides.length;
  const sideWidth = narrow ? room : Math.max(SIDE, Math.min(320, room));
  const here = layers.map((layer) => of(layer, chosen));
  const columns = sides.map((side, i) => {
    const x = sideLeft + i * (sideWidth + gap);
    return bars(side(here), { x, y: sideTop, width: sideWidth, height, col: count + i });
  });

  const names = { x: left - 10, height, narrow };
  const read = here.map((update) => `layer ${update.layer} ${plain(relativeNorm(update), 2)}`);
  const svg = chart(
    Math.max(narrow ? width : sideLeft + sides.length * (sideWidth + gap) - gap, left + count * cell + 4),
    narrow ? sideTop + tall + 6 : keyTop + 28,
    `Relative norm of the update by layer and token. At ${quoted(tokens[chosen])}: ${read.join(", ")}.`,
    layerLabels(layers, { ...names, y: top }),
    grid.element,
    ...heads(tokens, { left, top, cell, slanted, chosen }),
    ...(count > 1 ? [s("rect", { class: "frame", ...column })] : []),
    ...(hasNext ? nextRows(answer.next_tokens, { left, y: top + tall + 18, cell }) : []),
    key,
    ...(narrow ? [layerLabels(layers, { ...names, y: sideTop })] : []),
    ...columns.map(({ element }) => element),
  );
  return { element: svg, svg, marks: [...grid.marks, ...columns.flatMap(({ marks }) => marks)] };
}
