/** The card of adapters. It makes one when its own button is pressed, and lists the stored ones. */

import { address, ask, call } from "./api.js";
import { h } from "./dom.js";
import { LABELS } from "./examples.js";
import { save } from "./exports.js";
import { explainFields, readFields, writeFields } from "./fields.js";
import { Figure } from "./figure.js";
import { key } from "./keys.js";
import { Run } from "./run.js";
import { adapterView, fields, requestOf } from "./views/adapter.js";

/** @typedef {import("./state.js").State} State */

/** @param {number} count */
function bytes(count) {
  const [size, unit] = [
    [1e9, "GB"],
    [1e6, "MB"],
    [1e3, "kB"],
  ].find(([least]) => count >= least) ?? [1, "bytes"];
  return `${Number((count / size).toPrecision(3))} ${unit}`;
}

/**
 * A link to a file of an adapter. If there is a key, the page fetches the file, since a link cannot send the key.
 * @param {string} id
 * @param {string} file
 */
function linkOf(id, file) {
  const path = `v1/adapters/${id}/${file}`;
  const click = async (event) => {
    if (!key()) return;
    event.preventDefault();
    save(await (await call(path)).blob(), file);
  };
  return h("a", { href: address(path), download: file, on: { click } }, file);
}

/**
 * Connect the card.
 * @param {object} page
 * @param {() => State} page.question makes the typed inputs the question of the page, and returns it
 * @param {(question: Partial<State>) => void} page.example writes a question into the page and runs it
 * @param {() => void} page.changed called when an input changes
 */
export function adapterCard({ question, example, changed }) {
  const view = adapterView(linkOf);
  const figure = new Figure(view, /** @type {any} */ ({}));
  const said = h("p", { role: "status", class: "note" });
  const make = h("button", { type: "submit", class: "run" });
  const cancel = h("button", { type: "button", hidden: true, on: { click: () => dropped() } }, "Cancel");
  const fill = h("button", { type: "button", on: { click: () => example(LABELS) } }, "Fill in an example");
  const list = h("details", { class: "stored", hidden: true });
  fields.append(h("div", { class: "go" }, make, cancel, fill), said);
  figure.element.append(list);

  const run = new Run([figure], ({ ended, loading, problems, seconds }) => {
    cancel.hidden = ended;
    said.textContent = !ended
      ? loading
        ? "The service is loading its model …"
        : "Computing …"
      : problems.length
        ? "Refused."
        : `Answered in ${seconds.toFixed(2)} s.`;
    if (ended) refresh();
    changed();
  });
  function dropped() {
    run.cancel();
    cancel.hidden = true;
    said.textContent = "Cancelled.";
  }
  function explain() {
    explainFields(fields);
    const { kind } = readFields(fields);
    make.textContent = kind === "token" ? "Make the adapter" : "Fit the adapter";
    for (const part of fields.querySelectorAll("[data-kind]")) part.hidden = part.dataset.kind !== kind;
  }

  /** Show the list of stored adapters, or nothing if the service stores none. */
  async function refresh() {
    let stored;
    try {
      stored = await ask("v1/adapters");
    } catch {
      list.hidden = true; // the next request of the card says why
      return;
    }
    const row = ({ id, kind, name, created, bytes: size, usable }) => {
      const whose = () => h("span", { class: "unseen" }, ` ${name ?? id}`);
      const button = (label, click) =>
        h("button", { type: "button", class: "plain", on: { click } }, label, whose());
      const show = button("Show", () => {
        Object.assign(view, { path: `v1/adapters/${id}`, request: () => null });
        run.ask(/** @type {any} */ ({}), { afresh: true });
      });
      const remove = button("Delete", async () => {
        if (!sure) return confirms(true);
        try {
          await call(`v1/adapters/${id}`, { method: "DELETE" });
          said.textContent = `Deleted ${name ?? id}.`;
        } catch (problem) {
          said.textContent = problem.message;
        }
        await refresh();
      });
      let sure = false;
      const confirms = (on) => {
        sure = on;
        remove.firstChild.textContent = on ? "Delete for good?" : "Delete";
      };
      remove.addEventListener("blur", () => confirms(false));
      const what = [name ?? id.slice(0, 12), kind, created.slice(0, 16).replace("T", " "), bytes(size)];
      return h(
        "tr",
        {},
        ...what.map((text) => h("td", { class: "text" }, text)),
        h("td", {}, usable ? show : "for other weights", " ", remove),
      );
    };
    const head = h(
      "tr",
      {},
      ...["name", "kind", "created (UTC)", "size", ""].map((text) =>
        h("th", { scope: "col", class: "text" }, text),
      ),
    );
    list.hidden = stored.adapters.length === 0;
    const used = `${bytes(stored.bytes)} of ${bytes(stored.limit_bytes)}`;
    list.replaceChildren(
      h("summary", {}, `Stored adapters: ${stored.adapters.length}, ${used}`),
      h(
        "div",
        { class: "drawer" },
        h("table", {}, h("thead", {}, head), h("tbody", {}, ...stored.adapters.map(row))),
      ),
    );
  }

  fields.addEventListener("input", () => {
    explain();
    changed();
  });
  fields.addEventListener("submit", (event) => {
    event.preventDefault();
    Object.assign(view, { path: "v1/adapters", request: requestOf });
    run.ask(question(), { afresh: true });
  });
  return {
    figure,
    refresh,
    read: () => readFields(fields),
    write(state) {
      writeFields(fields, state);
      explain();
    },
    /** Mark the adapter if it does not belong to a state. */
    compare(state) {
      const old =
        view.request === requestOf && figure.shows && figure.shows !== JSON.stringify(requestOf(state));
      figure.element.classList.toggle("old", Boolean(old));
    },
  };
}
