/* Names and colours of the groups. */
export function render({ model }) {
  const list = document.createElement("ul");
  list.className = "x-legend";
  list.setAttribute("aria-label", "Colours of the groups");
  const draw = () => list.replaceChildren(...model.names.map((name, i) => {
    const item = document.createElement("li"), swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = model.colors[i];
    item.append(swatch, document.createTextNode(name));
    return item;
  }));
  for (const name of ["names", "colors"]) model.on(name, draw);
  draw();
  return list;
}
