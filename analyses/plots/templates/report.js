"use strict";
/* Draws the figures and updates them when a slider moves. All data is inserted as text, never as markup. */
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const figures = new Map();
  let theme = "light";

  function dark(palette) {
    /* The palette of a heat map on this page; both lead from one end over a neutral colour, or from it, to the other. */
    return theme === "dark" ? data.palettes[palette] : null;
  }

  function luminance(color) {
    const part = (i) => { const v = parseInt(color.slice(i, i + 2), 16) / 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * part(1) + 0.7152 * part(3) + 0.0722 * part(5);
  }

  function cellTexts(state, count) {
    /* Readable colours on the cells of a dark heat map, where a label belongs to each cell. */
    const cells = state.cells;
    if (!cells || theme !== "dark") return null;
    const values = columns(state, cells.mark).value;
    if (!values || values.length !== count) return null;
    const { low, high, palette } = cells.mapper;
    return values.map((v) => {
      if (v === null) return "#ffffff";
      const i = Math.round(Math.min(1, Math.max(0, (v - low) / (high - low || 1))) * (palette.length - 1));
      return luminance(palette[i]) > 0.179 ? "#000000" : "#ffffff";
    });
  }

  function themeColor(color) { return theme === "dark" && data.dark[color] ? data.dark[color] : color; }

  function frameIndex(state) {
    let index = 0;
    state.spec.frames.sliders.forEach((slider, i) => { index = index * slider.values.length + state.at[i]; });
    return index;
  }

  function columns(state, mark) {
    const { same, vary } = state.spec.frames;
    const index = frameIndex(state), out = {};
    for (const name in same[mark]) out[name] = same[mark][name];
    for (const name in vary[mark]) out[name] = vary[mark][name][index];
    return out;
  }

  function show(state) {
    const index = frameIndex(state);
    state.element.querySelector(".sentence").textContent = state.spec.sentences[index];
    for (const mark in state.sources) {
      const now = columns(state, mark), data = {};
      for (const name in now) {
        data[name] = name === "color" ? now[name].map(themeColor) : now[name].map((v) => (v === null ? NaN : v));
      }
      const texts = data.text_color && cellTexts(state, data.text_color.length);
      if (texts) data.text_color = texts;
      state.sources[mark].data = data;
    }
    const limits = state.spec.frames.limits, box = limits[limits.length === 1 ? 0 : index];
    if (state.figure) {
      state.figure.x_range.setv({ start: box[0], end: box[1], reset_start: box[0], reset_end: box[1] });
      state.figure.y_range.setv({ start: box[2], end: box[3], reset_start: box[2], reset_end: box[3] });
    }
    const details = state.element.querySelector("details");
    if (details && details.open) table(state, details);
  }

  function cell(kind, text, number) {
    const element = document.createElement(kind);
    element.textContent = text;
    if (number) element.className = "num";
    return element;
  }

  function table(state, details) {
    const box = details.querySelector(".scroll");
    box.replaceChildren();
    for (const mark in state.spec.hover) {
      const hover = state.spec.hover[mark], now = columns(state, mark), names = Object.keys(hover);
      const grid = document.createElement("table"), head = document.createElement("tr");
      names.forEach((name) => { const th = cell("th", hover[name]); th.scope = "col"; head.append(th); });
      grid.append(document.createElement("thead"), document.createElement("tbody"));
      grid.tHead.append(head);
      const count = (now[names[0]] || []).length;
      for (let i = 0; i < count; i++) {
        const row = document.createElement("tr");
        names.forEach((name) => { const v = now[name][i]; row.append(cell("td", v === null ? "not known" : String(v), typeof v === "number")); });
        grid.tBodies[0].append(row);
      }
      if (count) box.append(grid);
    }
  }

  /* Numbers as CSV, with the slider values in the first columns; one block for each kind of mark. */
  function csv(state) {
    const quote = (v) => { const text = v === null ? "" : String(v); return /[",\n]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text; };
    const sliders = state.spec.frames.sliders, place = sliders.map((s, i) => s.values[state.at[i]]);
    const blocks = [];
    for (const mark in state.spec.hover) {
      const hover = state.spec.hover[mark], now = columns(state, mark), names = Object.keys(hover);
      const lines = [[...sliders.map((s) => s.dim), ...names.map((n) => hover[n])].map(quote).join(",")];
      (now[names[0]] || []).forEach((_, i) => lines.push([...place, ...names.map((n) => now[n][i])].map(quote).join(",")));
      if (lines.length > 1) blocks.push(lines.join("\n"));
    }
    return blocks.join("\n\n") + "\n";
  }

  async function copy(text, status) {
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) { /* a page from a file may have no clipboard */
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    status.textContent = "Copied " + (text.split("\n").length - 1) + " lines.";
  }

  function markSection() {
    /* The contents show the section that is being read. */
    const links = [...document.querySelectorAll(".report > nav a")];
    if (!links.length || !window.IntersectionObserver) return;
    const mark = () => {
      const above = links.filter((link) => document.getElementById(link.hash.slice(1)).getBoundingClientRect().top < 150);
      links.forEach((link) => link.removeAttribute("aria-current"));
      if (above.length) above[above.length - 1].setAttribute("aria-current", "true");
    };
    const observer = new IntersectionObserver(mark, { rootMargin: "-150px 0px 0px 0px", threshold: [0, 1] });
    links.forEach((link) => observer.observe(document.getElementById(link.hash.slice(1))));
    mark();
  }

  function move(state, dim, value) {
    const i = state.spec.frames.sliders.findIndex((slider) => slider.dim === dim);
    if (i < 0) return false;
    const slider = state.spec.frames.sliders[i], index = slider.values.indexOf(value);
    if (index < 0) return false;
    const control = state.element.querySelector('[data-dim="' + dim + '"]');
    if (control.tagName === "FIELDSET") control.querySelectorAll("input")[index].checked = true;
    else {
      control.value = String(index);
      control.setAttribute("aria-valuetext", value);
      state.element.querySelector('output[for="' + control.id + '"]').textContent = value;
    }
    if (state.at[i] === index) return false;
    state.at[i] = index;
    show(state);
    return true;
  }

  /* The address holds the sliders that the reader moved: #SECTION&stage=s6&layer=1. */
  function address() {
    const parts = window.location.hash.slice(1).split("&").filter((part) => part);
    const section = parts.length && !parts[0].includes("=") ? parts.shift() : "";
    const places = new Map();
    for (const part of parts) {
      const at = part.indexOf("=");
      try { if (at > 0) places.set(decodeURIComponent(part.slice(0, at)), decodeURIComponent(part.slice(at + 1))); } catch (error) { /* not ours */ }
    }
    return { section, places };
  }

  const moved = new Map();

  function writeAddress(section) {
    const parts = [...moved].map(([dim, value]) => encodeURIComponent(dim) + "=" + encodeURIComponent(value));
    const hash = [...(section ? [section] : []), ...parts].join("&");
    try { window.history.replaceState(null, "", "#" + hash); } catch (error) { /* a page inside another page has no address */ }
  }

  function remember(dim, value) {
    moved.set(dim, value);
    writeAddress(address().section);
  }

  function followAddress() {
    const { section, places } = address();
    for (const [dim, value] of places) {
      let known = false;
      for (const state of figures.values()) {
        const slider = state.spec.frames.sliders.find((s) => s.dim === dim);
        if (slider && slider.values.includes(value)) { known = true; move(state, dim, value); }
      }
      if (known) moved.set(dim, value);
    }
    const target = section && places.size ? document.getElementById(section) : null;
    if (target) target.scrollIntoView({ behavior: "instant" });  /* at once, also where the page scrolls smoothly */
    if (section && moved.size && !places.size) writeAddress(section);  /* a link of the contents keeps the sliders */
  }

  function connectControls(state) {
    state.element.querySelectorAll(".slider input").forEach((input) => {
      input.addEventListener("input", () => {
        const dim = input.closest("[data-dim]").dataset.dim;
        const slider = state.spec.frames.sliders.find((s) => s.dim === dim);
        const value = slider.values[Number(input.value)];
        const link = document.getElementById("link-all"), linked = link !== null && link.checked;
        move(state, dim, value);
        if (linked) for (const other of figures.values()) if (other !== state) move(other, dim, value);
        if (linked) remember(dim, value);
      });
    });
    const details = state.element.querySelector("details");
    if (details) {
      details.addEventListener("toggle", () => { if (details.open) table(state, details); });
      details.querySelector(".copy").addEventListener("click", () => copy(csv(state), details.querySelector(".copied")));
    }
  }

  function applyTheme(state) {
    if (!state.figure) return;
    const colors = data.theme[theme];
    for (const model of state.figure.references()) {
      if (/Axis$/.test(model.type)) {
        model.setv({ major_label_text_color: colors.foreground, axis_label_text_color: colors.foreground, axis_line_color: colors.axis, major_tick_line_color: colors.axis });
      } else if (model.type === "Grid") {
        model.setv({ grid_line_color: colors.axis });
      } else if (model.type === "LabelSet" && model.tags[0] === "foreground") {
        model.setv({ text_color: { value: colors.foreground } });
      } else if (model.type === "GlyphRenderer") {
        const glyph = model.glyph;
        if (glyph.type === "Scatter") glyph.setv({ line_color: { value: colors.foreground } });
        if (glyph.type === "Quad" && glyph.fill_color.transform) {
          const mapper = glyph.fill_color.transform;
          if (!state.cells) state.cells = { mapper, mark: model.name, light: mapper.palette, kind: state.spec.palette };
          mapper.setv({ palette: (state.spec.palette && dark(state.spec.palette)) || state.cells.light, nan_color: colors.unknown });
          glyph.setv({ line_color: { value: colors.paper } });
        }
        if (model.tags[0] === "foreground" || model.tags[0] === "muted") glyph.setv({ line_color: { value: colors[model.tags[0]] } });
      }
    }
    show(state);
  }

  function setTheme(name) {
    theme = name;
    root.dataset.theme = name;
    const button = document.getElementById("theme");
    if (button) button.textContent = name === "dark" ? "Light page" : "Dark page";
    document.querySelectorAll(".swatch").forEach((swatch) => { swatch.style.background = themeColor(swatch.dataset.color); });
    figures.forEach(applyTheme);
  }

  function allowTouchScroll(view) {
    /* A finger on a figure scrolls the page; Bokeh would capture the gesture. */
    const canvas = view.canvas_view || view.canvas;
    if (canvas && canvas.events_el) canvas.events_el.style.touchAction = "pan-y pinch-zoom";
  }

  async function draw(id) {
    const spec = data.figures[id], element = document.getElementById(id);
    const state = { spec, element, sources: {}, figure: null, at: spec.frames.sliders.map((s) => s.start) };
    figures.set(id, state);
    connectControls(state);
    const views = await Bokeh.embed.embed_item(spec.item, id + "-plot");
    state.figure = Bokeh.documents[Bokeh.documents.length - 1].roots()[0];
    allowTouchScroll(views.get_one(state.figure));
    for (const model of state.figure.references()) {
      if (model.type === "ColumnDataSource" && model.name) state.sources[model.name] = model;
    }
    applyTheme(state);
  }

  async function start() {
    const dark = window.matchMedia("(prefers-color-scheme: dark)");
    const preferred = () => (dark.matches && !root.dataset.lightOnly ? "dark" : "light");
    setTheme(preferred());
    dark.addEventListener("change", () => setTheme(preferred()));
    const button = document.getElementById("theme");
    if (button) button.addEventListener("click", () => setTheme(theme === "dark" ? "light" : "dark"));
    markSection();
    let screenTheme = theme;
    window.addEventListener("beforeprint", () => {
      screenTheme = theme;
      document.querySelectorAll(".summary details, .points details").forEach((details) => { details.open = true; });
      setTheme("light");
      /* Figures have a fixed size in pixels; scale them to paper of 18 cm instead of cutting them off. */
      document.querySelectorAll(".plot").forEach((plot) => plot.style.setProperty("--fit", String(Math.min(1, 660 / plot.clientWidth))));
    });
    window.addEventListener("afterprint", () => setTheme(screenTheme));
    for (const id of Object.keys(data.figures)) await draw(id);
    window.addEventListener("hashchange", followAddress);
    followAddress();
    window.stratalens = { figures };
    root.dataset.ready = "true";
  }

  start().catch((error) => {
    const note = document.createElement("p");
    note.className = "banner";
    note.textContent = "The figures could not be drawn in this browser: " + error.message;
    document.querySelector("main").prepend(note);
    root.dataset.ready = "failed";
    console.error(error);
  });
})();
