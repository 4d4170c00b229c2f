"""The report as a file: sections, size, missing results, errors."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from stratalens.analyses.plots.forgetting import forgetting_table
from stratalens.analyses.report.report import report
from stratalens.analyses.stats.quantiles import statistic_quantiles
from stratalens.store.errors import InputError
from support.results import effects, planted_results, store_info

TITLES = [
    "Is there an order?",
    "Separability of the groups",
    "Layer, token and stage",
    "Controls",
    "Directions",
    "Limitations",
    "Recorded data",  # metadata comes last
]


def write(path: Path, results: dict[str, Any], **options: Any) -> str:
    return report(results, path / "report.html", store_info=options.pop("info", store_info()), **options).read_text()


def sentences(page: str) -> dict[str, list[str]]:
    match = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert match is not None
    data = json.loads(match.group(1))
    return {name: figure["sentences"] for name, figure in data["figures"].items()}


def test_sections_come_in_the_order_of_the_questions(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2"), 2)
    results.pop("store")
    page = write(tmp_path, results)
    assert re.findall(r"<h2 id=\"[\w-]+\">(.*?)</h2>", page) == ["Summary", *TITLES]


def test_the_summary_describes_the_last_stage_that_trained_a_group(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2", "mixed"), 2)
    for name in ("projection", "probes"):
        data = results[name]
        assert isinstance(data, xr.Dataset)
        dims = [dim for dim in ("group", "pair") if dim in data.dims]
        keep = {d: [i for i, v in enumerate(map(str, data[d].values)) if "mixed" not in v] for d in dims}
        results[name] = data.isel(keep)
    page = write(tmp_path, {name: results[name] for name in ("projection", "probes")})
    short = re.sub("<[^>]*>", "", page.split('id="summary"')[1].split("</section>")[0])
    assert short.count("At stage s2") == 2
    assert "mixed" not in short
    assert re.findall(r"<strong>(.*?)</strong>", page.split('id="summary"')[1].split("</section>")[0]) == [
        "Order.",
        "Separability.",
        "Limitations.",
    ]
    assert page.index('id="summary"') < page.index("<dt>Model</dt>")  # results come before the header


def test_it_is_small_enough_and_asks_for_nothing_at_the_size_of_the_demo(tmp_path: Path) -> None:
    results = planted_results()
    results["statistics"] = statistic_quantiles(results.pop("store"))
    page = write(tmp_path, results)
    assert len(page.encode()) < 8_000_000
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?(?:https?:)?//", outside)
    assert "<script src" not in page
    assert "default-src 'none'" in page


def test_without_results_every_section_says_how_to_get_them(tmp_path: Path) -> None:
    page = write(tmp_path, {})
    assert page.count("Not computed in this run.") == 5
    assert "sl.project(ds" in page


def test_the_quick_setting_says_that_its_results_are_not_meaningful(tmp_path: Path) -> None:
    assert "these results are not meaningful" in write(tmp_path, {}, quick=True)
    assert "not meaningful" not in write(tmp_path, {})


def test_figures_of_one_kind_have_different_ids_and_the_untrained_model_is_separate(
    tmp_path: Path,
) -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 2)
    store = results.pop("store")
    loss = forgetting_table(store.isel(token=0), statistic="loss")
    loss["value"][{"stage": loss["stage"].values.tolist().index("base")}] = 27.0
    entropy = forgetting_table(store.isel(token=0), statistic="entropy")
    page = write(tmp_path, results | {"forgetting": {"loss": loss, "entropy": entropy}})
    said = sentences(page)
    assert "mean loss" in said["fig-forgetting-forgetting"][0]
    assert "mean entropy" in said["fig-forgetting-forgetting-nr-2"][0]
    later = loss["value"].sel(stage=["s1", "s2"]).where(loss["exposure"].sel(stage=["s1", "s2"]) < 0)
    words = f"{float(later.mean()):.2f} before their training, 27.00 in the untrained model"
    assert words in said["fig-forgetting-forgetting"][0]
    ids = re.findall(r' id="([^"]*)"', page.split("<script")[0])
    assert len(ids) == len(set(ids))


def test_interventions_have_a_section_with_their_verdicts(tmp_path: Path) -> None:
    steered, ablated = effects(), effects(doses=(1.0,), layers=1)
    page = write(tmp_path, {"interventions": {"steer": steered, "ablate": ablated}})
    said = sentences(page)
    assert "0 of 20 random directions are as strong" in " ".join(said["fig-interventions-dose-response"])
    assert "fig-interventions-dose-response-nr-2" in said
    assert "&#39;acts&#39; at" in page or "'acts' at" in page
    assert "fig-interventions-intervention-map-nr-2" not in page  # one layer has no map
    for line in [*steered.attrs["verdict"].splitlines(), *ablated.attrs["verdict"].splitlines()]:
        assert html.unescape(page).count(line) == 1
    assert "Does the model use it?" not in write(tmp_path, {})


def test_headline_numbers_are_not_among_the_limitations(tmp_path: Path) -> None:
    page = write(tmp_path, {}, numbers=["It is 0.7."], notes=["One seed."])
    known, unknown = page.split('id="numbers"')[1].split('id="unknown"')
    assert "It is 0.7." in known
    assert "One seed." in unknown
    assert "It is 0.7." not in unknown


@pytest.mark.parametrize("stages", [("base", "s1", "s2"), ("model",)])
def test_few_stages_still_make_a_page(tmp_path: Path, stages: tuple[str, ...]) -> None:
    results = planted_results(stages, 1, ("last",))
    results["statistics"] = statistic_quantiles(results.pop("store"))
    assert "stratalens report" in write(tmp_path, results)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown result 'probs'. Valid: .*probes"):
        report({"probs": None}, tmp_path / "r.html", store_info={})
    with pytest.raises(InputError, match=r"is a folder"):
        report({}, tmp_path, store_info={})
    assert list(tmp_path.iterdir()) == []
