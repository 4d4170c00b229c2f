/* A status or error message, which screen readers announce. */
export function render({ model }) {
  const box = document.createElement("div");
  const line = document.createElement("p");
  const bar = document.createElement("progress");
  bar.max = 1;
  const show = () => {
    box.className = `x-status ${model.kind}`;
    line.setAttribute("role", model.kind === "error" ? "alert" : "status");
    line.textContent = model.text;
    bar.setAttribute("aria-label", "progress");
    bar.hidden = model.share < 0;
    if (model.share > 0) bar.value = model.share;
    else bar.removeAttribute("value");  /* the bar moves until the first step is done */
    box.hidden = !model.text && model.share < 0;
  };
  for (const name of ["text", "kind", "share"]) model.on(name, show);
  show();
  box.append(line, bar);
  return box;
}
