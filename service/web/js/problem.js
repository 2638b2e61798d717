/** A problem as text: title, detail, where in the request it is, and whether to retry. */

import { h } from "./dom.js";

/** What to do on this page about a problem whose detail speaks to programs. */
const ADVICE = {
  never_fits: "This page cannot ask for less. Shorten the context or the query.",
  body_too_large: "Shorten the context or the query.",
};

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
    ...(ADVICE[said.code] ? [h("p", {}, ADVICE[said.code])] : []),
    ...(wrong.length ? [h("ul", {}, ...wrong)] : []),
    h("p", { class: "fine" }, fine.filter(Boolean).join(" · ")),
  ];
}
