/** Colour scales for numbers: sequential, with equal steps in CIELAB lightness, readable with red–green colour blindness. */

import { isDark } from "./theme.js";

const d3 = globalThis.d3;
const LIGHT = ["#eff6f4", "#a9dccf", "#55b3ba", "#26809f", "#27508a", "#1c2350"];
const DARK = ["#1a2a33", "#27407a", "#1f719b", "#43abb4", "#a2decb", "#f1fbf4"];
const AGAINST = {
  light: ["#fdf3ec", "#f0b48e", "#c4682f", "#7c3512"],
  dark: ["#2b211c", "#7a4225", "#c97b4c", "#ffd3b5"],
};

/**
 * A colour ramp on [0, 1] through the anchors, with linear CIELAB lightness.
 * @param {string[]} anchors
 * @returns {(t: number) => string}
 */
function ramp(anchors) {
  const mixed = d3.piecewise(d3.interpolateLab, anchors);
  const [first, last] = [d3.lab(mixed(0)).l, d3.lab(mixed(1)).l];
  const known = d3.range(0, 1.0001, 1 / 64).map((t) => [(d3.lab(mixed(t)).l - first) / (last - first), t]);
  const place = d3
    .scaleLinear(
      known.map(([lightness]) => lightness),
      known.map(([, t]) => t),
    )
    .clamp(true);
  return (t) => d3.rgb(mixed(place(Math.min(1, Math.max(0, t))))).formatHex();
}

const RAMPS = {
  light: { for: ramp(LIGHT), against: ramp(AGAINST.light) },
  dark: { for: ramp(DARK), against: ramp(AGAINST.dark) },
};

/**
 * The colour of a number. 0 is close to the background, and the largest stands out most; negative numbers have another hue.
 * @param {number} share of the largest, from −1 to 1
 * @returns {string} as #rrggbb
 */
export function heat(share) {
  const ramps = RAMPS[isDark() ? "dark" : "light"];
  return share < 0 ? ramps.against(-share) : ramps.for(share);
}

/**
 * The colour of a layer's line; later layers stand out more.
 * @param {number} index
 * @param {number} count
 * @returns {string}
 */
export function layerColour(index, count) {
  return heat(0.42 + 0.53 * (count < 2 ? 1 : index / (count - 1)));
}

/**
 * The text colour for a background: black or white, whichever has more contrast (WCAG 2; at least 4.5).
 * @param {string} colour
 * @returns {string}
 */
export function inkOn(colour) {
  const { r, g, b } = d3.rgb(colour);
  const [red, green, blue] = [r, g, b]
    .map((part) => part / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return (luminance + 0.05) ** 2 > 1.05 * 0.05 ? "#000000" : "#ffffff";
}
