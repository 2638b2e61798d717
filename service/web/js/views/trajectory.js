/** The way of the weights as the context is read: a line a layer, step norms under the tokens. */

import { NARROW, apart, chart, colourKey, heatGrid, layerLabels, layerName, rowHeight } from "../charts.js";
import { clipped, h, s, widthOf } from "../dom.js";
import { formula, formulaSvg, plain } from "../numbers.js";
import { layerColour } from "../palette.js";
import { deviation, read, relativeTo } from "../questions.js";
import { CHOICES } from "../state.js";
import { spelled, visible } from "../tokens_text.js";

const d3 = globalThis.d3;

/** @param {any} answer @param {[number, number]} span */
function named(answer, [from, to]) {
  return visible(spelled(answer.tokens.context.slice(from, to)));
}

/** @type {import("../figure.js").View} */
export const trajectory = {
  id: "trajectory",
  title: "As the context is read",
  path: "v1/trajectories",
  request(state, answerOf) {
    if (state.steps === "tokens") return read(state);
    const bySentence = async () => {
      await null; // by then every view has asked
      const { layers: [first] } = await answerOf("attribution");
      return { ...read(state), spans: first.spans.map(({ span }) => span) };
    };
    return bySentence();
  },
  caption(answer, state) {
    const worst = Math.max(...answer.layers.map(({ telescoping_error }) => telescoping_error ?? 0));
    return formula(`Lines: ‖ΔW‖_F after each step, from nothing read to all of it. Colour: the step’s own norm ‖ΔW after − ΔW before‖_F. The steps sum to the whole update to ${plain(worst, 2)} of its norm; ${relativeTo(answer)}.${deviation(state, answer)}`);
  },
  controls(_answer, state, act) {
    return h("div", { class: "choices", role: "group", "aria-label": "Steps" }, ...Object.entries(CHOICES.steps).map(([value, label]) =>
      h("label", { for: `steps-${value}` }, h("input", { type: "radio", name: "steps", value, id: `steps-${value}`, ...(state.steps === value ? { checked: true } : {}), on: { change: () => act.walk(value) } }), label)));
  },
  draw(answer, state, width, act) {
    const narrow = width < NARROW;
    const { layers } = answer;
    const spans = layers[0].steps.map(({ span }) => span);
    const chosen = Math.min(state.layer ?? Infinity, layers.at(-1).layer);
    const [left, right, top] = [narrow ? 34 : 62, narrow ? 30 : 58, 12];
    const cell = Math.max(narrow ? 10.5 : 14, (width - left - right) / spans.length);
    const across = cell * spans.length;
    const [tall, height] = [narrow ? 170 : 230, rowHeight(layers.length, 16) - (layers.length > 26 ? 5 : 0)];
    const most = Math.max(...layers.flatMap(({ steps }) => steps.map(({ norm }) => norm)));
    const y = d3.scaleLinear([0, most || 1], [top + tall, top]).nice(4);
    const x = (i) => left + i * cell;

    const ground = s("g", {});
    for (const tick of y.ticks(4)) {
      ground.append(s("path", { class: tick ? "grid" : "axis", d: `M${left} ${y(tick)}h${across}` }), s("text", { x: left - 10, y: y(tick), dy: "0.34em", "text-anchor": "end", class: "soft small" }, plain(tick)));
    }
    const lines = s("g", { class: "picks" });
    const marks = [];
    const path = d3.line();
    const last = layers.map(({ steps }) => y(steps.at(-1).norm));
    const names = apart(last, narrow ? 11 : 14, top + 4, top + tall);
    layers.forEach(({ layer, steps }, i) => {
      const colour = layerColour(i, layers.length);
      const line = s("path", { class: layer === chosen ? "line chosen" : "line", d: path([[x(0), y(0)], ...steps.map(({ norm }, k) => [x(k + 1), y(norm)])]), stroke: colour });
      const name = s("text", { x: x(spans.length) + 8, y: names[i], dy: "0.34em", "font-size": narrow ? 11 : 12.5, class: layer === chosen ? "strong" : "soft" }, layerName(layer, narrow));
      lines.append(line, name);
      marks.push({ node: line, title: `layer ${layer}`, rows: [["‖ΔW‖ at the end", steps.at(-1).norm]], row: -1, col: i, pick: () => act.look(layer) });
    });
    lines.append(...lines.querySelectorAll(".chosen"));

    const stripTop = top + tall + 16;
    const strongest = Math.max(...layers.flatMap(({ steps }) => steps.map(({ step_norm }) => step_norm)));
    const grid = heatGrid({ x: left, y: stripTop, cell, height, max: strongest, cells: layers.map(({ layer, steps }) => steps.map((step, i) => ({
      value: step.step_norm, text: spans.length <= 12 ? plain(step.step_norm, 2) : "", title: `layer ${layer}, ${named(answer, spans[i])}`, pick: () => act.look(layer),
      rows: [["‖step‖", step.step_norm], ["‖ΔW‖ after it", step.norm], ["‖gradient‖", step.gradient_norm], ["cosine to the whole", step.cosine_to_final], ["loss before", step.loss_before], ["loss after", step.loss_after]],
    }))) });
    const stripBottom = stripTop + layers.length * height;
    const upright = cell > 90 || spans.every((span) => widthOf(named(answer, span), "mono", 12) < cell - 4);
    const labels = spans.map((span) => clipped(named(answer, span), upright ? cell - 4 : 112, "mono", 12));
    const words = s("g", {}, ...labels.map((text, i) => upright
      ? s("text", { x: x(i + 0.5), y: stripBottom + 16, "text-anchor": "middle", class: "token" }, text)
      : s("text", { transform: `translate(${x(i + 0.5) + 4} ${stripBottom + 10}) rotate(-52)`, "text-anchor": "end", class: "token" }, text)));
    const room = upright ? 24 : 18 + Math.max(...labels.map((text) => widthOf(text, "mono", 12))) * 0.8;
    const key = colourKey({ x: left, y: stripBottom + room + 8, width: narrow ? 90 : 130, max: strongest, label: "norm of the step" });
    const label = `Norm of the update after each of ${spans.length} steps. At the end: ${layers.map(({ layer, steps }) => `layer ${layer} ${plain(steps.at(-1).norm)}`).join(", ")}.`;
    const svg = chart(Math.max(width, left + across + right), stripBottom + room + 36, label, ground,
      layerLabels(layers.map(({ layer }) => layer), { x: left - 10, y: stripTop, height, narrow, chosen }), lines, grid.element, words, key,
      ...(narrow ? [] : [s("text", { x: left + 6, y: top + 6, class: "soft small" }, ...formulaSvg("‖ΔW‖_F"))]));
    return { element: svg, svg, marks: [...marks, ...grid.marks] };
  },
  table: (answer) => ({
    columns: ["layer", "position", "from", "to", "text", "norm", "step_norm", "gradient_norm", "cosine_to_final", "loss_before", "loss_after"],
    rows: answer.layers.flatMap(({ layer, position, steps }) => steps.map((step) => [layer, position, ...step.span, spelled(answer.tokens.context.slice(...step.span)), step.norm, step.step_norm, step.gradient_norm, step.cosine_to_final, step.loss_before, step.loss_after])),
  }),
};
