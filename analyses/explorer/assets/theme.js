/* Light or dark page: the setting of the system until the button is pressed. */
export function render({ model }) {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "switch";
  const set = (value) => {
    root.dataset.theme = value;
    button.textContent = value === "dark" ? "Light page" : "Dark page";
    if (model.value !== value) model.value = value;
  };
  button.addEventListener("click", () => set(root.dataset.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => set(dark.matches ? "dark" : "light"));
  set(dark.matches ? "dark" : "light");
  return button;
}
