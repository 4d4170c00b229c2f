/* Heading of a figure and its statement. */
export function render({ model }) {
  const box = document.createElement("div"), title = document.createElement("h3"), line = document.createElement("p");
  box.className = "x-caption";
  line.setAttribute("aria-live", "polite");
  const show = () => {
    title.textContent = model.title;
    line.textContent = model.sentence;
    line.hidden = !model.sentence;
  };
  for (const name of ["title", "sentence"]) model.on(name, show);
  show();
  box.append(title, line);
  return box;
}
