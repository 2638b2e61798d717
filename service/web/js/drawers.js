/** The drawers below a figure: the table of its numbers, and the curl command of its request. */

import { byId, copied, h } from "./dom.js";
import { exact } from "./numbers.js";

const ROWS_SHOWN = 400;

/**
 * A table of exact numbers.
 * @param {import("./figure.js").Table} table
 * @returns {Node[]}
 */
export function numbersOf({ columns, rows }) {
  const isText = columns.map((_, i) => typeof rows[0]?.[i] === "string");
  const line = (tag, values) => {
    const cell = (value, i) =>
      h(tag, { class: isText[i] ? "text" : null, scope: tag === "th" ? "col" : null }, exact(value));
    return h("tr", {}, ...values.map(cell));
  };
  const body = rows.slice(0, ROWS_SHOWN).map((row) => line("td", row));
  const table = h("table", {}, h("thead", {}, line("th", columns)), h("tbody", {}, ...body));
  if (rows.length <= ROWS_SHOWN) return [table];
  return [
    table,
    h("p", { class: "note" }, `The first ${ROWS_SHOWN} of ${rows.length} rows. The CSV file has all rows.`),
  ];
}

/**
 * A command, and the button that copies it.
 * @param {string} command
 * @returns {Node[]}
 */
export function commandOf(command) {
  const copy = async () => {
    const said = (await copied(command)) ? "Copied" : "Not copied. Select the text instead.";
    button.textContent = said;
    byId("spoken").textContent = said;
  };
  const button = h("button", { type: "button", class: "plain", on: { click: copy } }, "Copy");
  return [h("div", { class: "copy" }, button), h("pre", {}, h("code", {}, command))];
}
