/* A table of buttons, one a layer and token. Arrow keys move between them; all text is inserted as text. */
export function render({ model }) {
  const box = document.createElement("div");
  box.className = "x-map";
  const caption = document.createElement("p");
  caption.id = "map-caption";
  const scroll = document.createElement("div");
  scroll.className = "x-map-scroll";
  let presses = 0, buttons = [];
  const header = (text, scope) => {
    const th = document.createElement("th");
    th.scope = scope;
    th.textContent = text;
    return th;
  };
  const mark = () => buttons.forEach((button, i) => {
    button.tabIndex = i === model.current ? 0 : -1;
    if (i === model.current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  });
  const draw = () => {
    const focused = buttons.indexOf(box.getRootNode().activeElement);
    caption.textContent = model.caption;
    const table = document.createElement("table"), width = model.columns.length;
    table.setAttribute("aria-labelledby", "map-caption");
    const head = table.createTHead().insertRow();
    head.append(header("token \\ layer", "col"), ...model.columns.map((name) => header(name, "col")));
    const body = table.createTBody();
    buttons = [];
    model.rows.forEach((name, r) => {
      const tr = body.insertRow();
      tr.append(header(name, "row"));
      model.columns.forEach((column, c) => {
        const i = r * width + c, value = model.values[i], button = document.createElement("button");
        const known = value !== null && value !== undefined;
        button.type = "button";
        button.textContent = known ? value.toFixed(2) : "";
        if (!known) button.className = "empty";
        else {
          button.style.background = model.colors[i];
          button.style.color = model.text_colors[i];
        }
        button.setAttribute("aria-label", "layer " + column + ", token " + name + ": " + (known ? value.toFixed(2) : "not computed"));
        button.addEventListener("click", () => { presses += 1; model.chosen = [i, presses]; });
        button.addEventListener("keydown", (event) => {
          const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width }[event.key];
          const next = buttons[i + step];
          const sameRow = Math.abs(step) !== 1 || Math.floor((i + step) / width) === r;
          if (!step || !next || !sameRow) return;
          event.preventDefault();
          button.tabIndex = -1;
          next.tabIndex = 0;
          next.focus();
        });
        buttons.push(button);
        tr.insertCell().append(button);
      });
    });
    scroll.replaceChildren(table);
    mark();
    if (focused >= 0 && buttons[focused]) { buttons[focused].tabIndex = 0; buttons[focused].focus(); }
  };
  for (const name of ["columns", "rows", "values", "colors", "text_colors", "caption"]) model.on(name, draw);
  model.on("current", mark);
  draw();
  box.append(caption, scroll);
  return box;
}
