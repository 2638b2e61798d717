/** A problem as text: title, detail, where in the request it is, and whether to retry. */

import { h } from "./dom.js";

/**
 * @param {import("./api.js").Problem} problem
 * @returns {Node[]}
 */
export function alertOf({ said, after }) {
  const wrong = (said.errors ?? []).map(({ pointer, message }) =>
    h("li", {}, "at ", h("code", {}, pointer || "/"), message === said.detail ? "" : `: ${message}`),
  );
  const fine = [
    said.code && `code ${said.code}`,
    said.request_id && `request ${said.request_id}`,
    said.retryable && `may succeed ${after ? `after ${after} s` : "later"}`,
  ];
  return [
    h("h2", {}, said.title),
    h("p", {}, said.detail),
    ...(wrong.length ? [h("ul", {}, ...wrong)] : []),
    h("p", { class: "fine" }, fine.filter(Boolean).join(" · ")),
  ];
}
