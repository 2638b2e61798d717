/** The verdict: each block's error with its patch, beside what must fail, on one logarithmic axis. */

import { NARROW, chart, layerLabels, rowHeight } from "../charts.js";
import { h, s, widthOf } from "../dom.js";
import { plain, powerOfTen, raised, times, timesShort } from "../numbers.js";
import { placed, relativeTo } from "../questions.js";
import { quoted } from "../tokens_text.js";

const d3 = globalThis.d3;
const EPSILON = { float32: 2 ** -23, float64: 2 ** -52 };
const HIGHEST = 10;

/** Controls by their name: what they are, and their glyph. */
const CONTROLS = {
  without_bias: ["ΔW without Δh", d3.symbolTriangle2],
  without_weight: ["Δh without ΔW", d3.symbolSquare2],
  random_update: ["random ΔW of equal norm", d3.symbolTimes],
  shuffled_context: ["update of the shuffled context", d3.symbolDiamond2],
  bias_only_at_attention: ["Δh at attention, no ΔW: exact too", d3.symbolCircle],
  free_stream_patches: ["all free-stream patches at once", d3.symbolAsterisk],
};
const EXACT = "bias_only_at_attention";

/** @param {any} answer */
function worst(answer) {
  const errors = answer.checks.filter(({ relative_error }) => relative_error !== null);
  return errors.sort((a, b) => b.relative_error / b.tolerance - a.relative_error / a.tolerance)[0] ?? answer.checks[0];
}

/** @param {any} check every number of it that the chart shows */
function shown({ relative_error, tolerance, unpatched_relative_error, controls }) {
  return [relative_error, tolerance, unpatched_relative_error, ...Object.values(controls ?? {})].filter((value) => value !== null);
}

/** @param {any} check */
function facts(check) {
  const controls = Object.entries(check.controls ?? {}).map(([name, value]) => [CONTROLS[name]?.[0] ?? name, value ?? `none: ${check.control_reasons?.[name] ?? "not formed"}`]);
  return [["patched", check.relative_error], ["tolerance", check.tolerance], ["unpatched", check.unpatched_relative_error], ["unpatched / patched", check.improvement], ["‖expected‖", check.magnitude], ...controls];
}

/**
 * Glyphs and their names, in as many lines as they need.
 * @param {string[]} names
 * @param {number} width
 * @param {number} y
 */
function legend(names, width, y) {
  const group = s("g", {});
  let [x, line] = [0, 0];
  const items = [["patched", s("circle", { r: 5, class: "dot" })], ["tolerance", s("path", { d: "M0-7V7", class: "tolerance" })], ["unpatched", s("circle", { r: 5, class: "unpatched" })],
    ...names.map((name) => [CONTROLS[name]?.[0] ?? name, glyph(name)])];
  for (const [label, mark] of items) {
    const needed = 20 + widthOf(label, "sans", 12) + 16;
    if (x > 0 && x + needed - 16 > width) [x, line] = [0, line + 1];
    mark.setAttribute("transform", `translate(${x + 8} ${y + line * 20})`);
    group.append(mark, s("text", { x: x + 20, y: y + line * 20, dy: "0.34em", class: "soft", "font-size": 12 }, label));
    x += needed;
  }
  return { element: group, height: (line + 1) * 20 };
}

/**
 * Which controls could not be formed, and why.
 * @param {any[]} checks
 * @returns {string[]}
 */
function unformed(checks) {
  const layers = new Map();
  for (const { layer, control_reasons } of checks) {
    for (const [name, reason] of Object.entries(control_reasons ?? {})) {
      const said = `${CONTROLS[name]?.[0] ?? name}: ${reason}`;
      layers.set(said, [...(layers.get(said) ?? []), layer]);
    }
  }
  return [...layers].map(([said, where]) => `Not formed at ${where.length === checks.length ? "any layer" : `layer ${where.join(", ")}`} – ${said}.`);
}

/** @param {string} name of a control */
function glyph(name) {
  return s("path", { d: d3.symbol(CONTROLS[name]?.[1] ?? d3.symbolPlus, name === EXACT ? 62 : 42)(), class: name === EXACT ? "control exact" : "control" });
}

