"""stratalens push: the card, its figure, and the commands that read from the URL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import stratalens as sl
from stratalens.plugin.interop.card import card_text
from stratalens.plugin.interop.push import draw_norms
from support.range_server import range_server
from support.thorough import THOROUGH

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


def test_push_and_read_from_a_web_server(recorded: Path, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "web" / "run.zarr"
    options = ["--title", "Names | <b>", "--license", "cc-by-4.0", "--citation", "Doe 2026"]
    done = invoke("push", recorded, target, *options, "--json")
    assert done.exit_code == 0, done.output
    sent = json.loads(done.stdout)
    assert sent["files"] == sent["total_files"] > 0
    assert sent["figure"]
    again = json.loads(invoke("push", recorded, target, *options, "--json").stdout)
    assert again["files"] == 0
    assert sl.verify_store(target).ok
    assert not sl.verify_store(target).notes

    card = (target / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "cc-by-4.0"
    assert "# Names \\| &lt;b>" in card
    for text in ("`resid_post`", "`trained_stage`", "| 3 | s3 |", "Doe 2026", "![", f'sl.open_store("{target}")'):
        assert text in card

    line = next(line for line in card.splitlines() if line.startswith("sl.plots.stage_layer_map"))
    with range_server(tmp_path / "web") as (address, _):
        url = f"{address}/run.zarr"
        figure = eval(line.replace(str(target), url), {"sl": sl})  # the line of the card, at the URL
        file = tmp_path / "again.png"
        sl.plots.save(figure, file)
        assert file.read_bytes() == (target / "figure.png").read_bytes() == draw_norms(recorded, "resid_post_l2")
        assert invoke("info", url).exit_code == 0
        answer = invoke("analyze", url, "--verbs", "centroids", "-o", tmp_path / "results", "--json")
        assert answer.exit_code == 0, answer.output
        if THOROUGH:
            report = invoke("report", url, "--permutations", "0", "-o", tmp_path / "report.html")
            assert report.exit_code == 0, report.output
            assert "resid_post" in (tmp_path / "report.html").read_text(encoding="utf-8")
        refused = invoke("verify", url)
        assert (refused.exit_code, "cannot be listed" in refused.output) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.zarr", "out.zarr"], "there is no store"),
        (["STORE", "https://example.com/run.zarr"], "a web server takes no files"),
        (["STORE", "hf://datasets/me"], "names no repository"),
        (["STORE", "STORE/../occupied"], "holds other files and no store"),
        (["STORE", "out.zarr", "--figure", "STORE/zarr.json"], "is no PNG file"),
        (["STORE", "out.zarr", "--figure", "none.png"], "cannot be read"),
    ],
)
def test_refusals(
    arguments: list[str],
    message: str,
    recorded: Path,
    tmp_path: Path,
    invoke: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    occupied = recorded / "../occupied"
    occupied.mkdir(exist_ok=True)
    (occupied / "thesis.txt").write_text("mine")
    done = invoke("push", *(argument.replace("STORE", str(recorded)) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.output.split())
    assert not (tmp_path / "out.zarr").exists()


def test_a_card_of_a_store_without_a_figure(recorded: Path) -> None:
    from stratalens.store.state.info import info

    text = card_text(info(recorded), "hf://datasets/me/run@v1")
    assert "\n# run\n" in text
    assert "![" not in text
    assert "license" not in text.split("---")[1]
