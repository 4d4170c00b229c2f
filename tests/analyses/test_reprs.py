"""HTML of stores and results in a notebook: it has the facts, and text from the data is never markup."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

import stratalens.analyses.accessor  # noqa: F401  # registers ds.strata
from stratalens.analyses.centroids.centroids import centroids
from stratalens.store import ActivationWriter, open_store
from stratalens.store.errors import InputError
from support import results
from support.stores import make_store

EVIL = "<img src=x onerror=alert(1)>"
ALLOWED = {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}


class Tags(HTMLParser):
    """Tags and text of a page; unclosed tags raise."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def store(tmp_path: Path) -> Path:
    stages = ("untrained", EVIL, "s2")
    labels = {"<b>kind": ["x"] * 12, "trained_stage": [EVIL, "s2"] * 6}
    return make_store(tmp_path / "run.zarr", stages, 2, 12, labels=labels, skip={"s2": [0, 1, 2]})


def test_an_open_store_shows_dims_completeness_and_provenance(tmp_path: Path) -> None:
    page = Tags(open_store(store(tmp_path)).strata._repr_html_())
    assert set(page.tags) <= ALLOWED
    assert EVIL in page.words  # as text
    assert any("<b>kind" in w for w in page.words)
    assert any("entity 12" in w for w in page.words)
    at = page.words.index("s2")
    assert page.words[at + 1] == "75%"
    assert "tokenizer_fingerprint" in page.words
    assert any("blocks.{layer}" in w for w in page.words)


def test_a_path_is_shown_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(tmp_path)
    (tmp_path / "notebooks").mkdir()
    for folder, shown in ((tmp_path, "run.zarr"), (tmp_path / "notebooks", str(path))):
        monkeypatch.chdir(folder)
        ds = open_store(path)
        assert f"store {shown}" in Tags(ds.strata._repr_html_()).words
        assert ds.attrs["path"] == str(path)


def test_a_writer_shows_the_recorded_rows(tmp_path: Path) -> None:
    with ActivationWriter(store(tmp_path)) as writer:
        page = Tags(writer._repr_html_())
    assert set(page.tags) <= ALLOWED
    assert any(w.endswith("run.zarr: complete") for w in page.words)
    assert "100%" in page.words  # skipped rows are committed


def test_a_result_shows_its_origin(tmp_path: Path) -> None:
    ds = open_store(store(tmp_path))
    result = centroids(ds, skip_missing=True, progress=False)
    page = Tags(result.strata._repr_html_())
    assert set(page.tags) <= ALLOWED
    assert "result of resid_post" in page.words
    assert "trained_stage" in page.words
    at = page.words.index("count")
    assert page.words[at + 1 : at + 5] == ["stage, group", "4", "6", "0%"]
    array = Tags(result["centroid"].strata._repr_html_())
    assert "centroid" in array.words


def test_a_result_of_probes_shows_its_best_place_first() -> None:
    result = results.probes(("base", EVIL, "s2"), 2)
    page = Tags(result.strata._repr_html_())
    best = result.strata.best(1).iloc[0]
    (line,) = [
        word for word in page.words if word.startswith(f"stage {best['stage']}, layer {best['layer']}, token last")
    ]
    assert f"accuracy {best['estimate']:.2f} [{best['low']:.2f}, {best['high']:.2f}], null 0.50" in line
    assert page.words.index(line) < page.words.index("dims")
    lazy = Tags(result.chunk().strata._repr_html_())
    assert not any(word.startswith("best place") for word in lazy.words)  # a look computes nothing


def test_a_notebook_shows_the_frames_of_the_caller_alone(tmp_path: Path) -> None:
    ds = open_store(store(tmp_path))

    def cell() -> None:
        ds.strata.centroids(by="trained_stag")

    with pytest.raises(InputError, match="trained_stag") as caught:
        cell()
    lines = caught.value._render_traceback_()
    assert any("in cell" in line and "test_reprs.py" in line for line in lines)
    assert not any("centroids.py" in line or "accessor.py" in line for line in lines)
    assert lines[-1].startswith("stratalens.store.errors.InputError: ")
    assert "trained_stage" in "\n".join(lines)  # the valid names
