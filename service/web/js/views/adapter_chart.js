/** The chart of an adapter: panels of bars for held-out figures, collateral and norms. */

import { NARROW, chart, layerName, rowHeight } from "../charts.js";
import { s, widthOf } from "../dom.js";
import { percent, plain } from "../numbers.js";

const d3 = globalThis.d3;
const [HEAD, GAP] = [30, 22];

/**
 * @typedef {object} Bar
 * @property {string} name
 * @property {number | null} value
 * @property {boolean} [own] whether it is the adapter's
 * @property {string} [said] beside the bar, in place of the value
 * @property {Array<[string, unknown]>} [rows] of the tooltip, in place of the value
 */

/**
 * @typedef {object} Panel
 * @property {string} title
 * @property {Bar[]} bars
 * @property {number} [most] end of the axis; the largest value by default
 */

/**
 * The panels of an answer.
 * @param {any} answer
 * @param {boolean} narrow
 * @returns {Panel[]}
 */
function panelsOf({ held_out, rivals, collateral, layers }, narrow) {
  const panels = [];
  if (held_out) {
    panels.push(
      {
        title: "Recovered",
        most: 1,
        bars: [
          { name: "adapter", value: held_out.recovered, own: true },
          { name: "mean output", value: rivals.mean_output },
          { name: "constant answer", value: rivals.constant },
          { name: "random update", value: rivals.random },
        ],
      },
      {
        title: "Beyond the constant answer",
        most: 1,
        bars: [
          { name: "adapter", value: held_out.beyond_constant, own: true },
          { name: "mean output", value: rivals.mean_output_beyond_constant },
        ],
      },
      {
        title: "Same likeliest token as with context",
        most: 1,
        bars: [
          { name: "adapter", value: held_out.top_1, own: true, said: percent(held_out.top_1) },
          { name: "without", value: held_out.top_1_none, said: percent(held_out.top_1_none) },
        ],
      },
      {
        title: "Recovered by answer token, teacher-forced",
        most: 1,
        bars: held_out.teacher_forced.map(({ token, recovered, top_1 }) => ({
          name: `token ${token + 1}`,
          value: recovered,
          own: true,
          rows: [
            ["recovered", recovered],
            ["same likeliest token", top_1],
          ],
        })),
      },
    );
  }
  if (collateral) {
    panels.push({
      title: `Collateral: mean KL on ${collateral.texts} unrelated texts, nats`,
      bars: [
        {
          name: "adapter",
          value: collateral.mean,
          own: true,
          said: `${plain(collateral.mean)}, max ${plain(collateral.max)}`,
          rows: [
            ["mean", collateral.mean],
            ["largest", collateral.max],
          ],
        },
        { name: "the context itself", value: collateral.context_itself },
      ],
    });
  }
  panels.push({
    title: "Norm and rank of each layer’s update",
    bars: layers.map(({ layer, norm, rank, kept_energy }) => ({
      name: layerName(layer, narrow),
      value: norm,
      own: true,
      said: `${plain(norm)}, rank ${rank}`,
      rows: [
        ["norm", norm],
        ["rank", rank],
        ["share of the effect kept", kept_energy],
      ],
    })),
  });
  return panels;
}

/**
 * One panel. A bar below −1 is cut off at −1, but its label has the true value.
 * @param {Panel} panel
 * @param {{x: number, y: number, width: number, at: number, col: number}} place `at` is the row of its first mark
 */
function panelAt({ title, bars, most }, { x, y, width, at, col }) {
  const known = bars.map(({ value }) => value).filter((value) => value !== null);
  const low = Math.max(-1, Math.min(0, ...known));
  const words = bars.map(({ value, said }) => said ?? plain(value));
  const room = (texts) => Math.max(...texts.map((text) => widthOf(text, "strong", 12.5))) + 14;
  const [names, said] = [room(bars.map(({ name }) => name)), room(words)];
  const across = d3
    .scaleLinear([low, most ?? Math.max(...known, 1e-12)], [x + names, x + width - said])
    .clamp(true);
  const row = rowHeight(bars.length, 24);
  const marks = [];
  const group = s("g", {}, s("text", { x, y: y + 13, class: "strong", "font-size": 13.5 }, title));
  bars.forEach(({ name, value, own, rows }, i) => {
    const top = y + HEAD + i * row;
    const text = { y: top + row / 2, dy: "0.34em", "font-size": row < 18 ? 11 : 12.5 };
    const thin = { y: top + 0.3 * row, height: 0.4 * row, rx: 2 };
    const [from, to] = [across(0), across(value ?? 0)];
    const long = value === null ? 0 : Math.max(1.5, Math.abs(to - from));
    const node = s("rect", { x, y: top, width, height: row, fill: "transparent" });
    group.append(
      s("text", { ...text, x, class: own ? "" : "soft" }, name),
      s("rect", { ...thin, x: x + names, width: width - names - said, class: "track" }),
      s("rect", { ...thin, x: Math.min(from, to), width: long, class: own ? "bar accent" : "bar" }),
      s("text", { ...text, x: x + width, "text-anchor": "end", class: own ? "strong" : "soft" }, words[i]),
      node,
    );
    marks.push({ node, title: `${title}: ${name}`, rows: rows ?? [["value", value]], row: at + i, col });
  });
  const height = HEAD + bars.length * row;
  if (low < 0) group.append(s("path", { class: "axis", d: `M${across(0)} ${y + HEAD}v${height - HEAD}` }));
  return { group, marks, height };
}

/**
 * The chart of an adapter.
 * @param {any} answer
 * @param {number} width
 * @returns {{svg: SVGSVGElement, marks: import("../tooltip.js").Mark[]}}
 */
export function drawAdapter(answer, width) {
  const narrow = width < NARROW;
  const panels = panelsOf(answer, narrow);
  const columns = narrow || panels.length === 1 ? 1 : 2;
  const gap = 40;
  const wide = (width - (columns - 1) * gap) / columns;
  const bottoms = Array(columns).fill(0);
  const rows = Array(columns).fill(0);
  const marks = [];
  const drawn = panels.map((panel) => {
    const col = bottoms.indexOf(Math.min(...bottoms));
    const place = { x: col * (wide + gap), y: bottoms[col], width: wide, at: rows[col], col };
    const { group, marks: own, height } = panelAt(panel, place);
    bottoms[col] += height + GAP;
    rows[col] += panel.bars.length;
    marks.push(...own);
    return group;
  });
  const label = panels
    .filter(({ bars }) => bars.length <= 4)
    .map(
      ({ title, bars }) =>
        `${title}: ${bars.map(({ name, value }) => `${name} ${plain(value)}`).join(", ")}.`,
    )
    .join(" ")
    .replaceAll("context", "text read");
  return {
    svg: chart(width, Math.max(...bottoms) - GAP, label || "The norm of each layer’s update.", ...drawn),
    marks,
  };
}
