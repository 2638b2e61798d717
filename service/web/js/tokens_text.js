/** Tokens as text, with whole characters and visible white space. */

/** @typedef {{id: number, text: string, special?: boolean, bytes?: string}} Token */

/**
 * The text of several tokens. Characters that are split over tokens become whole.
 * @param {Token[]} tokens
 * @returns {string}
 */
export function spelled(tokens) {
  const pieces = tokens.map(({ text, bytes }) =>
    bytes ? Uint8Array.from(atob(bytes), (c) => c.charCodeAt(0)) : new TextEncoder().encode(text),
  );
  const all = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  pieces.reduce((at, piece) => (all.set(piece, at), at + piece.length), 0);
  return new TextDecoder().decode(all);
}

/**
 * A token's text with visible white space: · for a space, ↵ for a line break.
 * @param {Token | string} token
 * @returns {string}
 */
export function visible(token) {
  const text = typeof token === "string" ? token : token.text;
  return text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥");
}

/**
 * A token in quotation marks, for a sentence.
 * @param {Token} token
 * @returns {string}
 */
export function quoted(token) {
  return `“${token.text.replaceAll("\n", "↵")}”`;
}
