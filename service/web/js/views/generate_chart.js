/** The chart of three texts: rows of tokens, aligned by step, with the step where each first differs from the first text. */

import { NARROW, chart } from "../charts.js";
import { clipped, s, widthOf } from "../dom.js";
import { quoted, visible } from "../tokens_text.js";

/** The runs' names in the table, in the chart, and in a narrow chart. */
const RUNS = [
  ["with_context", "with context", "with"],
  ["patched", "patched, no context", "patched"],
  ["without_context", "without context", "without"],
];
/** The runs' names for screen readers. They avoid “context” and “query”, which name the form's fields. */
const SPOKEN = ["After reading", "Patched instead", "With neither"];
const [CELL, GAP, LONGEST] = [25, 18, 150];

/**
 * @typedef {object} RunText
 * @property {string} name
 * @property {Array<{id: number, text: string, logprob: number, kl?: number, margin?: number, same_token?: boolean,
 *   rows_patched?: number}>} tokens
 * @property {number} parts index of the first token that differs from the run with context; the number of tokens if none does
 */

/**
 * The texts of the three completions.
 * @param {any[]} answers
 * @returns {RunText[]}
 */
export function runsOf(answers) {
  const [first] = answers;
  return answers.map(({ tokens, choices: [{ logprobs }], agreement = [] }, run) => {
    const differs = tokens.findIndex((id, i) => id !== first.tokens[i]);
    return {
      name: RUNS[run][0],
      tokens: tokens.map((id, i) => ({
        id,
        text: logprobs.tokens[i],
        logprob: logprobs.token_logprobs[i],
        ...agreement[i],
      })),
      parts: differs < 0 ? tokens.length : differs,
    };
  });
}

/**
 * The steps of each band of the chart: as many as fit its width.
 * @param {number[]} widths of the steps
 * @param {number} room
 * @returns {number[][]}
 */
function bandsOf(widths, room) {
  const bands = [];
  let left = 0;
  widths.forEach((width, step) => {
    if (!bands.length || width > left) {
      bands.push([]);
      left = room;
    }
    bands.at(-1).push(step);
    left -= width;
  });
  return bands;
}

/**
 * The mark of a token.
 * @param {RunText["tokens"][0]} token
 * @param {number} run
 * @param {number} step
 */
function markOf({ id, text, logprob, kl, margin, same_token, rows_patched }, run, step) {
  const compared = [
    ["KL, nats", kl],
    ["margin with context, nats", margin],
    ["chosen with context too", same_token ? "yes" : "no"],
    ["rows patched", rows_patched],
  ];
  return {
    title: `${RUNS[run][1]}, token ${step + 1}: ${quoted({ id, text })}`,
    rows: [["id", id], ["log-probability", logprob], ...(kl === undefined ? [] : compared)],
  };
}

/**
 * The chart of three completions.
 * @param {any[]} answers
 * @param {number} width
 * @returns {import("../figure.js").Drawn}
 */
export function drawTexts(answers, width) {
  const narrow = width < NARROW;
  const runs = runsOf(answers);
  const left = narrow ? 62 : 150;
  const steps = Math.max(...runs.map(({ tokens }) => tokens.length));
  const widths = Array.from({ length: steps }, (_, step) => {
    const texts = runs.map(({ tokens }) => (tokens[step] ? visible(tokens[step]) : ""));
    return Math.min(LONGEST, Math.max(...texts.map((text) => widthOf(text, "mono", 12)))) + 14;
  });
  const bands = bandsOf(widths, width - left);
  const marks = [];
  const drawn = bands.map((band, at) => {
    const top = at * (3 * CELL + GAP);
    const group = s("g", {});
    runs.forEach(({ tokens, parts }, run) => {
      const y = top + run * CELL;
      const kind = run === 1 ? "strong accent" : run ? "soft" : "strong";
      group.append(
        s(
          "text",
          { x: 0, y: y + CELL / 2, dy: "0.3em", class: kind, "font-size": 12.5 },
          RUNS[run][narrow ? 2 : 1],
        ),
      );
      let x = left;
      for (const step of band) {
        const token = tokens[step];
        if (token) {
          const same = run === 0 ? "track" : step < parts ? "zone" : "apart";
          const place = { x, y: y + 1.5, width: widths[step] - 3, height: CELL - 3, rx: 4 };
          const node = s("rect", { ...place, class: same });
          const text = clipped(visible(token), widths[step] - 12, "mono", 12);
          const middle = { x: x + 5.5, y: y + CELL / 2, dy: "0.34em", "pointer-events": "none" };
          group.append(node, s("text", { ...middle, class: "token" }, text));
          if (run && step === parts)
            group.append(s("path", { class: "parting", d: `M${x - 1.5} ${y}v${CELL}` }));
          marks.push({ node, ...markOf(token, run, step), row: 3 * at + run, col: step });
        }
        x += widths[step];
      }
    });
    return group;
  });
  const label = runs
    .map(({ tokens }, i) => `${SPOKEN[i]}: ${tokens.map(({ text }) => text).join("")}.`)
    .join(" ");
  const svg = chart(width, Math.max(1, bands.length) * (3 * CELL + GAP) - GAP, label, ...drawn);
  return { element: svg, svg, marks };
}
