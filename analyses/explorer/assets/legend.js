/* Names and colours of the groups. The button of a group shows its rows alone; the same button shows all again. */
export function render({ model }) {
  const list = document.createElement("ul");
  list.className = "x-legend";
  list.setAttribute("aria-label", "Groups; a button shows the rows of one group alone");
  const mark = () => list.querySelectorAll("button").forEach((button, i) => {
    button.setAttribute("aria-pressed", String(i === model.isolated));
  });
  const draw = () => {
    list.replaceChildren(...model.names.map((name, i) => {
      const item = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = model.colors[i];
      button.type = "button";
      button.append(swatch, document.createTextNode(name));
      button.addEventListener("click", () => { model.isolated = model.isolated === i ? -1 : i; });
      item.append(button);
      return item;
    }));
    mark();
  };
  for (const name of ["names", "colors"]) model.on(name, draw);
  model.on("isolated", mark);
  draw();
  return list;
}
