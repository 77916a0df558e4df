// Colours for canvases, taken from the style sheet so that light and dark are defined once.

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const known = new Map();
dark.addEventListener("change", () => known.clear());

export function colour(name, alpha = "") {
  if (!known.has(name)) known.set(name, getComputedStyle(document.documentElement).getPropertyValue(name).trim());
  return known.get(name) + alpha;
}

export function onThemeChange(redraw) {
  dark.addEventListener("change", redraw);
}
