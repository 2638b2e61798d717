/** Number formats. A null is shown as “none” or “null”, never as 0. */

import { h, s } from "./dom.js";

/**
 * A mantissa and an exponent of ten.
 * @param {number} value not 0
 * @param {number} digits significant
 * @returns {[string, number]}
 */
function parts(value, digits) {
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return [mantissa.replace("-", "−"), Number(exponent)];
}

/**
 * Whether a number is written with a power of ten.
 * @param {number} value
 */
function isFar(value) {
  return value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5);
}

/**
 * A number in positional notation with a number of significant digits.
 * @param {number} value
 * @param {number} digits
 */
function near(value, digits) {
  return Number(value.toPrecision(digits)).toString().replace("-", "−");
}

/**
 * A number as plain text, such as 0.312 or 3.4e−7; null is “none”.
 * @param {number | null | undefined} value
 * @param {number} [digits]
 * @returns {string}
 */
export function plain(value, digits = 3) {
  if (value === null || value === undefined) return "none";
  if (!isFar(value)) return near(value, digits);
  const [mantissa, exponent] = parts(value, digits);
  return `${mantissa}e${exponent}`.replace("e-", "e−");
}

/**
 * A number with its exponent raised, as HTML nodes.
 * @param {number | null | undefined} value
 * @param {number} [digits]
 * @returns {Array<Node | string>}
 */
export function raised(value, digits = 2) {
  if (value === null || value === undefined || !isFar(value)) return [plain(value, digits)];
  const [mantissa, exponent] = parts(value, digits);
  return [`${mantissa} × 10`, h("sup", {}, String(exponent).replace("-", "−"))];
}

/**
 * 10 to an integer, as parts of an SVG text.
 * @param {number} exponent
 * @returns {Array<Node | string>}
 */
export function powerOfTen(exponent) {
  if (exponent === 0) return ["1"];
  if (exponent === 1) return ["10"];
  const up = s("tspan", { dy: "-0.5em", "font-size": "75%" }, String(exponent).replace("-", "−"));
  return ["10", up];
}

/**
 * A formula with its indices lowered, as HTML nodes: `‖ΔW‖_F`, `n_C`.
 * @param {string} text
 * @returns {Array<Node | string>}
 */
export function formula(text) {
  return text
    .split(/(_[A-Z])(?![A-Za-z])/)
    .map((part) => (/^_[A-Z]$/.test(part) ? h("sub", {}, part[1]) : part));
}

/**
 * The same formula as parts of an SVG text.
 * @param {string} text
 * @returns {Array<Node>}
 */
export function formulaSvg(text) {
  return text.split(/(_[A-Z])(?![A-Za-z])/).flatMap((part, i) => {
    if (/^_[A-Z]$/.test(part)) return [s("tspan", { dy: "0.25em", "font-size": "75%" }, part[1])];
    return part ? [s("tspan", i ? { dy: "-0.19em" } : {}, part)] : [];
  });
}

/**
 * A value with all its digits.
 * @param {unknown} value
 * @returns {string}
 */
export function exact(value) {
  return value === null || value === undefined ? "null" : String(value);
}

/**
 * A fraction as a percentage.
 * @param {number | null} value
 * @returns {string}
 */
export function percent(value) {
  if (value === null) return "none";
  const hundred = 100 * value;
  if (value !== 0 && Math.abs(hundred) < 0.1) return value > 0 ? "<0.1 %" : ">−0.1 %";
  return `${(Math.abs(hundred) < 9.95 ? hundred.toFixed(1) : hundred.toFixed(0)).replace("-", "−").replace(".0", "")} %`;
}

const SCALES = [
  [1e15, "quadrillion", "Q"],
  [1e12, "trillion", "T"],
  [1e9, "billion", "B"],
  [1e6, "million", "M"],
  [1e3, "thousand", "k"],
];

/**
 * A ratio in words: “1.8 million times”.
 * @param {number | null} value
 * @returns {string}
 */
export function times(value) {
  if (value === null) return "no number of times";
  for (const [size, name] of SCALES) {
    if (value >= size) return `${near(value / size, 2)} ${name} times`;
  }
  return `${near(value, 2)} times`;
}

/**
 * A ratio in short form: “1.8M×”.
 * @param {number | null} value
 * @returns {string}
 */
export function timesShort(value) {
  if (value === null) return "";
  for (const [size, , letter] of SCALES) {
    if (value >= size) return `${near(value / size, 2)}${letter}×`;
  }
  return `${near(value, 2)}×`;
}
