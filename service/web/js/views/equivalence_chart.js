/** The chart of equivalence checks: one row per layer, with its errors on a logarithmic axis. */

import { NARROW, chart, layerLabels, rowHeight } from "../charts.js";
import { h, s, widthOf } from "../dom.js";
import { plain, powerOfTen, times, timesShort } from "../numbers.js";

const d3 = globalThis.d3;
const EPSILON = { float32: 2 ** -23, float64: 2 ** -52 };
const HIGHEST = 10;
const TOP = 30;
const RIGHT = 10;
const EXACT_NAME = "Δh at attention, no ΔW: exact too";

/** The label and the glyph of each control. */
const CONTROLS = {
  without_bias: ["ΔW without Δh", d3.symbolTriangle2],
  without_weight: ["Δh without ΔW", d3.symbolSquare2],
  random_update: ["random ΔW of equal norm", d3.symbolTimes],
  shuffled_context: ["update of the shuffled context", d3.symbolDiamond2],
  free_stream_patches: ["all free-stream patches at once", d3.symbolAsterisk],
};

/** @param {string} name of a control */
const nameOf = (name) => CONTROLS[name]?.[0] ?? name;

/** @param {string} name of a control */
function glyph(name) {
  return s("path", { d: d3.symbol(CONTROLS[name]?.[1] ?? d3.symbolPlus, 42)(), class: "control" });
}

/** The glyph of the run that changes no weight and is exact. It is no control, since it cannot fail. */
function exactGlyph() {
  return s("path", { d: d3.symbol(d3.symbolCircle, 62)(), class: "exact" });
}

/**
 * All numbers of a check that the chart shows.
 * @param {any} check
 * @returns {number[]}
 */
function shown(check) {
  const { relative_error, tolerance, unpatched_relative_error, bias_only_relative_error, controls } = check;
  const plainly = [relative_error, tolerance, unpatched_relative_error, bias_only_relative_error];
  return [...plainly, ...Object.values(controls ?? {})].filter((value) => value !== null && value !== undefined);
}

/**
 * The whole decades that contain all values.
 * @param {number[]} values
 * @returns {[number, number]} the lowest and the highest power of ten, as exponents
 */
function decadesAround(values) {
  const exponents = values.filter((value) => value > 0).map(Math.log10);
  return [Math.floor(Math.min(...exponents) - 0.15), Math.ceil(Math.max(Math.log10(HIGHEST), ...exponents))];
}

/**
 * All numbers of a row, for the pointer and the arrow keys.
 * @param {any} check
 * @returns {Array<[string, unknown]>}
 */
function facts(check) {
  const reason = (name) => `none: ${check.control_reasons?.[name] ?? "not formed"}`;
  return [
    ["patched", check.relative_error],
    ["tolerance", check.tolerance],
    ["unpatched", check.unpatched_relative_error],
    ["unpatched / patched", check.improvement],
    ["‖expected‖", check.magnitude],
    ...Object.entries(check.controls ?? {}).map(([name, value]) => [nameOf(name), value ?? reason(name)]),
    [EXACT_NAME, check.bias_only_relative_error],
  ];
}

/**
 * The legend: glyphs and their labels, wrapped to the width.
 * @param {string[]} names of controls
 * @param {number} width
 * @param {number} y
 */
function legend(names, width, y) {
  const group = s("g", {});
  const items = [
    ["patched", s("circle", { r: 5, class: "dot" })],
    ["tolerance", s("path", { d: "M0-7V7", class: "tolerance" })],
    ["unpatched", s("circle", { r: 5, class: "unpatched" })],
    ...names.map((name) => [nameOf(name), glyph(name)]),
    [EXACT_NAME, exactGlyph()],
  ];
  let [x, line] = [0, 0];
  for (const [label, mark] of items) {
    const needed = 20 + widthOf(label, "sans", 12);
    if (x > 0 && x + needed > width) [x, line] = [0, line + 1];
    const middle = y + line * 20;
    mark.setAttribute("transform", `translate(${x + 8} ${middle})`);
    group.append(mark, s("text", { x: x + 20, y: middle, dy: "0.34em", class: "soft small" }, label));
    x += needed + 16;
  }
  return { element: group, height: (line + 1) * 20 };
}

