"""The report as a file: sections, sentences, size, what is missing, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.plots.html_page import json_block
from stratalens.analyses.plots.stages import forgetting_table
from stratalens.analyses.report.report import report
from stratalens.analyses.report.sections import build_sections
from stratalens.analyses.stats.quantiles import statistic_quantiles
from stratalens.store.errors import InputError
from support.results import planted_results, store_info

ENDS = (("", 0.0), ("_low", -0.01), ("_high", 0.01))
TITLES = [
    "Recorded data",
    "Order of the groups",
    "Separability of the groups",
    "Layer, token and stage",
    "Controls",
    "Directions",
    "Limitations",
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


def test_in_short_is_about_the_end_of_what_trained_the_groups_not_about_what_came_after(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(("scale", "words"), [(1.0, "far above chance"), (0.0, "not distinguishable from chance")])
def test_sentences_follow_the_numbers(tmp_path: Path, scale: float, words: str) -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3, scale=scale)
    results.pop("store")
    said = sentences(write(tmp_path, results))["fig-where-layer-sweep"][-1]
    value = float(results["probes"]["accuracy"].isel(stage=-1, layer=-1, token=-1, pair=1).mean())
    assert results["probes"]["pair"].values[1] == "s1 v s3"
    assert f"s1 v s3: accuracy {value:.2f}" in said
    assert words in said


def test_the_untrained_stage_shows_no_order_in_its_sentence(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3)
    results.pop("store")
    said = sentences(write(tmp_path, results))["fig-order-centroid-path"]
    assert "do not show training order" in said[0]
    assert "follow training order" in said[-1]
    assert "p ≤ 0.001" in said[-1]


def test_control_by_time_uses_only_pairs_not_seen_yet() -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3)
    probes = results["probes"]
    at_base = probes["accuracy"].isel(stage=0).mean("fold")
    # s2 v s3 is also unseen at stage s1
    unseen = probes["accuracy"].sel(stage="s1", pair="s2 v s3").mean("fold")
    section = next(s for s in build_sections(results) if s.key == "controls")
    (said,) = section.points
    per_pair = [*at_base.mean(["layer", "token"]).values.tolist(), float(unseen.mean())]
    planted = [float(f"{v:.2f}") for v in (min(per_pair), max(per_pair))]
    assert f"{planted[0]:.2f} to {planted[1]:.2f}" in said


def test_controls_made_at_one_stage_and_one_pair_are_compared_there_only(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3)
    results.pop("store")
    for name in ("statistics_probe", "matched_probe", "residual_probe"):
        results[name] = results[name].isel(stage=[-1], token=[-1]).sel(pair=["s1 v s3"])
    said = sentences(write(tmp_path, results))["fig-controls-control-comparison"]
    assert len(said) == 3  # one per layer: stage and token are fixed
    assert said[-1].startswith("At stage s3, layer 2, token last, accuracy of s1 v s3: activations ")


def test_figures_of_one_kind_have_ids_of_their_own_and_what_is_before_training_is_not_the_untrained_model(
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
    assert f"{float(later.mean()):.2f} before their training, 27.00 in the untrained model" in said[
        "fig-forgetting-forgetting"][0]  # fmt: skip
    ids = re.findall(r' id="([^"]*)"', page.split("<script")[0])
    assert len(ids) == len(set(ids))


def test_labels_of_axes_fit_their_figures() -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3)
    store = results.pop("store")
    results["statistics"] = statistic_quantiles(store)
    results["forgetting"] = {"answer_loss": forgetting_table(store, statistic="answer_loss")}
    specs = [figure.spec for section in build_sections(results) for figure in section.figures]
    assert len(specs) > 12
    for spec in specs:  # in letters of six pixels; a phone leaves 290 pixels beside the ticks
        assert len(spec.x.label) <= 48, spec.name
        assert len(spec.y.label) <= (spec.height - 80 - 40 * spec.x.rotate) / 6, spec.name


def test_pairs_below_chance_are_not_counted_as_separable() -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 2)
    probes = results["probes"]
    above = xr.full_like(probes["accuracy"].mean("fold"), 0.8)
    above[{"pair": 0}] = 0.3
    probes = probes.assign(accuracy_mean=above, accuracy_low=above - 0.1, accuracy_high=above + 0.1)
    section = next(s for s in build_sections(results | {"probes": probes}) if s.key == "separable")
    (figure,) = section.figures
    assert "2 of 3 pairs are above chance in separate tests and 1 below chance" in figure.sentence(
        figure.spec.default_values()
    )
    section = next(s for s in build_sections({"probes": probes.isel(pair=[1])}) if s.key == "separable")
    assert not section.figures  # one pair is neither the best nor the worst, and no matrix
    said = (
        "s1 v s3: accuracy 0.80 (95 % 0.70 to 0.90), far above chance (0.50). The next section shows other positions."
    )
    assert section.lead.endswith(said)


def test_headline_numbers_are_not_among_what_is_not_known(tmp_path: Path) -> None:
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


def test_json_blocks_cannot_be_left() -> None:
    nasty = {"</script><!--": "\u2028 & <b>"}
    block = json_block(nasty)
    assert not set("<>&\u2028") & set(block)
    assert json.loads(block) == nasty


def _row(value, half=0.03, null=0.5):
    return {"value": value, "low": value - half, "high": value + half, "null": null, "p": float("nan")}


@pytest.mark.parametrize(
    ("own", "alone", "matched", "regressed", "words"),
    [
        (
            0.72,
            1.0,
            0.63,
            0.56,
            "at least as well as the activations: 0.50 above chance, compared with 0.22 for the activations.",
        ),
        (
            0.72,
            1.0,
            0.63,
            0.56,
            "Of the 0.22 above chance, 0.13 (95 % 0.10 to 0.16) remains after matching, compared with",
        ),
        (0.72, 1.0, 0.63, 0.56, "compared with 0.17 in a random subsample of the same size; 0.06 (95 % 0.03 to 0.09)"),
        (0.72, 1.0, 0.63, 0.56, "remains after regressing them out, 27 % of it."),
        (0.90, 0.70, 0.80, 0.51, "in part: 0.20 above chance, compared with 0.40 for the activations."),
        (
            0.90,
            0.70,
            0.80,
            0.51,
            "0.01 (95 % -0.02 to 0.04) remains after regressing them out, 3 % of it, which is not",
        ),
        (0.90, 0.51, 0.51, 0.50, "do not separate the groups"),
        (0.90, 0.51, 0.51, 0.48, "-0.02 (95 % -0.05 to 0.01) remains after regressing them out, 0 % of it, which is"),
        (0.51, 0.90, 0.50, 0.50, "There is no effect for the controls to explain."),
        (0.90, 0.70, np.nan, 0.80, "Of the 0.40 above chance, 0.30 (95 % 0.27 to 0.33) remains after regressing"),
    ],
)
def test_the_verdict_on_the_controls_says_what_is_left_with_numbers(own, alone, matched, regressed, words):
    from stratalens.analyses.report.sentences import _control_verdict

    rows = {
        "activations": _row(own),
        "norms, losses, confidence alone": _row(alone),
        "matched on them: matched": _row(matched),
        "matched on them: random subsample": _row(0.67),
        "with them regressed out": _row(regressed),
    }
    assert words in _control_verdict(rows)


def test_the_table_of_controls_says_what_is_left(tmp_path: Path) -> None:
    names = ["probe", "residual", "untrained_stage"]
    values = {"accuracy": [0.7, 0.55, 0.5], "lost": [0.0, 0.15, 0.2], "left": [1.0, 0.25, np.nan]}
    shape = (3, 2, 1, 1)
    full = {k: np.broadcast_to(np.array(v)[:, None, None, None], shape).copy() for k, v in values.items()}
    full["accuracy"][:, 0] = 0.51  # another layer, not the one that is shown
    table = xr.Dataset(
        {f"{k}{end}": (("control", "layer", "token", "pair"), v + by) for k, v in full.items() for end, by in ENDS},
        coords={"control": names, "layer": [0, 7], "token": ["last"], "pair": ["s1 v s6"], "stage": "s6"},
    )
    page = report({"control_table": table}, tmp_path / "r.html", store_info=store_info()).read_text(encoding="utf-8")
    assert "Remaining effect at stage s6, layer 7, token last, pair s1 v s6" in page
    rows = dict(re.findall(r'<tr><th scope="row">([^<]*)</th><td>(.*?)</td></tr>', page))
    assert rows["activations, statistics regressed out"].split("</td><td>") == [
        "0.55 (0.54 to 0.56)",
        "0.15 (0.14 to 0.16)",
        "0.25 (0.24 to 0.26)",
    ]
    assert rows["before training"].endswith("undefined: the activations are not above chance")


def test_too_few_rows_are_said_to_be_too_few(tmp_path: Path) -> None:
    results = planted_results(("base", "s1", "s2"), 2)
    results.pop("store")
    results["matched_probe"]["accuracy"][:] = np.nan
    said = sentences(write(tmp_path, results))["fig-controls-control-comparison"]
    assert all("matched on them: matched: too few rows" in text for text in said)
    assert not any("nan" in text or "not known" in text for text in said)


def test_a_page_to_be_passed_on_names_no_folders_and_nothing_twice(tmp_path: Path) -> None:
    info = {
        **store_info(), "path": "/home/ann/runs/run.zarr", "lacking_stages": ["s3", "s4"], "stages": ["base", "s1"],
        "provenance": {"tokenizer_fingerprint": "t0"}, "complete": False,
        "completeness": {"base": {"z": 1.0}, "s1": {"z": 0.999}},
        "recorded_with": {"model": "/home/ann/checkpoints/base", "torch": "2.13.0", "zarr": "3.1.6"},
    }  # fmt: skip
    for key in ("model", "versions"):
        info.pop(key, None)
    page = write(tmp_path, {}, info=info)
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "/home/ann" not in outside
    assert "<dt>Model</dt><dd>base</dd>" in outside
    assert outside.count("2.13.0") == 1
    assert "The store is not complete: 1 of 4 stages complete; s1 at 99%; not started: s3, s4." in outside
    assert "not complete" not in re.sub(r"<script.*?</script>", "", write(tmp_path, {}), flags=re.S)
