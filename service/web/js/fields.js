/** Inputs for fields of the state. Each input has the name of its field. */

import { h } from "./dom.js";
import { CHOICES, NUMBERS } from "./state.js";

/** @typedef {import("./state.js").State} State */

/**
 * Radio buttons, described by an element with the id `NAME-note`.
 * @param {string} name
 * @param {Record<string, string>} labels by value
 */
export function radios(name, labels) {
  return Object.entries(labels).map(([value, label]) => {
    const id = `${name}-${value}`;
    const input = h("input", { type: "radio", name, value, id, "aria-describedby": `${name}-note` });
    return h("label", { for: id }, input, label);
  });
}

/**
 * A group of radio buttons with its legend and note.
 * @param {string} name
 * @param {string} legend
 * @param {Record<string, string>} labels by value
 */
export function choice(name, legend, labels) {
  return h(
    "fieldset",
    {},
    h("legend", {}, legend),
    h("div", { class: "choices" }, ...radios(name, labels)),
    h("p", { class: "note", id: `${name}-note` }),
  );
}

/**
 * An input or a text area with its label.
 * @param {string} name
 * @param {string} label
 * @param {Record<string, unknown>} [attributes] a number's limits by default; `rows` makes it a text area
 */
export function field(name, label, attributes = { type: "number", ...NUMBERS[name] }) {
  const tag = attributes.rows ? "textarea" : "input";
  const input = h(tag, { id: name, name, autocomplete: "off", spellcheck: "false", ...attributes });
  return h("div", { class: "labelled" }, h("label", { class: "field", for: name }, label), input);
}

/** @param {HTMLFormElement} form */
const namesOf = (form) => [...new Set([...form.elements].map(({ name }) => name).filter(Boolean))];

/**
 * The values of a form's fields.
 * @param {HTMLFormElement} form
 * @returns {Partial<State>}
 */
export function readFields(form) {
  const value = (name) => /** @type {HTMLInputElement} */ (form.elements.namedItem(name)).value;
  return Object.fromEntries(
    namesOf(form).map((name) => [name, NUMBERS[name] ? Number(value(name)) : value(name)]),
  );
}

/**
 * Write a state into a form's fields.
 * @param {HTMLFormElement} form
 * @param {State} state
 */
export function writeFields(form, state) {
  for (const name of namesOf(form)) {
    /** @type {HTMLInputElement} */ (form.elements.namedItem(name)).value = String(state[name]);
  }
  explainFields(form);
}

/**
 * Update the notes of a form's choices.
 * @param {HTMLFormElement} form
 */
export function explainFields(form) {
  const chosen = readFields(form);
  for (const [name, choices] of Object.entries(CHOICES)) {
    const note = form.querySelector(`#${name}-note`);
    if (note) note.textContent = choices[chosen[name]];
  }
}