/**
 * A note for each control that could not be formed, with its reason.
 * @param {any[]} checks
 * @returns {string[]}
 */
function unformed(checks) {
  const layers = new Map();
  for (const { layer, control_reasons } of checks) {
    for (const [name, reason] of Object.entries(control_reasons ?? {})) {
      const said = `${nameOf(name)}: ${reason}`;
      layers.set(said, [...(layers.get(said) ?? []), layer]);
    }
  }
  const where = (found) => (found.length === checks.length ? "any layer" : `layer ${found.join(", ")}`);
  return [...layers].map(([said, found]) => `Not formed at ${where(found)} – ${said}.`);
}

/**
 * Grid lines at the decades, and the axis below them.
 * @param {{at: (value: number) => number, range: [number, number], left: number, right: number, bottom: number, narrow: boolean}} frame
 */
function axis({ at, range: [lowest, highest], left, right, bottom, narrow }) {
  const decades = d3.range(lowest, highest + 1);
  const every = Math.ceil((decades.length * (narrow ? 34 : 44)) / (right - left));
  const label = (exponent) => {
    const place = { x: at(10 ** exponent), y: bottom + 19, "text-anchor": "middle", "font-size": 12.5 };
    return s("text", { ...place, class: "soft" }, ...powerOfTen(exponent));
  };
  return {
    grid: decades.map((exponent) =>
      s("path", { class: "grid", d: `M${at(10 ** exponent)} ${TOP}V${bottom}` }),
    ),
    axis: [
      s("path", { class: "axis", d: `M${left} ${bottom}H${right}` }),
      ...decades.map((exponent) => s("path", { class: "axis", d: `M${at(10 ** exponent)} ${bottom}v5` })),
      ...decades.filter((exponent) => exponent % every === 0).map(label),
    ],
  };
}

/**
 * The line from the patched to the unpatched error, with the ratio of the two in its middle.
 * @param {any} check
 * @param {(value: number) => number} at
 * @param {number} y
 * @param {boolean} short whether there is little room
 */
function span(check, at, y, short) {
  const { relative_error, unpatched_relative_error, tolerance, improvement } = check;
  if (relative_error === null || unpatched_relative_error === null) return [];
  const [from, to] = [at(relative_error), at(unpatched_relative_error)];
  const said = short ? timesShort(improvement) : times(improvement);
  const middle = (at(tolerance) + to) / 2;
  const half = widthOf(said, "sans", 13) / 2 + 8;
  const fits = middle + half < to - 12 && middle - half > at(tolerance) + 4;
  const way = fits ? `M${from} ${y}H${middle - half}M${middle + half} ${y}H${to}` : `M${from} ${y}H${to}`;
  const still = { "pointer-events": "none" };
  const line = s("path", { class: "span", d: way, ...still });
  if (!fits) return [line];
  return [
    line,
    s("text", { x: middle, y, dy: "0.34em", "text-anchor": "middle", "font-size": 13, ...still }, said),
  ];
}

/**
 * One layer's row: the errors on a line, the controls and the exact run below it.
 * @param {any} check
 * @param {{at: (value: number) => number, left: number, right: number, top: number, height: number, narrow: boolean, row: number}} place
 */
function layerRow(check, { at, left, right, top, height, narrow, row }) {
  const low = height < 20;
  const lane = low ? 0 : height * 0.36;
  const y = top + (height - lane) / 2;
  const ground = s("rect", { x: left, y: top, width: right - left, height, fill: "transparent" });
  const marks = [
    { node: ground, title: `layer ${check.layer}: ${check.verdict}`, rows: facts(check), row, col: 0 },
  ];
  const put = (node, name, value, { down = 0, more = [] } = {}) => {
    if (value === null || value === undefined) return [];
    node.setAttribute("transform", `translate(${at(value)} ${y + down})`);
    const title = `layer ${check.layer}: ${name}`;
    marks.push({ node, title, rows: [["relative error", value], ...more], row, col: at(value) });
    return [node];
  };
  const edge = `M0${top + 1 - y}V${top + height - 1 - y}`;
  const zone = { class: "zone", x: left, y: top + 1, width: at(check.tolerance) - left, height: height - 2 };
  const ratio = { more: [["unpatched / patched", check.improvement]] };
  const elements = [
    ground,
    ...span(check, at, y, narrow || low),
    ...put(s("path", { d: edge, class: "tolerance" }), "tolerance", check.tolerance),
    ...Object.entries(check.controls ?? {}).flatMap(([name, value]) =>
      put(glyph(name), nameOf(name), value, { down: lane }),
    ),
    ...put(exactGlyph(), EXACT_NAME, check.bias_only_relative_error, { down: lane }),
    ...put(
      s("circle", { r: low ? 4 : 5.5, class: "unpatched" }),
      "unpatched",
      check.unpatched_relative_error,
    ),
    ...put(
      s("circle", { r: low ? 4 : 6, class: check.holds ? "dot" : "dot fails" }),
      "patched",
      check.relative_error,
      ratio,
    ),
  ];
  return { zone: s("rect", zone), elements, marks };
}

