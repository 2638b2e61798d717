/** Functions that make HTML and SVG elements. They set text as text, never as markup. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Set attributes and children. Skip attributes that are null, undefined or false.
 * @template {Element} T
 * @param {T} element
 * @param {Record<string, unknown>} attributes `on` holds listeners by event name.
 * @param {Array<Node | string | number | null | undefined | false>} children
 * @returns {T}
 */
function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  element.append(
    ...children
      .flat()
      .filter((child) => child || child === 0)
      .map((child) => (child instanceof Node ? child : String(child))),
  );
  return element;
}

/**
 * An HTML element.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...unknown} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/**
 * An SVG element.
 * @param {string} tag
 * @param {Record<string, unknown>} [attributes]
 * @param {...unknown} children
 * @returns {SVGElement}
 */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/**
 * The element with this id.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  return /** @type {HTMLElement} */ (document.getElementById(id));
}

/**
 * Copy a text to the clipboard. Browsers allow this only on https and on localhost.
 * @param {string} text
 * @returns {Promise<boolean>} whether it was copied
 */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

const canvas = document.createElement("canvas").getContext("2d");

/**
 * Width of a text in CSS pixels.
 * @param {string} text
 * @param {"sans" | "mono" | "strong"} [face]
 * @param {number} [size] in pixels
 * @returns {number}
 */
export function widthOf(text, face = "sans", size = 13) {
  const family = face === "mono" ? '"IBM Plex Mono", monospace' : '"Source Sans 3", sans-serif';
  canvas.font = `${face === "strong" ? 600 : 400} ${size}px ${family}`;
  return canvas.measureText(text).width;
}

/**
 * A text cut to a width, with … at the end if it was cut.
 * @param {string} text
 * @param {number} room in pixels
 * @param {"sans" | "mono" | "strong"} [face]
 * @param {number} [size]
 * @returns {string}
 */
export function clipped(text, room, face = "sans", size = 13) {
  if (widthOf(text, face, size) <= room) return text;
  let kept = [...text];
  while (kept.length > 1 && widthOf(`${kept.join("")}…`, face, size) > room) kept = kept.slice(0, -1);
  return `${kept.join("")}…`;
}
