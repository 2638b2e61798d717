/** An adapter: its inputs, its figures, and its files. */

import { h } from "../dom.js";
import { choice, field } from "../fields.js";
import { percent, plain, raised } from "../numbers.js";
import { at, baseline } from "../questions.js";
import { drawAdapter } from "./adapter_chart.js";

/** @typedef {import("../state.js").State} State */

/** @param {string} text */
const lines = (text) => text.split("\n").filter((line) => line.trim());

const RECIPES = { output_ridge: "ridge", mean_output: "mean output" };

/** The inputs. Those that only one kind has are hidden while the other kind is chosen. */
export const fields = /** @type {HTMLFormElement} */ (
  h(
    "form",
    { class: "fields", "aria-label": "Adapter" },
    choice("kind", "Kind", { static: "fitted to many", token: "exact for one" }),
    h(
      "div",
      { class: "texts", "data-kind": "static" },
      field("queries", "Fit to, one per line", { rows: 5 }),
      field("held_out", "Held out, one per line", {
        rows: 5,
        placeholder: "If empty, every third of the queries",
      }),
    ),
    h(
      "div",
      { class: "texts" },
      h("div", { "data-kind": "static" }, choice("recipe", "Recipe", RECIPES)),
      field("name", "Name in the list (optional)", { type: "text", maxlength: 128 }),
    ),
  )
);

/**
 * The request for an adapter.
 * @param {State} state
 */
export function requestOf(state) {
  const common = { kind: state.kind, context: state.context, ...(state.name && { name: state.name }) };
  if (state.kind === "token") {
    const form = state.form === "weights" ? "weights" : null; // null: bias where the checkpoint can hold it
    return { ...common, query: state.query, positions: at(state), baseline: baseline(state), form };
  }
  const held = lines(state.held_out);
  return {
    ...common,
    queries: lines(state.queries),
    ...(held.length && { held_out: held }),
    // A static adapter supports the named baselines only.
    baseline: state.baseline === "other" ? null : baseline(state),
    recipe: state.recipe,
  };
}

/**
 * The result in a sentence: its first word or number, and what follows it.
 * @param {any} answer
 * @returns {[string, ...Array<Node | string>]}
 */
function verdictOf({ exact, held_out, fit }) {
  if (exact) return ["Exact", "for this query behind this context alone; not made for any other query"];
  const fitted = `fitted to ${fit.k} queries, not exact; `;
  if (held_out === null)
    return [
      "Not measured",
      fitted,
      "fewer than eight are held out, so no figure can tell how it serves others",
    ];
  if (held_out.recovered === null)
    return ["Nothing to recover", fitted, "the context hardly changes the answers to the held-out queries"];
  const { recovered, beyond_constant, n } = held_out;
  const beyond = [h("b", {}, plain(beyond_constant)), " beyond a constant answer"];
  const nothing = ["nothing is left beyond a constant answer"];
  const rest = beyond_constant === null ? nothing : beyond;
  return [plain(recovered), `of the context’s effect recovered on ${n} held-out queries; `, ...rest];
}

/** @param {any} answer */
function headingOf(answer) {
  const [word, ...claim] = verdictOf(answer);
  const { exact, held_out } = answer;
  const holds = exact || (held_out?.recovered >= 0.5 && held_out.beyond_constant > 0);
  return h(
    "h3",
    { class: "verdict" },
    h("span", { class: "word", "data-verdict": holds ? "holds" : "fails" }, word),
    " ",
    h("span", { class: "claim" }, ...claim),
  );
}

/**
 * Further facts about an adapter, by term.
 * @param {any} answer
 * @returns {Array<[string, ...Array<Node | string>]>}
 */
function factsOf({ exact, baseline: run, position_shift, form, fit, held_out, in_sample, ...answer }) {
  const name = typeof run === "string" ? run : "the other context";
  const shift = position_shift ? `, position shift ${position_shift}` : "";
  const compared = exact ? " from the run with context" : " from the fitted patch";
  const free = held_out?.free_run ?? null;
  const missing = held_out && flat({ held_out, rivals: answer.rivals }).some(([, value]) => value === null);
  const known = {
    Use: [`baseline ${name}${shift}, form ${form}`],
    "File read again": ["relative error of the logits ", ...raised(answer.verified), compared],
    Fit: fit && [
      `${fit.k} queries, ${fit.rows} rows, ${fit.keep_rows} rows to keep, ${plain(fit.seconds)} s`,
    ],
    "Free run": free !== null && [
      `${percent(free)} of the answers’ tokens are those with the context, when each run reads its own`,
    ],
    "On the fitted queries": in_sample && [
      `recovered ${plain(in_sample.recovered)}. It is close to 1 for any fit: do not judge by it.`,
    ],
    None: missing && ["Where a figure is “none”, the KL that it divides by is below 1e−9 nats per query."],
    Condition: answer.condition > 1 && ["σ_max / σ_min of the patched rows ", ...raised(answer.condition)],
    "Loads in": answer.peft_only && ["PEFT. vLLM loads neither a bias nor the gain of a norm."],
  };
  return Object.entries(known).filter(([, said]) => said);
}

/**
 * Every number of an answer, by its path.
 * @param {any} value
 * @param {string} [path]
 * @returns {unknown[][]}
 */
function flat(value, path = "") {
  if (value === null || typeof value !== "object") return [[path, value]];
  return Object.entries(value).flatMap(([name, part]) => flat(part, path ? `${path}.${name}` : name));
}

/**
 * The view of an adapter.
 * @param {(id: string, file: string) => Element} link downloads a file
 * @returns {import("../figure.js").View}
 */
export const adapterView = (link) => ({
  id: "adapter",
  title: "Export it: an adapter",
  path: "v1/adapters",
  fields,
  request: requestOf,
  caption: ({ exact, name, id, kind }) => [
    h("b", {}, name ?? id.slice(0, 12)),
    exact
      ? `, a ${kind} adapter: the update of every layer as LoRA weights for PEFT.`
      : ", a static adapter: recovered = 1 − ΣKL(with context ‖ adapter) / ΣKL(with context ‖ without), at the first token of " +
        "the answer. It is not the ΔW of the other figures: it is a fit to the outputs of the blocks.",
  ],
  draw(answer, _state, width) {
    const { svg, marks } = drawAdapter(answer, width);
    const terms = factsOf(answer).flatMap(([term, said]) => [h("dt", {}, term), h("dd", {}, ...said)]);
    const files = answer.files.map((file) => link(answer.id, file));
    const element = h(
      "div",
      { class: "adapter" },
      headingOf(answer),
      svg,
      h("dl", { class: "facts" }, ...terms),
      h("p", { class: "files" }, "Files for PEFT ", ...files),
    );
    return { element, svg, marks };
  },
  table: ({ model: _, files: __, ...answer }) => ({ columns: ["figure", "value"], rows: flat(answer) }),
});