/**
 * The labels above the first row's marks and above the dashed line at ε.
 * @param {any} answer
 * @param {(value: number) => number} at
 * @param {boolean} narrow
 */
function headings({ checks: [first], precision }, at, narrow) {
  const over = (value, text, kind, anchor, dx = 0) => {
    const place = { x: at(value ?? 1) + dx, y: TOP - 10, "text-anchor": anchor, "font-size": 13 };
    return value === null ? [] : [s("text", { ...place, class: kind }, text)];
  };
  return [
    ...over(first.relative_error, "patched", "accent strong", narrow ? "middle" : "start"),
    ...over(first.tolerance, "tolerance", "", "start"),
    ...over(first.unpatched_relative_error, "unpatched", "strong", "end"),
    ...(narrow ? [] : over(EPSILON[precision], `ε of ${precision}`, "soft small", "end", -5)),
  ];
}

/**
 * The chart of an answer's checks.
 * @param {any} answer
 * @param {number} width
 * @returns {import("../figure.js").Drawn}
 */
export function drawChecks(answer, width) {
  const { checks, precision } = answer;
  const narrow = width < NARROW;
  const [left, right] = [narrow ? 30 : 62, width - RIGHT];
  const height = rowHeight(checks.length, 38);
  const bottom = TOP + checks.length * height;
  const values = checks.flatMap(shown);
  const range = decadesAround([EPSILON[precision], ...values]);
  const scale = d3
    .scaleLog(
      range.map((exponent) => 10 ** exponent),
      [left, right],
    )
    .clamp(true);
  const at = (value) => scale(Math.max(value, 10 ** range[0]));
  const rows = checks.map((check, row) =>
    layerRow(check, { at, left, right, top: TOP + row * height, height, narrow, row }),
  );
  const decades = axis({ at, range, left, right, bottom, narrow });
  const names = [...new Set(checks.flatMap(({ controls }) => Object.keys(controls ?? {})))];
  const key = legend(names, width, bottom + 60);
  const said = narrow
    ? "relative error"
    : "relative error of the block’s output, ‖actual − expected‖ / ‖expected‖";
  const read = checks.map(
    (check) =>
      `Layer ${check.layer}: patched ${plain(check.relative_error, 2)}, tolerance ${plain(check.tolerance, 2)}, ` +
      `unpatched ${plain(check.unpatched_relative_error, 2)}.`,
  );
  const svg = chart(
    width,
    bottom + 54 + key.height,
    `Relative errors of ${checks.length} layers on a logarithmic axis. ${read.join(" ")}`,
    ...decades.grid,
    ...rows.map(({ zone }) => zone),
    s("path", { class: "dash", d: `M${at(EPSILON[precision])} ${TOP - 6}V${bottom}` }),
    ...rows.flatMap(({ elements }) => elements),
    ...decades.axis,
    ...headings(answer, at, narrow),
    s("text", { x: right, y: bottom + 38, "text-anchor": "end", class: "soft small" }, said),
    key.element,
    layerLabels(
      checks.map(({ layer }) => layer),
      { x: left - 10, y: TOP, height, narrow },
    ),
  );
  const notes = [
    ...unformed(checks),
    ...(values.includes(0) ? ["An error of 0 is drawn at the left edge."] : []),
  ];
  const element = h("div", {}, svg, ...notes.map((note) => h("p", { class: "note" }, note)));
  return { element, svg, marks: rows.flatMap(({ marks }) => marks) };
}
