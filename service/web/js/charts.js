/** Parts that charts share: row heights, layer labels, heat grids, a colour key. */

import { s, widthOf } from "./dom.js";
import { formulaSvg, plain } from "./numbers.js";
import { heat, inkOn } from "./palette.js";

/** @typedef {import("./tooltip.js").Mark} Mark */

/** Width in pixels below which a chart uses its phone layout. */
export const NARROW = 560;

/**
 * A chart's root element. Screen readers treat it as a picture; arrow keys move through its marks.
 * @param {number} width
 * @param {number} height
 * @param {string} label what it shows
 * @param {...unknown} children
 * @returns {SVGSVGElement}
 */
export function chart(width, height, label, ...children) {
  const tall = Math.ceil(height);
  return /** @type {SVGSVGElement} */ (
    s(
      "svg",
      {
        width,
        height: tall,
        viewBox: `0 0 ${width} ${tall}`,
        role: "img",
        tabindex: 0,
        "aria-label": `${label} Use the arrow keys to move through the values.`,
      },
      ...children,
    )
  );
}

/**
 * Height of a row in pixels: smaller for deep models, so that the chart fits a page.
 * @param {number} rows
 * @param {number} [most] height for a shallow model
 * @returns {number}
 */
export function rowHeight(rows, most = 32) {
  return rows <= 12 ? most : rows <= 26 ? Math.min(most, 22) : Math.min(most, 15);
}

/**
 * The label of a layer's row.
 * @param {number} layer
 * @param {boolean} narrow
 * @returns {string}
 */
export function layerName(layer, narrow) {
  return narrow ? `L${layer}` : `layer ${layer}`;
}

/**
 * Labels left of the rows. If rows are lower than a line of text, every second row has one.
 * @param {number[]} layers
 * @param {{x: number, y: number, height: number, narrow: boolean, chosen?: number}} place `x` is where they end
 */
export function layerLabels(layers, { x, y, height, narrow, chosen }) {
  const size = height < 18 ? 11 : 13;
  const label = (layer, i) => {
    const place = { x, y: y + (i + 0.5) * height, dy: "0.34em", "text-anchor": "end", "font-size": size };
    return s("text", { ...place, class: layer === chosen ? "strong" : "soft" }, layerName(layer, narrow));
  };
  const every = height < size ? 2 : 1;
  return s("g", {}, ...layers.map((layer, i) => i % every === 0 && label(layer, i)));
}

/**
 * A grid of coloured cells, each with its number if there is room.
 * @param {object} grid
 * @param {number} grid.x
 * @param {number} grid.y
 * @param {number} grid.cell width of one
 * @param {number} grid.height of one
 * @param {Array<Array<{value: number | null, text?: string, noise?: boolean, title: string, rows: Array<[string, unknown]>, pick?: () => void}>>} grid.cells row by row
 * @param {number} grid.max the value of the strongest colour
 * @returns {{element: SVGElement, marks: Mark[]}}
 */
export function heatGrid({ x, y, cell, height, cells, max }) {
  const marks = [];
  const gap = cell > 8 ? 1.5 : 0;
  const element = s("g", { class: cells[0]?.[0]?.pick ? "picks" : "" });
  cells.forEach((line, row) =>
    line.forEach(({ value, text, noise, title, rows, pick }, col) => {
      const [left, top] = [x + col * cell, y + row * height];
      const colour = value === null ? null : heat(max ? value / max : 0);
      const node = s("rect", {
        x: left + gap / 2,
        y: top + gap / 2,
        width: Math.max(1, cell - gap),
        height: height - gap,
        rx: Math.min(3, cell / 6),
      });
      if (colour === null || noise) {
        node.setAttribute("class", "track");
        node.setAttribute("stroke-dasharray", "2 2");
      } else node.setAttribute("fill", colour);
      element.append(node);
      const said = noise ? "noise" : text;
      if (said && height >= 16 && widthOf(said, "sans", 12) < cell - 6) {
        const ink = s(
          "text",
          {
            x: left + cell / 2,
            y: top + height / 2,
            dy: "0.34em",
            "text-anchor": "middle",
            "font-size": 12,
            "pointer-events": "none",
          },
          said,
        );
        if (colour !== null && !noise) ink.style.fill = inkOn(colour);
        element.append(ink);
      }
      marks.push({ node, title, rows, row, col, pick });
    }),
  );
  return { element, marks };
}

/**
 * The colour key: a strip from the smallest to the largest value.
 * @param {object} key
 * @param {number} key.x
 * @param {number} key.y
 * @param {number} key.width
 * @param {number} key.max
 * @param {string} key.label
 * @param {number} [key.min] smallest value, at most 0
 */
export function colourKey({ x, y, width, max, min = 0, label }) {
  const steps = 32;
  const strip = Array.from({ length: steps }, (_, i) => {
    const value = min + ((i + 0.5) / steps) * (max - min);
    return s("rect", {
      x: x + (i * width) / steps,
      y,
      width: width / steps + 0.5,
      height: 8,
      fill: heat(max ? value / max : 0),
    });
  });
  const under = { y: y + 22, class: "soft", "font-size": 12 };
  return s(
    "g",
    {},
    ...strip,
    s("text", { ...under, x }, plain(min, 2)),
    s("text", { ...under, x: x + width, "text-anchor": "end" }, plain(max, 2)),
    s(
      "text",
      { x: x + width + 10, y: y + 4, dy: "0.34em", class: "soft", "font-size": 12 },
      ...formulaSvg(label),
    ),
  );
}

/**
 * Move overlapping labels apart by the smallest distance.
 * @param {number[]} wanted vertical positions
 * @param {number} gap least distance
 * @param {number} top
 * @param {number} bottom
 * @returns {number[]}
 */
export function apart(wanted, gap, top, bottom) {
  const order = wanted.map((_, i) => i).sort((a, b) => wanted[a] - wanted[b]);
  const found = [...wanted];
  let last = top - gap;
  for (const i of order) last = found[i] = Math.max(found[i], last + gap);
  let next = bottom + gap;
  for (const i of order.reverse()) next = found[i] = Math.min(found[i], next - gap);
  return found;
}
