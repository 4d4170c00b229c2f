/* A slider over named values. It is a native range input, so that keyboards and screen readers work. */
export function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "x-slider";
  const label = document.createElement("label");
  label.htmlFor = "range";
  const input = document.createElement("input");
  input.type = "range";
  input.id = "range";
  input.min = "0";
  input.step = "1";
  const output = document.createElement("output");
  output.htmlFor = "range";
  const show = () => {
    label.textContent = model.label;
    input.max = String(Math.max(0, model.options.length - 1));
    input.value = String(model.value);
    input.disabled = model.options.length < 2;
    const text = model.options[model.value] ?? "";
    output.textContent = text;
    input.setAttribute("aria-valuetext", text);
  };
  input.addEventListener("input", () => {
    model.value = Number(input.value);
    show();
  });
  for (const name of ["label", "options", "value"]) model.on(name, show);
  show();
  box.append(label, input, output);
  return box;
}
