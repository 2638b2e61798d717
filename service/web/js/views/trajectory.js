/** The trajectory of ΔW as the context is read: one line per layer, step norms under the tokens. */

import { h } from "../dom.js";
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
      const on = { change: () => act.walk(value) };
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
