/** The theme: light, dark, or the system's. The browser stores the choice; links do not contain it. */

const CHOICES = ["system", "light", "dark"];
const NAME = "deltaw-theme";

/** The stored choice, or `system` if the browser stores nothing. */
function stored() {
  try {
    return localStorage.getItem(NAME) ?? "system";
  } catch {
    return "system";
  }
}

/**
 * Show a theme.
 * @param {string} theme
 */
function apply(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

/** Whether the page is dark. */
export function isDark() {
  const forced = document.documentElement.dataset.theme;
  return forced ? forced === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/**
 * Let the button cycle through the choices.
 * @param {HTMLElement} button
 * @param {HTMLElement} label where the choice is named
 * @param {() => void} changed called when the colours change
 */
export function themeButton(button, label, changed) {
  let theme = stored();
  label.textContent = theme;
  button.addEventListener("click", () => {
    theme = CHOICES[(CHOICES.indexOf(theme) + 1) % CHOICES.length];
    apply(theme);
    label.textContent = theme;
    try {
      localStorage.setItem(NAME, theme);
    } catch {
      // Storage is disabled: the choice lasts until the page is closed.
    }
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

apply(stored());
