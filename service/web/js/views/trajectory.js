/** The trajectory of ΔW as the context is read: one line per layer, step norms under the tokens. */

import { h } from "../dom.js";
import { inParts } from "../fitting.js";
import { formula, plain } from "../numbers.js";
import { deviation, read, relativeTo } from "../questions.js";
import { CHOICES } from "../state.js";
import { spelled } from "../tokens_text.js";
import { drawTrajectory } from "./trajectory_chart.js";

const NUMBERS = ["norm", "step_norm", "gradient_norm", "cosine_to_final", "loss_before", "loss_after"];

/** @type {import("../figure.js").View} */
export const trajectory = {
  id: "trajectory",
  title: "As the context is read",
  path: "v1/trajectories",
  request(state, answerOf) {
    if (state.steps === "tokens") return read(state);
    const bySentence = async () => {
      await null; // wait until every view has sent its request
      const { layers } = await answerOf("attribution");
      return { ...read(state), spans: layers[0].spans.map(({ span }) => span) };
    };
    return bySentence();
  },
  smaller(body, times, { context, head }) {
    const spans = body.spans ?? context.slice(head).map((_, i) => [head + i, head + i + 1]);
    if (spans.length === 1) return null;
    const steps = inParts(spans, Math.ceil(spans.length / times));
    return [{ ...body, spans: steps.map((part) => [part[0][0], part.at(-1)[1]]) }];
  },
  splitNote: ([{ spans }]) =>
    `More steps exceed the limit of one request, so the context is read in ${spans.length} steps of up to ` +
    `${Math.max(...spans.map(([start, end]) => end - start))} tokens.`,
  caption(answer, state) {
    const worst = Math.max(...answer.layers.map(({ telescoping_error }) => telescoping_error ?? 0));
    return formula(
      "Lines: ‖ΔW‖_F after each step, as the context is read from its start to its end. Colour: the norm of the step, " +
        `‖ΔW after − ΔW before‖_F. The sum of the steps differs from the whole update by ${plain(worst, 2)} of its norm; ` +
        `${relativeTo(answer)}.${deviation(state, answer)}`,
    );
  },
  controls(_answer, state, act) {
    const choices = Object.entries(CHOICES.steps).map(([value, label]) => {
      const [id, checked] = [`steps-${value}`, state.steps === value];
      const on = { change: () => act.set({ steps: value }) };
      return h(
        "label",
        { for: id },
        h("input", { type: "radio", name: "steps", value, id, checked, on }),
        label,
      );
    });
    return h("div", { class: "choices", role: "group", "aria-label": "Steps" }, ...choices);
  },
  draw: (answer, state, width, act) => drawTrajectory(answer, state, width, act),
  table(answer) {
    const text = ({ span }) => spelled(answer.tokens.context.slice(...span));
    return {
      columns: ["layer", "position", "from", "to", "text", ...NUMBERS],
      rows: answer.layers.flatMap(({ layer, position, steps }) =>
        steps.map((step) => [
          layer,
          position,
          ...step.span,
          text(step),
          ...NUMBERS.map((name) => step[name]),
        ]),
      ),
    };
  },
};
