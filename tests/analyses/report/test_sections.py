"""Sections of the report, their figures and tables."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import xarray as xr

from stratalens.analyses.plots.forgetting import forgetting_table
from stratalens.analyses.report.report import report
from stratalens.analyses.report.sections import build_sections
from stratalens.analyses.stats.quantiles import statistic_quantiles
from support.results import effects, planted_results, store_info

ENDS = (("", 0.0), ("_low", -0.01), ("_high", 0.01))


def test_labels_of_axes_fit_their_figures() -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3)
    store = results.pop("store")
    results["statistics"] = statistic_quantiles(store)
    results["forgetting"] = {"answer_loss": forgetting_table(store, statistic="answer_loss")}
    results["interventions"] = {"axis": effects()}
    specs = [figure.spec for section in build_sections(results) for figure in section.figures]
    assert len(specs) > 12
    for spec in specs:  # in letters of six pixels; a phone leaves 290 pixels next to the ticks
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
