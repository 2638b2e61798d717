/** The chart of a trajectory: lines over the steps, and below them the norms of the steps as colours and the text read. */

import { NARROW, apart, chart, colourKey, heatGrid, layerLabels, layerName, rowHeight } from "../charts.js";
import { clipped, s, widthOf } from "../dom.js";
import { formulaSvg, plain } from "../numbers.js";
import { layerColour } from "../palette.js";
import { spelled, visible } from "../tokens_text.js";

const d3 = globalThis.d3;
const TOP = 12;
const SLANT = -52;

/**
 * @typedef {object} Frame
 * @property {number} left
 * @property {number} cell width of a step
 * @property {number} tall height of the lines
 * @property {number} height of a row of colours
 * @property {boolean} narrow
 * @property {number} chosen layer
 */

/**
 * One line per layer, with its label at the end.
 * @param {any[]} layers
 * @param {Frame} frame
 * @param {import("../figure.js").Act} act
 */
function lines(layers, { left, cell, tall, narrow, chosen }, act) {
  const across = cell * layers[0].steps.length;
  const most = Math.max(...layers.flatMap(({ steps }) => steps.map(({ norm }) => norm)));
  const y = d3.scaleLinear([0, most || 1], [TOP + tall, TOP]).nice(4);
  const axis = y
    .ticks(4)
    .flatMap((tick) => [
      s("path", { class: tick ? "grid" : "axis", d: `M${left} ${y(tick)}h${across}` }),
      s(
        "text",
        { x: left - 10, y: y(tick), dy: "0.34em", "text-anchor": "end", class: "soft small" },
        plain(tick),
      ),
    ]);
  const gap = narrow ? 11 : 14;
  const every = Math.ceil((layers.length * gap) / tall);
  const labelled = layers.filter(({ layer }, i) => layer === chosen || i % every === 0);
  const ends = labelled.map(({ steps }) => y(steps.at(-1).norm));
  const named = apart(ends, gap, TOP + 4, TOP + tall);
  const marks = [];
  const drawn = layers.map(({ layer, steps }, i) => {
    const points = [[left, y(0)], ...steps.map(({ norm }, k) => [left + (k + 1) * cell, y(norm)])];
    const kind = layer === chosen ? "line chosen" : "line";
    const node = s("path", { class: kind, d: d3.line()(points), stroke: layerColour(i, layers.length) });
    const rows = [["‖ΔW‖ at the end", steps.at(-1).norm]];
    marks.push({ node, title: `layer ${layer}`, rows, row: -1, col: i, pick: () => act.look(layer) });
    return node;
  });
  const labels = labelled.map(({ layer }, i) => {
    const place = { x: left + across + 8, y: named[i], dy: "0.34em", "font-size": narrow ? 11 : 12.5 };
    return s("text", { ...place, class: layer === chosen ? "strong" : "soft" }, layerName(layer, narrow));
  });
  const group = s("g", { class: "picks" }, ...drawn);
  group.append(...group.querySelectorAll(".chosen"));
  const unit = s("text", { x: left + 6, y: TOP + 6, class: "soft small" }, ...formulaSvg("‖ΔW‖_F"));
  return { elements: [...axis, group, ...labels, ...(narrow ? [] : [unit])], marks };
}

/**
 * The text of each step below its column, slanted if there is little room.
 * @param {string[]} texts
 * @param {Frame} frame
 * @param {number} y
 */
function words(texts, { left, cell }, y) {
  const upright = cell > 90 || texts.every((text) => widthOf(text, "mono", 12) < cell - 4);
  const shown = texts.map((text) => clipped(text, upright ? cell - 4 : 112, "mono", 12));
  const elements = shown.map((text, i) => {
    const x = left + (i + 0.5) * cell;
    const place = upright
      ? { x, y: y + 16, "text-anchor": "middle" }
      : { transform: `translate(${x + 4} ${y + 10}) rotate(${SLANT})`, "text-anchor": "end" };
    return s("text", { ...place, class: "token" }, text);
  });
  const longest = Math.max(...shown.map((text) => widthOf(text, "mono", 12)));
  return { elements, height: upright ? 24 : 18 + longest * 0.8 };
}

/**
 * The chart of an answer's trajectories.
 * @param {any} answer
 * @param {import("../state.js").State} state
 * @param {number} width
 * @param {import("../figure.js").Act} act
 * @returns {import("../figure.js").Drawn}
 */
export function drawTrajectory(answer, state, width, act) {
  const narrow = width < NARROW;
  const { layers } = answer;
  const texts = layers[0].steps.map(({ span }) => visible(spelled(answer.tokens.context.slice(...span))));
  const [left, right] = [narrow ? 34 : 62, narrow ? 30 : 58];
  const frame = {
    left,
    cell: Math.max(narrow ? 10.5 : 14, (width - left - right) / texts.length),
    tall: narrow ? 170 : 230,
    height: layers.length > 26 ? 10 : rowHeight(layers.length, 16),
    narrow,
    chosen: Math.min(state.layer ?? Infinity, layers.at(-1).layer),
  };
  const over = lines(layers, frame, act);

  const stripTop = TOP + frame.tall + 16;
  const max = Math.max(...layers.flatMap(({ steps }) => steps.map(({ step_norm }) => step_norm)));
  const cellOf = (layer, step, i) => ({
    value: step.step_norm,
    text: texts.length <= 12 ? plain(step.step_norm, 2) : "",
    title: `layer ${layer}, ${texts[i]}`,
    pick: () => act.look(layer),
    rows: [
      ["‖step‖", step.step_norm],
      ["‖ΔW‖ after it", step.norm],
      ["‖gradient‖", step.gradient_norm],
      ["cosine to the whole ΔW", step.cosine_to_final],
      ["loss before", step.loss_before],
      ["loss after", step.loss_after],
    ],
  });
  const cells = layers.map(({ layer, steps }) => steps.map((step, i) => cellOf(layer, step, i)));
  const grid = heatGrid({ x: left, y: stripTop, cell: frame.cell, height: frame.height, max, cells });
  const stripBottom = stripTop + layers.length * frame.height;
  const read = words(texts, frame, stripBottom);
  const keyTop = stripBottom + read.height + 8;
  const end = layers.map(({ layer, steps }) => `layer ${layer} ${plain(steps.at(-1).norm)}`);
  const svg = chart(
    Math.max(width, left + frame.cell * texts.length + right),
    keyTop + 28,
    `Norm of the update after each of ${texts.length} steps. At the end: ${end.join(", ")}.`,
    ...over.elements,
    layerLabels(
      layers.map(({ layer }) => layer),
      { ...frame, x: left - 10, y: stripTop },
    ),
    grid.element,
    ...read.elements,
    colourKey({ x: left, y: keyTop, width: narrow ? 90 : 130, max, label: "norm of the step" }),
  );
  return { element: svg, svg, marks: [...over.marks, ...grid.marks] };
}
