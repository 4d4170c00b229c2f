/* A table of rows; all data is inserted as text. The button of a row, or a click anywhere in it, highlights the row. */
export function render({ model }) {
  const whole = document.createElement("div"), line = document.createElement("p"), copied = document.createElement("span");
  const copy = document.createElement("button"), box = document.createElement("div");
  line.className = "x-rows-caption";
  copy.type = "button";
  copy.className = "switch";
  copy.textContent = "Copy ids";
  copied.setAttribute("role", "status");
  copy.addEventListener("click", async () => {
    const text = model.ids.join("\n");
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) { /* no permission for the clipboard */
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    copied.textContent = ` Copied ${model.ids.length} ids.`;
  });
  box.className = "x-rows";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  const format = (value) => value === null ? "–" : typeof value === "number" ? String(Number(value.toPrecision(4))) : value;
  const draw = () => {
    box.setAttribute("aria-label", model.caption);
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    for (const name of model.columns) {
      const th = document.createElement("th");
      th.scope = "col";
      th.textContent = name;
      head.append(th);
    }
    if (model.means.length) {
      const means = table.tHead.insertRow();
      model.means.forEach((value, j) => {
        const cell = document.createElement(j === 0 ? "th" : "td");
        cell.textContent = j === 0 ? "mean of all" : value === null ? "" : format(value);
        if (j === 0) cell.scope = "row";
        if (typeof value === "number") cell.className = "number";
        means.append(cell);
      });
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
    line.textContent = model.caption;
    copied.textContent = "";
    copy.hidden = !model.ids.length;
    box.hidden = !model.rows.length;
    box.replaceChildren(table);
  };
  const highlight = () => {
    box.querySelectorAll("tbody tr").forEach((tr, i) => {
      tr.className = i === model.focus ? "highlighted" : "";
      tr.querySelector("button").setAttribute("aria-pressed", String(i === model.focus));
    });
  };
  for (const name of ["columns", "rows", "means", "caption", "ids"]) model.on(name, draw);
  model.on("focus", highlight);
  draw();
  whole.append(line, copy, copied, box);
  return whole;
}
