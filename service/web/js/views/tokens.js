/** The tokens of context and query. A click on a token of the query chooses its position. */

import { h } from "../dom.js";
import { exact } from "../numbers.js";

/** @param {{id: number, text: string, special?: boolean, bytes?: string}} token */
function contents({ text, bytes }) {
  const shown = bytes
    ? `0x${[...atob(bytes)].map((c) => c.charCodeAt(0).toString(16).padStart(2, "0")).join("")}`
    : text;
  return shown
    .split(/( |\n)/)
    .filter(Boolean)
    .map((part) =>
      part === " "
        ? h("span", { class: "gap" }, "·")
        : part === "\n"
          ? h("span", { class: "gap" }, "↵")
          : part,
    );
}

/** @type {import("../figure.js").View} */
export const tokens = {
  id: "tokens",
  title: "What was read",
  path: "v1/tokenize",
  request: ({ context, query }) => ({ context, query }),
  caption: ({ border_merges, together }) => [
    border_merges
      ? `Context and query are tokenised separately. As one text they would give other tokens, ${together.tokens.length} in all.`
      : "Context and query are tokenised separately. As one text they would give the same tokens.",
    " Choose a token of the query to show every figure at its position.",
  ],
  draw(answer, state, _width, act) {
    const { context, query } = answer;
    const chosen = state.position ?? query.tokens.length - 1;
    const title = ({ id, offset }, position) =>
      `id ${id}, position ${position}${offset ? `, characters ${offset[0]} to ${offset[1]}` : ""}`;
    const count = (n) => `${n} token${n === 1 ? "" : "s"}`;
    const read = context.tokens.map((token, i) =>
      h(
        "li",
        {},
        h(
          "span",
          { class: `chip${token.special ? " special" : ""}`, title: title(token, i) },
          ...contents(token),
        ),
      ),
    );
    const asked = query.tokens.map((token, i) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            class: `chip${token.special ? " special" : ""}`,
            title: title(token, context.tokens.length + i),
            "aria-pressed": String(i === chosen),
            on: { click: () => act.place(i) },
          },
          ...contents(token),
        ),
      ),
    );
    return {
      element: h(
        "div",
        { class: "tokens" },
        h(
          "div",
          {},
          h("h3", {}, "Context ", h("span", {}, count(read.length))),
          h("ol", { tabindex: 0, "aria-label": "Tokens read first" }, ...read),
        ),
        h(
          "div",
          {},
          h("h3", {}, "Query ", h("span", {}, count(asked.length))),
          h("ol", { "aria-label": "Tokens asked about" }, ...asked),
        ),
      ),
    };
  },
  table: ({ context, query }) => ({
    columns: ["part", "index", "id", "text", "special", "bytes"],
    rows: [
      ["context", context],
      ["query", query],
    ].flatMap(([part, { tokens: list }]) =>
      list.map((token, i) => [
        part,
        i,
        token.id,
        token.text,
        exact(token.special ?? false),
        token.bytes ?? "",
      ]),
    ),
  }),
};
