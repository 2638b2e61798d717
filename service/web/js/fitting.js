/** Requests that exceed a limit of one request: sent as smaller ones, whose answers are merged. */

import { pause } from "./api.js";

/** @typedef {import("./figure.js").View} View */
/** @typedef {import("./tokens_text.js").Token} Token */
/** @typedef {{context: Token[], query: Token[], head: number}} Read the tokens of both texts, and the number of anchor tokens */

const TOO_LARGE = ["never_fits", "body_too_large"];

/**
 * The tokens that a request reads. The smallest update answers them, whatever the question needs.
 * @param {any} body
 * @param {(path: string, body: object) => Promise<any>} send
 * @returns {Promise<Read>}
 */
async function readTokens({ context, query, baseline }, send) {
  const smallest = { context, query, baseline, layers: [0], include: [] };
  const answer = await send("v1/weight-updates", smallest);
  return { ...answer.tokens, head: answer.baseline === "anchored" ? 1 : 0 };
}

/**
 * Send a request. If it does not fit, send smaller ones in its place, one after another.
 * @param {View} view
 * @param {object | object[]} body several are sent at once, and the answer is the list of their answers
 * @param {(path: string, body: object) => Promise<any>} send
 * @param {(done: number, all: number) => void} told called after each part of a split request
 * @param {AbortSignal} signal
 * @returns {Promise<{answer: any, bodies: object[]}>} the merged answer, and the requests that were answered
 * @throws {import("./api.js").Problem} the view cannot ask for less
 */
export async function askFitting(view, body, send, told, signal) {
  if (Array.isArray(body)) {
    return { answer: await Promise.all(body.map((one) => send(view.path, one))), bodies: body };
  }
  const answers = [];
  const bodies = [];
  let waiting = [body];
  let tokens = /** @type {Read | null} */ (null);
  while (waiting.length) {
    const [next, ...rest] = waiting;
    try {
      answers.push(await send(view.path, next));
      bodies.push(next);
      waiting = rest;
    } catch (problem) {
      const code = problem.said?.code;
      if (code === "queue_full" && tokens) {
        await pause(problem.after || 1, signal); // the parts that are answered must not be lost
        continue;
      }
      if (!view.smaller || !TOO_LARGE.includes(code)) throw problem;
      tokens ??= await readTokens(body, send);
      const { limit, actual } = problem.said;
      const smaller = view.smaller(next, Math.max(2, Math.ceil(actual / limit) || 2), tokens);
      if (!smaller) throw problem;
      waiting = [...smaller, ...rest];
    }
    const all = answers.length + waiting.length;
    if (all > 1) told(answers.length, all);
  }
  return { answer: answers.length === 1 ? answers[0] : view.merge(answers), bodies };
}

/**
 * A list in so many parts of about equal length.
 * @template T
 * @param {T[]} list
 * @param {number} count
 * @returns {T[][]}
 */
export function inParts(list, count) {
  const length = Math.ceil(list.length / count);
  return Array.from({ length: Math.ceil(list.length / length) }, (_, i) =>
    list.slice(i * length, (i + 1) * length),
  );
}

/**
 * The sentences of a context, as `v1/attributions` divides it by default.
 * @param {Read} tokens
 * @returns {Array<[number, number]>} half-open spans of context tokens
 */
export function sentences({ context, head }) {
  const ordinary = context.findIndex(({ special }) => !special);
  const first = Math.max(head, ordinary);
  const isSpace = (text) => /^\s+$/.test(text);
  let count = context.length;
  while (count > first && isSpace(context[count - 1].text)) count -= 1;
  const edges = [first];
  for (let i = first; i < count - 1; i += 1) {
    const [text, next] = [context[i].text, context[i + 1].text];
    const ends = /\n$/.test(text) || (/[.!?]$/.test(text) && /^\s/.test(next));
    if (ends && !(isSpace(next) && next.includes("\n"))) edges.push(i + 1);
  }
  return edges.map((start, i) => [start, edges[i + 1] ?? context.length]);
}
