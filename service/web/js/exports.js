/** Exports of a chart: a self-contained SVG, a PNG, and the numbers as CSV. */

const KEPT = [
  "fill",
  "stroke",
  "stroke-width",
  "stroke-dasharray",
  "stroke-linejoin",
  "paint-order",
  "opacity",
  "font-family",
  "font-size",
  "font-weight",
  "text-anchor",
];
const MARGIN = 16;
const FONTS = [
  ["Source Sans 3", "200 900", "source-sans-3-latin-wght-normal.woff2", ""],
  ["Source Sans 3", "200 900", "source-sans-3-greek-wght-normal.woff2", "unicode-range:U+0370-03FF;"],
  ["IBM Plex Mono", "400", "ibm-plex-mono-latin-400-normal.woff2", ""],
];

/** A style sheet with the page's fonts as data URLs. */
async function fonts() {
  const rules = await Promise.all(
    FONTS.map(async ([family, weight, file, range]) => {
      const bytes = await (await fetch(new URL(`../vendor/fonts/${file}`, import.meta.url))).blob();
      const url = await new Promise((resolve, reject) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.onerror = () => reject(reader.error);
        reader.readAsDataURL(bytes);
      });
      return `@font-face{font-family:"${family}";font-weight:${weight};${range}src:url(${url}) format("woff2")}`;
    }),
  );
  return rules.join("");
}

/**
 * A copy of a chart with all styles as attributes, on the page's background.
 * @param {SVGSVGElement} svg as it is shown
 * @param {string} title
 * @returns {Promise<{text: string, width: number, height: number}>}
 */
async function standalone(svg, title) {
  const copy = /** @type {SVGSVGElement} */ (svg.cloneNode(true));
  const [shown, copied] = [svg, copy].map((root) => [root, ...root.querySelectorAll("*")]);
  shown.forEach((element, i) => {
    const style = getComputedStyle(element);
    for (const name of KEPT) copied[i].setAttribute(name, style.getPropertyValue(name));
    for (const name of ["class", "data-mark", "tabindex", "role", "aria-label", "aria-describedby"])
      copied[i].removeAttribute(name);
  });
  const [width, height] = [svg.width.baseVal.value + 2 * MARGIN, svg.height.baseVal.value + 2 * MARGIN];
  const make = (tag, attributes, text = "") => {
    const element = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, String(value));
    element.textContent = text;
    return element;
  };
  copy.querySelector(".cursor")?.remove();
  copy.setAttribute("xmlns", svg.namespaceURI);
  copy.setAttribute("viewBox", `${-MARGIN} ${-MARGIN} ${width} ${height}`);
  copy.setAttribute("width", String(width));
  copy.setAttribute("height", String(height));
  const ground = getComputedStyle(svg.closest(".figure")).backgroundColor;
  copy.prepend(
    make("title", {}, title),
    make("style", {}, await fonts()),
    make("rect", { x: -MARGIN, y: -MARGIN, width, height, fill: ground }),
  );
  return { text: new XMLSerializer().serializeToString(copy), width, height };
}

/**
 * Download a file.
 * @param {Blob} content
 * @param {string} name
 */
export function save(content, name) {
  const url = URL.createObjectURL(content);
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/**
 * @param {SVGSVGElement} svg
 * @param {string} name without suffix
 * @param {string} title
 */
export async function saveSvg(svg, name, title) {
  save(new Blob([(await standalone(svg, title)).text], { type: "image/svg+xml" }), `${name}.svg`);
}

/**
 * @param {SVGSVGElement} svg
 * @param {string} name without suffix
 * @param {string} title
 */
export async function savePng(svg, name, title) {
  const { text, width, height } = await standalone(svg, title);
  const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  const scale = Math.min(2, 8192 / Math.max(width, height));
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(url);
  canvas.toBlob((blob) => save(blob, `${name}.png`), "image/png");
}

/**
 * @param {{columns: string[], rows: unknown[][]}} table nulls are empty fields
 * @returns {string} RFC 4180
 */
export function csv({ columns, rows }) {
  const field = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\r\n]/.test(text) || text !== text.trim() ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [columns, ...rows].map((row) => row.map(field).join(",")).join("\r\n") + "\r\n";
}