/** @type {import("../figure.js").View} */
export const equivalence = {
  id: "equivalence",
  title: "Does the patch replace the context?",
  path: "v1/equivalence-checks",
  request: (state) => ({ ...placed(state), scope: "block", precision: state.precision, controls: true }),
  heading(answer) {
    const check = worst(answer);
    const least = answer.checks.map(({ improvement }) => improvement).filter((value) => value !== null).sort((a, b) => a - b)[0] ?? null;
    const claims = {
      holds: ["error ", h("b", {}, ...raised(check.relative_error)), ", ", h("b", {}, times(least)), " below the unpatched"],
      fails: ["error ", h("b", {}, ...raised(check.relative_error)), ` at layer ${check.layer}, above the tolerance `, ...raised(check.tolerance)],
      vacuous: ["the context changes too little to tell: unpatched error ", ...raised(check.unpatched_relative_error), ", tolerance ", ...raised(check.tolerance)],
    };
    const word = answer.verdict[0].toUpperCase() + answer.verdict.slice(1);
    return h("span", { class: "verdict" }, h("span", { class: "word", "data-verdict": answer.verdict }, word), " ", h("span", { class: "claim" }, ...claims[answer.verdict]));
  },
  caption(answer) {
    const { layer, position } = worst(answer);
    return [`Each block with ΔW and Δh in place against the block with the context: ‖actual − expected‖ / ‖expected‖ of its output, worst at layer ${layer}, after ${quoted(answer.tokens.query[position])}; ${relativeTo(answer)}. Controls must be far worse, but for the one that is exact too.`];
  },
  draw(answer, _state, width) {
    const narrow = width < NARROW;
    const { checks } = answer;
    const names = [...new Set(checks.flatMap(({ controls }) => Object.keys(controls ?? {})))];
    const epsilon = EPSILON[answer.precision];
    const lowest = Math.min(epsilon, ...checks.flatMap(shown).filter((value) => value > 0));
    const [left, right, top] = [narrow ? 30 : 62, 10, 30];
    const height = rowHeight(checks.length, 38);
    const lane = height > 18 ? height * 0.36 : 0; // controls lie below the line, so that no mark covers another
    const bottom = top + checks.length * height;
    const domain = [10 ** Math.floor(Math.log10(lowest) - 0.15), Math.max(HIGHEST, ...checks.flatMap(shown).map((value) => 10 ** Math.ceil(Math.log10(value || 1))))];
    const scale = d3.scaleLog(domain, [left, width - right]).clamp(true);
    const at = (value) => scale(Math.max(value, domain[0]));
    const decades = d3.range(Math.round(Math.log10(domain[0])), Math.round(Math.log10(domain[1])) + 1);
    const every = Math.ceil(decades.length / ((width - left) / (narrow ? 34 : 44)));

    const ground = s("g", {});
    for (const exponent of decades) ground.append(s("path", { class: "grid", d: `M${scale(10 ** exponent)} ${top}V${bottom}` }));
    ground.append(...checks.map(({ tolerance }, i) => s("rect", { class: "zone", x: left, y: top + i * height + 1, width: Math.max(0, at(tolerance) - left), height: height - 2 })));
    const axis = s("g", {}, s("path", { class: "axis", d: `M${left} ${bottom}H${width - right}` }));
    for (const exponent of decades) {
      axis.append(s("path", { class: "axis", d: `M${scale(10 ** exponent)} ${bottom}v5` }));
      if (exponent % every === 0) axis.append(s("text", { x: scale(10 ** exponent), y: bottom + 19, "text-anchor": "middle", class: "soft", "font-size": 12.5 }, ...powerOfTen(exponent)));
    }
    const ulp = s("g", {}, s("path", { class: "dash", d: `M${scale(epsilon)} ${top - 6}V${bottom}` }));

    const marks = [];
    const rows = s("g", {});
    checks.forEach((check, i) => {
      const y = top + (i + 0.5) * height - lane / 2;
      const say = (node, name, value, row) => marks.push({ node, title: `layer ${check.layer}: ${name}`, rows: [["relative error", value], ...(row ?? [])], row: i, col: at(value) });
      const line = s("rect", { class: "hit", x: left, y: top + i * height, width: width - left - right, height, fill: "transparent" });
      rows.append(line);
      marks.push({ node: line, title: `layer ${check.layer}: ${check.verdict}`, rows: facts(check), row: i, col: 0 });
      if (check.relative_error !== null && check.unpatched_relative_error !== null) {
        const [from, to] = [at(check.relative_error), at(check.unpatched_relative_error)];
        const said = narrow || height < 20 ? timesShort(check.improvement) : times(check.improvement);
        const middle = (at(check.tolerance) + to) / 2;
        const half = widthOf(said, "sans", 13) / 2 + 8;
        const fits = middle + half < to - 12 && middle - half > at(check.tolerance) + 4;
        rows.append(s("path", { class: "span", "pointer-events": "none", d: fits ? `M${from} ${y}H${middle - half}M${middle + half} ${y}H${to}` : `M${from} ${y}H${to}` }));
        if (fits) rows.append(s("text", { x: middle, y, dy: "0.34em", "text-anchor": "middle", "font-size": 13, "pointer-events": "none" }, said));
      }
      const place = (node, name, value, row, down = 0) => {
        if (value === null || value === undefined) return;
        node.setAttribute("transform", `translate(${at(value)} ${y + down})`);
        rows.append(node);
        say(node, value === 0 ? `${name} (0, drawn at the edge)` : name, value, row);
      };
      place(s("path", { d: `M0${1 - height / 2 + lane / 2}V${height / 2 - 1 + lane / 2}`, class: "tolerance" }), "tolerance", check.tolerance);
      for (const name of names) place(glyph(name), CONTROLS[name]?.[0] ?? name, check.controls[name], [], lane);
      place(s("circle", { r: height < 20 ? 4 : 5.5, class: "unpatched" }), "unpatched", check.unpatched_relative_error);
      place(s("circle", { r: height < 20 ? 4 : 6, class: check.holds ? "dot" : "dot fails" }), "patched", check.relative_error, [["unpatched / patched", check.improvement]]);
    });

    const first = checks[0];
    const over = (value, text, kind, anchor = "middle") => value !== null && s("text", { x: at(value), y: top - 10, "text-anchor": anchor, class: kind, "font-size": 13 }, text);
    const head = s("g", {}, over(first.relative_error, "patched", "accent strong", narrow ? "middle" : "start"), over(first.tolerance, "tolerance", "", "start"), over(first.unpatched_relative_error, "unpatched", "strong", "end"),
      s("text", { x: scale(epsilon) - 5, y: top - 10, "text-anchor": "end", class: "soft small" }, narrow ? "ε" : `ε of ${answer.precision}`));
    const title = s("text", { x: width - right, y: bottom + 38, "text-anchor": "end", class: "soft small" }, narrow ? "relative error" : "relative error of the block’s output, ‖actual − expected‖ / ‖expected‖");
    const names_ = legend(names, width, bottom + (narrow ? 62 : 58));
    const notes = [...unformed(checks), ...(checks.flatMap(shown).includes(0) ? ["An error of 0 is drawn at the left edge."] : [])];
    const label = `Relative errors of ${checks.length} layers on a logarithmic axis. ${checks.map((check) => `Layer ${check.layer}: patched ${plain(check.relative_error, 2)}, tolerance ${plain(check.tolerance, 2)}, unpatched ${plain(check.unpatched_relative_error, 2)}.`).join(" ")}`;
    const svg = chart(width, bottom + 52 + names_.height, label, ground, ulp, rows, axis, head, title, names_.element, layerLabels(checks.map(({ layer }) => layer), { x: left - 10, y: top, height, narrow }));
    const element = h("div", {}, svg, ...notes.map((note) => h("p", { class: "note" }, note)));
    return { element, svg, marks };
  },
  table({ checks }) {
    const names = [...new Set(checks.flatMap(({ controls }) => Object.keys(controls ?? {})))];
    const plainly = ["layer", "position", "verdict", "relative_error", "tolerance", "unpatched_relative_error", "improvement", "magnitude", "error", "max_abs_error"];
    return { columns: [...plainly, ...names], rows: checks.map((check) => [...plainly.map((name) => check[name]), ...names.map((name) => check.controls[name] ?? null)]) };
  },
};
