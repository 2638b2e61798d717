/** Connects the form, the figures and the address of the page. */

import { adapterCard } from "./adapter_card.js";
import { ask } from "./api.js";
import { byId, copied, h } from "./dom.js";
import { explainFields, readFields, writeFields } from "./fields.js";
import { Figure } from "./figure.js";
import * as form from "./form.js";
import { askForKey, keyDialog } from "./keys.js";
import { alertOf } from "./problem.js";
import { Run } from "./run.js";
import { fromFragment, sameQuestion, toFragment } from "./state.js";
import { themeButton } from "./theme.js";
import { attribution } from "./views/attribution.js";
import { equivalence } from "./views/equivalence.js";
import { generate } from "./views/generate.js";
import { nextTokens } from "./views/next_tokens.js";
import { tokens } from "./views/tokens.js";
import { trajectory } from "./views/trajectory.js";
import { updates } from "./views/updates.js";

/** @typedef {import("./state.js").State} State */

/** The state whose results are shown or being computed. @type {State} */
let asked = fromFragment(location.hash);

const act = {
  place: (position) => start({ ...asked, position }),
  look: (layer) => {
    asked = { ...asked, layer };
    remember();
    for (const figure of figures) figure.redraw(asked);
  },
  set: (fields) => start({ ...asked, ...fields }),
};
const figures = [equivalence, nextTokens, generate, tokens, updates, trajectory, attribution].map(
  (view) => new Figure(view, act),
);
const run = new Run(figures, progressed);
const adapter = adapterCard({
  question() {
    if (!sameQuestion(typed(), asked)) startForm();
    asked = { ...asked, ...adapter.read() };
    remember();
    return asked;
  },
  example: runExample,
  changed: compare,
});
const redraw = () => [...figures, adapter.figure].forEach((figure) => figure.redraw());

/** The state with what the forms' fields hold. */
const typed = () => ({ ...asked, ...form.read(), ...adapter.read() });

/**
 * Write a state into every form.
 * @param {State} state
 */
function write(state) {
  form.write(state);
  writeFields(generate.fields, state);
  adapter.write(state);
}

/** Write the state into the address without a history entry. */
function remember() {
  history.replaceState(null, "", `#${toFragment(asked)}`);
}

/** Mark the results as stale if they do not belong to the form's fields. */
function compare() {
  const stale = !sameQuestion(typed(), asked);
  adapter.compare(typed());
  byId("stale").hidden = !stale;
  byId("results").classList.toggle("stale-results", stale);
}

/**
 * Send the requests of a state.
 * @param {State} state
 * @param {{afresh?: boolean, step?: boolean}} [how] `step` adds a history entry
 */
function start(state, { afresh = false, step = false } = {}) {
  asked = state;
  if (step && `#${toFragment(state)}` !== location.hash) history.pushState(null, "", `#${toFragment(state)}`);
  else remember();
  compare();
  run.ask(state, { afresh });
}

/** Send the requests of the form's fields. */
function startForm() {
  const state = typed();
  const same = state.query === asked.query;
  start({ ...state, position: same ? asked.position : null }, { afresh: true, step: true });
}

/**
 * Write a question into the forms, and run it.
 * @param {Partial<State>} question
 */
function runExample(question) {
  write({ ...typed(), ...question });
  start({ ...typed(), position: null, layer: null }, { afresh: true, step: true });
}

/** @param {number} answers */
const counted = (answers) => `${answers} answer${answers === 1 ? "" : "s"}`;

/**
 * Show the progress of a question.
 * @param {import("./run.js").Progress} progress
 */
function progressed({ done, all, loading, ended, problems, seconds }) {
  const bar = /** @type {HTMLProgressElement} */ (byId("progress"));
  bar.max = all;
  bar.value = done;
  byId("cancel").hidden = ended;
  byId("results").setAttribute("aria-busy", String(!ended));
  const failed = problems.length ? `, ${problems.length} refused,` : "";
  byId("said").textContent = loading
    ? "The service is loading its model …"
    : ended
      ? `${counted(all - problems.length)}${failed} in ${seconds.toFixed(2)} s`
      : `${done} of ${all} answers …`;
  const shared =
    ended && problems.length > 1 && new Set(problems.map(({ said }) => said.code + said.detail)).size === 1;
  const box = byId("problem");
  for (const { element } of figures) element.hidden = shared && element.dataset.state === "failed";
  box.hidden = !shared;
  if (!shared) return;
  const locked = problems[0].said.status === 401 || problems[0].said.status === 403;
  const retry = h(
    "button",
    { type: "button", on: { click: locked ? askForKey : () => start(asked, { afresh: true }) } },
    locked ? "Enter a key" : "Try again",
  );
  box.replaceChildren(...alertOf(problems[0]), retry);
  box.scrollIntoView({ block: "nearest" });
}

/** Show which model the service has loaded. */
async function introduce() {
  try {
    const { model, n_layers, d_model, self_check } = await ask("v1/model");
    byId("resident").textContent =
      `${model.id}: ${n_layers} layers, ${d_model} wide, ${model.dtype} on ${model.device}; self-check ${self_check.verdict}`;
  } catch {
    byId("resident").textContent = "";
  }
}

byId("figures").append(...[...figures, adapter.figure].map(({ element }) => element));
form.listen({
  changed: compare,
  run: startForm,
  example: runExample,
});
generate.fields.addEventListener("change", () => {
  explainFields(generate.fields);
  if (generate.fields.reportValidity()) act.set(readFields(generate.fields));
});
generate.fields.addEventListener("submit", (event) => event.preventDefault());
write(asked);
byId("run-again").addEventListener("click", startForm);
byId("cancel").addEventListener("click", () => {
  run.cancel();
  byId("cancel").hidden = true;
  byId("results").setAttribute("aria-busy", "false");
  byId("said").textContent = "Cancelled.";
});
byId("share").addEventListener("click", async () => {
  const done = await copied(location.href);
  byId("said").textContent = done
    ? "Link copied. It opens this page with the current question."
    : "Not copied. The address bar has the link.";
});
byId("skip").addEventListener("click", (event) => {
  event.preventDefault();
  byId("results").focus();
});
keyDialog(() => {
  introduce();
  adapter.refresh();
  start(asked, { afresh: true });
});
themeButton(byId("theme"), byId("theme-name"), redraw);
window.addEventListener("popstate", () => {
  asked = fromFragment(location.hash);
  write(asked);
  start(asked);
});
document.fonts?.ready.then(redraw);
introduce();
adapter.refresh();
start(asked);
