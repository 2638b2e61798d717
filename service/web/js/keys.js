/** The API key. This tab's session storage keeps it; addresses and commands never contain it. */

import { byId } from "./dom.js";

const NAME = "deltaw-key";
let held = "";

/** @returns {string} The key, or an empty string. */
export function key() {
  try {
    return sessionStorage.getItem(NAME) ?? "";
  } catch {
    return held;
  }
}

/** @param {string} value The key to keep; an empty string deletes it. */
function keep(value) {
  try {
    if (value) sessionStorage.setItem(NAME, value);
    else sessionStorage.removeItem(NAME);
  } catch {
    held = value;
  }
}

/** Ask for a key. */
export function askForKey() {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  if (!dialog.open) dialog.showModal();
  byId("key").focus();
}

/**
 * Connect the dialog for the key.
 * @param {() => void} changed called when the key changes
 */
export function keyDialog(changed) {
  const dialog = /** @type {HTMLDialogElement} */ (byId("key-dialog"));
  const field = /** @type {HTMLInputElement} */ (byId("key"));
  const settle = (value) => {
    keep(value);
    field.value = "";
    dialog.close();
    changed();
  };
  byId("open-key").addEventListener("click", askForKey);
  byId("close-key").addEventListener("click", () => dialog.close());
  byId("forget-key").addEventListener("click", () => settle(""));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    settle(field.value.trim());
  });
}
