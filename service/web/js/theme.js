/** Light, dark, or as the system has it: the choice is this browser's and part of no link. */

const CHOICES = ["system", "light", "dark"];
const NAME = "deltaw-theme";

/** The stored choice; `system` where nothing can be stored. */
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

/** Whether what is seen is dark. */
export function isDark() {
  const forced = document.documentElement.dataset.theme;
  return forced ? forced === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/**
 * Make the button go through the choices.
 * @param {HTMLElement} button
 * @param {HTMLElement} label where the choice is named
 * @param {() => void} changed called whenever the colours are others
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
      // A browser that stores nothing forgets the choice with the page.
    }
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
}

apply(stored());
