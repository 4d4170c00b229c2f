/* A table of rows; all data is inserted as text. The button of a row, or a click anywhere in it, highlights the row. */
export function render({ model }) {
  const box = document.createElement("div");
  box.className = "x-rows";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  const format = (value) => value === null ? "–" : typeof value === "number" ? String(Number(value.toPrecision(4))) : value;
  const draw = () => {
    box.setAttribute("aria-label", model.caption);
    const table = document.createElement("table");
    const caption = table.createCaption();
    caption.textContent = model.caption;
    const head = table.createTHead().insertRow();
    for (const name of model.columns) {
      const th = document.createElement("th");
      th.scope = "col";
      th.textContent = name;
      head.append(th);
    }
    const body = table.createTBody();
    model.rows.forEach((row, i) => {
      const tr = body.insertRow();
      if (i === model.focus) tr.className = "highlighted";
      row.forEach((value, j) => {
        const cell = j === 0 ? document.createElement("th") : document.createElement("td");
        if (j === 0) {
          cell.scope = "row";
          const button = document.createElement("button");
          button.type = "button";
          button.textContent = format(value);
          button.setAttribute("aria-pressed", String(i === model.focus));
          button.title = "Highlight this row in the figure";
          cell.append(button);
        } else {
          cell.textContent = format(value);
          if (typeof value === "number") cell.className = "number";
          if (model.columns[j] === "prompt") cell.className = "prompt";
        }
        tr.append(cell);
      });
      tr.addEventListener("click", () => { model.focus = model.focus === i ? -1 : i; });
    });
    if (model.rows.length) box.replaceChildren(table);
    else {
      const hint = document.createElement("p");
      hint.textContent = model.caption;
      box.replaceChildren(hint);
    }
  };
  const highlight = () => {
    box.querySelectorAll("tbody tr").forEach((tr, i) => {
      tr.className = i === model.focus ? "highlighted" : "";
      tr.querySelector("button").setAttribute("aria-pressed", String(i === model.focus));
    });
  };
  for (const name of ["columns", "rows", "caption"]) model.on(name, draw);
  model.on("focus", highlight);
  draw();
  return box;
}
