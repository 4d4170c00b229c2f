"""The report in a real browser without a network: sliders, themes, width, safety of names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratalens.analyses.plots.colors import DIVERGING_DARK, text_colors_on
from stratalens.analyses.report.report import report
from stratalens.analyses.stats.quantiles import statistic_quantiles
from support.browser import NEEDS_CHROMIUM, chromium  # noqa: F401 - the fixture `browser`
from support.results import planted_results, store_info

EVIL = '</script><script>window.pwned=1</script><img src=x onerror="window.pwned=2">'
MATH = "$$x^2$$ \\(a\\)"

pytestmark = NEEDS_CHROMIUM


def everything(stages: tuple[str, ...], layers: int = 3) -> dict[str, Any]:
    results = planted_results(stages, layers)
    results["statistics"] = statistic_quantiles(results.pop("store"))
    return results


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = everything(("base", "s1", "s2", "s3"))
    return report(results, tmp_path_factory.mktemp("report") / "report.html", store_info=store_info(), quick=True)


@pytest.fixture(scope="module")
def hostile_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = everything(("base", f"1{EVIL}", f"2{MATH}", "3<b>&amp;'\"\n\u2028"))
    info = store_info() | {"model": EVIL, "labels": {EVIL: "string"}, "prompts": EVIL}
    info |= {"completeness": {EVIL: {EVIL: 0.5}}, EVIL: EVIL, "provenance": {EVIL: EVIL}}
    target = tmp_path_factory.mktemp("hostile") / "report.html"
    return report(results, target, store_info=info, notes=[EVIL, MATH], title=EVIL, highlights=[EVIL])


class Opened:
    """A page opened without a network, with its requests and its console messages."""

    def __init__(self, browser: Any, file: Path, width: int = 1366, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda r: self.asked.append(r.url))
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]")

    def remote(self) -> list[str]:
        return [url for url in self.asked if not url.startswith(("file:", "data:", "blob:"))]

    def column(self, figure: str, mark: str, name: str) -> list[Any]:
        script = """([f, m, c]) => Array.from(window.stratalens.figures.get(f).sources[m].data[c])"""
        values: list[Any] = self.page.evaluate(script, [figure, mark, name])
        return values

    def slide(self, figure: str, dim: str, index: int) -> None:
        self.page.evaluate(
            """([id, v]) => { const e = document.getElementById(id);
                if (e.tagName === "FIELDSET") return e.querySelectorAll("input")[v].click();
                e.value = String(v);
                e.dispatchEvent(new Event("input", {bubbles: true})); }""",
            [f"{figure}-{dim}", index],
        )


@pytest.fixture(scope="module")
def once(browser: Any, page_file: Path) -> Iterator[Opened]:
    it = Opened(browser, page_file)
    yield it
    it.context.close()


@pytest.fixture
def opened(once: Opened) -> Opened:
    """The page that all tests share, with its sliders at their last values."""
    once.page.locator("#link-all").check()
    for dim, last in (("stage", 3), ("layer", 2), ("token", 1)):
        once.slide("fig-separable-pair-matrix", dim, last)
    return once


def test_it_draws_everything_without_network_or_complaint(opened: Opened) -> None:
    assert opened.page.locator("html").get_attribute("data-ready") == "true"
    assert opened.remote() == []
    assert opened.complaints == []
    figures = opened.page.locator("figure").count()
    assert figures == 13
    drawn = "() => Bokeh.documents.length"
    assert opened.page.evaluate(drawn) == figures


def test_a_slider_changes_data_sentence_and_its_own_label(opened: Opened) -> None:
    figure = "fig-separable-pair-matrix"
    before, said = opened.column(figure, "pairs", "value"), opened.page.locator(f"#{figure}-sentence").inner_text()
    opened.slide(figure, "stage", 0)
    after = opened.column(figure, "pairs", "value")
    assert max(before) > 0.8 > 0.65 > max(after)  # planted: nothing before training
    now = opened.page.locator(f"#{figure}-sentence").inner_text()
    assert now != said
    assert "stage base" in now
    assert opened.page.locator(f'output[for="{figure}-stage"]').inner_text() == "base"
    assert opened.page.locator(f"#{figure}-stage").get_attribute("aria-valuetext") == "base"


def test_sliders_move_by_keyboard_and_together_unless_unlinked(opened: Opened) -> None:
    one, other = "fig-order-centroid-path", "fig-separable-pair-matrix"
    opened.page.locator(f"#{one}-layer").focus()
    opened.page.keyboard.press("ArrowLeft")
    assert opened.page.locator(f'output[for="{other}-layer"]').inner_text() == "1"
    opened.page.locator("#link-all").uncheck()
    opened.page.locator(f"#{one}-layer").focus()
    opened.page.keyboard.press("ArrowLeft")
    assert opened.page.locator(f'output[for="{one}-layer"]').inner_text() == "0"
    assert opened.page.locator(f'output[for="{other}-layer"]').inner_text() == "1"


def test_the_table_of_numbers_follows_the_slider(opened: Opened) -> None:
    figure = "fig-order-centroid-path"
    opened.page.locator(f"#{figure} summary").click()
    opened.page.locator(f"#{figure} tbody tr").first.wait_for()
    rows = opened.page.locator(f"#{figure} tbody tr")
    assert rows.count() == 3
    before = rows.nth(2).inner_text()
    assert before.startswith("s3")
    opened.slide(figure, "stage", 0)
    assert opened.page.locator(f"#{figure} tbody tr").nth(2).inner_text() != before


def test_a_dim_of_two_values_has_two_buttons_and_the_address_keeps_the_sliders(browser: Any, page_file: Path) -> None:
    it, one, other = Opened(browser, page_file), "fig-order-centroid-path", "fig-separable-pair-matrix"
    it.page.locator(f"#{other}-token input:checked").focus()
    assert it.page.locator(f"#{other}-token label").count() == 2
    it.page.keyboard.press("ArrowLeft")
    chosen = it.page.locator(f"#{one}-token input:checked").evaluate("(e) => e.parentElement.innerText")
    assert chosen == it.page.locator(f"#{other}-token input:checked").evaluate("(e) => e.parentElement.innerText")
    it.slide(one, "stage", 1)
    it.page.get_by_role("link", name="Controls").click()
    it.page.wait_for_function("() => window.location.hash.startsWith('#controls&')")
    link = it.page.url
    said = it.page.locator(f"#{other}-sentence").inner_text()
    assert "stage=s1" in link
    assert f"token={chosen}" in link
    again = Opened(browser, page_file)
    again.page.goto(link)
    again.page.reload()
    again.page.wait_for_selector("html[data-ready]")
    assert again.page.locator(f"#{other}-sentence").inner_text() == said
    assert again.page.evaluate("document.getElementById('controls').getBoundingClientRect().top") < 200
    again.page.goto(f"{page_file.as_uri()}#controls&stage=%E0%A4%A&layer=99&<b>=1")  # nothing of this exists
    again.page.reload()
    again.page.wait_for_selector("html[data-ready=true]")
    for opened_page in (it, again):
        assert (opened_page.complaints, opened_page.remote()) == ([], [])
        opened_page.context.close()


def test_heat_maps_of_a_dark_page_are_dark_with_readable_numbers(browser: Any, page_file: Path) -> None:
    it, figure = Opened(browser, page_file), "fig-separable-pair-matrix"
    cells = """(id) => { const c = window.stratalens.figures.get(id).cells;
      return [c.mapper.palette[Math.floor(c.mapper.palette.length / 2)], c.mapper.low, c.mapper.high]; }"""
    assert it.page.evaluate(cells, figure)[0] == "#f7f7f7"
    light = it.column(figure, "numbers", "text_color")
    it.page.locator("#theme").click()
    neutral, low, high = it.page.evaluate(cells, figure)
    values = np.array(it.column(figure, "pairs", "value"), dtype=float)
    assert neutral == DIVERGING_DARK[127]
    assert it.column(figure, "numbers", "text_color") == text_colors_on(values, low, high, DIVERGING_DARK)
    it.page.locator("#theme").click()
    assert it.column(figure, "numbers", "text_color") == light
    assert it.page.evaluate(cells, figure)[0] == "#f7f7f7"
    assert it.complaints == []
    it.context.close()


WIDER = """() => [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll")
    && e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.className || e.tagName)"""


def wider_than_window(it: Opened) -> list[str]:
    wider: list[str] = it.page.evaluate(WIDER)
    if it.page.evaluate("document.documentElement.scrollWidth > window.innerWidth"):
        wider.append("the page itself")
    return wider


def test_nothing_is_wider_than_a_laptop_or_a_phone(browser: Any, page_file: Path, opened: Opened) -> None:
    assert wider_than_window(opened) == []
    phone = Opened(browser, page_file, 390)
    assert wider_than_window(phone) == []
    phone.context.close()


CONTRAST = """() => {
  const rgb = (s) => { const n = s.match(/[0-9.]+/g).map(Number);
    return n.length > 3 && n[3] === 0 ? null : n.slice(0, 3); };
  const lum = (c) => { const f = c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * f[0] + .7152 * f[1] + .0722 * f[2]; };
  const bad = [];
  for (const e of document.querySelectorAll("body *")) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) || !e.getClientRects().length) continue;
    if (["SCRIPT", "STYLE", "NOSCRIPT"].includes(e.tagName)) continue;
    let back = null;
    for (let p = e; p && !back; p = p.parentElement) back = rgb(getComputedStyle(p).backgroundColor);
    const a = lum(rgb(getComputedStyle(e).color)), b = lum(back || [255, 255, 255]);
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push([e.tagName, e.className, ratio]);
  }
  return bad;
}"""


def test_contrast_meets_wcag_aa_light_and_dark(opened: Opened) -> None:
    assert opened.page.evaluate(CONTRAST) == []
    opened.page.locator("#theme").click()
    assert opened.page.locator("html").get_attribute("data-theme") == "dark"
    assert opened.page.evaluate(CONTRAST) == []
    opened.page.locator("#theme").click()


def test_the_dark_page_has_its_own_stage_colours_and_goes_back(opened: Opened) -> None:
    figure = "fig-order-centroid-path"
    light = opened.column(figure, "centroids", "color")
    opened.page.locator("#theme").click()
    dark = opened.column(figure, "centroids", "color")
    assert set(light).isdisjoint(dark)
    assert len(set(dark)) == 3
    opened.page.locator("#theme").click()
    assert opened.column(figure, "centroids", "color") == light


def test_headings_are_in_order_and_figures_are_described(opened: Opened) -> None:
    levels = opened.page.evaluate('() => [...document.querySelectorAll("h1,h2,h3,h4")].map(e => +e.tagName[1])')
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    plots = opened.page.locator(".plot")
    for i in range(plots.count()):
        assert plots.nth(i).get_attribute("role") == "img"
        for name in str(plots.nth(i).get_attribute("aria-labelledby")).split():
            assert opened.page.locator(f"#{name}").inner_text().strip()
    ids = opened.page.evaluate("() => [...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    unlabelled = "() => [...document.querySelectorAll('input')].filter(e => !e.labels.length).length"
    assert opened.page.evaluate(unlabelled) == 0


def test_nothing_from_the_data_runs_or_becomes_markup(browser: Any, hostile_file: Path) -> None:
    it = Opened(browser, hostile_file, 390)
    assert wider_than_window(it) == []
    assert it.page.locator("html").get_attribute("data-ready") == "true"
    for summary in it.page.locator("figure summary").all():
        summary.click()
    for figure in ("fig-order-centroid-path", "fig-directions-cosine-matrix"):
        plot = it.page.locator(f"#{figure}-plot")
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box is not None
        for share in (0.2, 0.35, 0.5, 0.65, 0.8):  # shows hover boxes on the way
            it.page.mouse.move(box["x"] + box["width"] * share, box["y"] + box["height"] * share)
    assert it.page.evaluate("window.pwned") is None
    assert it.page.locator("img").count() == 0
    assert it.remote() == []
    assert it.complaints == []
    assert "window.pwned=1" in it.page.locator("h1").inner_text()  # shown as text
    it.context.close()


def test_it_prints_light_and_without_controls(browser: Any, page_file: Path) -> None:
    it = Opened(browser, page_file, scheme="dark")
    assert it.page.locator("html").get_attribute("data-theme") == "dark"
    pdf = it.page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    fit = "(plot) => plot.clientWidth * plot.style.getPropertyValue('--fit')"
    it.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    widths = it.page.evaluate(f"[...document.querySelectorAll('.plot')].map({fit})")
    it.page.emulate_media(media="print")
    assert it.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not it.page.locator("nav").is_visible()
    assert widths
    assert max(widths) <= 661  # pixels of a sheet of A4 or letter between its margins: no figure is cut off
    it.context.close()
