/** The tooltip: shows the mark under the pointer or at the arrow keys, with all digits. */

import { byId, h, s } from "./dom.js";
import { exact, formula } from "./numbers.js";

/**
 * @typedef {object} Mark
 * @property {Element} node in the chart
 * @property {string} title
 * @property {Array<[string, unknown]>} rows names and values
 * @property {number} row among the marks, for the arrow keys
 * @property {number} col
 * @property {() => void} [pick] called on Enter or a click
 */

/**
 * Show the values of a mark beside a point of the window.
 * @param {Mark} mark
 * @param {number} x
 * @param {number} y
 */
function show(mark, x, y) {
  const tip = byId("tip");
  const rows = mark.rows.flatMap(([name, value]) => [
    h("dt", {}, ...formula(name)),
    h("dd", {}, typeof value === "string" ? value : exact(value)),
  ]);
  tip.replaceChildren(h("strong", {}, ...formula(mark.title)), h("dl", {}, ...rows));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), innerWidth - width - 8);
  tip.style.left = `${left}px`;
  tip.style.top = `${y + 18 + height > innerHeight ? Math.max(8, y - height - 14) : y + 18}px`;
}

/** Hide the tooltip. */
function hide() {
  byId("tip").hidden = true;
}

/**
 * The next mark in the direction of a key.
 * @param {Mark[]} marks
 * @param {Mark} from
 * @param {string} key
 * @returns {Mark | undefined}
 */
function next(marks, from, key) {
  if (key === "Home") return marks[0];
  if (key === "End") return marks.at(-1);
  const along = key === "ArrowLeft" || key === "ArrowRight";
  const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  const distance = (mark) => (along ? sign * (mark.col - from.col) : sign * (mark.row - from.row));
  const aside = (mark) => (along ? Math.abs(mark.row - from.row) : Math.abs(mark.col - from.col));
  return marks
    .filter((mark) => distance(mark) > 0 && (!along || aside(mark) === 0))
    .sort((a, b) => distance(a) - distance(b) || aside(a) - aside(b))[0];
}

/**
 * Show the tooltip of a chart for the pointer, and for the arrow keys while the chart has the focus.
 * @param {SVGSVGElement} svg
 * @param {Mark[]} marks
 */
export function tells(svg, marks) {
  marks.forEach((mark, i) => mark.node.setAttribute("data-mark", String(i)));
  const under = (event) => marks[event.target.closest?.("[data-mark]")?.getAttribute("data-mark")];
  svg.addEventListener("pointermove", (event) => {
    const mark = under(event);
    if (mark) show(mark, event.clientX, event.clientY);
    else hide();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("click", (event) => {
    const mark = under(event);
    if (mark) show(mark, event.clientX, event.clientY);
    mark?.pick?.();
  });

  let here = -1;
  const cursor = s("rect", { class: "cursor", rx: 3 });
  const go = (mark) => {
    here = marks.indexOf(mark);
    const box = /** @type {SVGGraphicsElement} */ (mark.node).getBBox();
    for (const [name, value] of [
      ["x", box.x - 3],
      ["y", box.y - 3],
      ["width", box.width + 6],
      ["height", box.height + 6],
    ]) {
      cursor.setAttribute(name, String(value));
    }
    svg.append(cursor);
    cursor.scrollIntoView({ block: "nearest", inline: "nearest" });
    const at = mark.node.getBoundingClientRect();
    show(mark, at.right, at.bottom - 10);
    byId("spoken").textContent =
      `${mark.title}: ${mark.rows.map(([name, value]) => `${name} ${typeof value === "string" ? value : exact(value)}`).join(", ")}`;
  };
  svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      hide();
      cursor.remove();
    } else if (event.key === "Enter" && here >= 0) {
      marks[here].pick?.();
    } else if (/^(Arrow|Home|End)/.test(event.key) && marks.length) {
      const mark = here < 0 ? marks[0] : next(marks, marks[here], event.key);
      if (mark) go(mark);
      event.preventDefault();
    }
  });
  svg.addEventListener("blur", () => {
    hide();
    cursor.remove();
    here = -1;
  });
}
