"""What sets of statistics leave of an effect, on data where the answer is known."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from stratalens.analyses.report.control_tables import statistic_set_table
from stratalens.plugin.study.config.settings import AnalysisSettings, StudySettings
from stratalens.plugin.study.findings.statistic_sets import (
    TOGETHER,
    describe_statistic_sets,
    measure_statistic_sets,
    statistic_set_rows,
    statistic_sets,
)

ROWS = 150  # of each stage
SETTINGS = StudySettings(
    stages=3, entities_per_stage=ROWS, analysis=AnalysisSettings(matching_bins=(3, 200), set_permutations=12)
)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    """Activations carry the stage directly and through the loss over the name; the loss at the position is noise."""
    random = np.random.default_rng(0)
    stage = np.repeat(["s1", "s2", "s3"], ROWS)
    position = np.repeat([0.0, 0.5, 1.0], ROWS)
    name_loss = 1.2 * position + random.normal(size=3 * ROWS)
    x = random.normal(size=(3 * ROWS, 6))
    x[:, 0] += 1.5 * name_loss
    x[:, 1] += 1.4 * position
    ds = xr.Dataset(
        {
            "resid_post": (("entity", "token", "d_model"), x[:, None]),
            "entity_loss": (("entity", "token"), name_loss[:, None]),
            "loss": (("entity", "token"), random.normal(size=(3 * ROWS, 1))),
        },
        coords={
            "trained_stage": ("entity", stage.astype(object)),
            "entity_id": ("entity", np.array([f"e{number}" for number in range(3 * ROWS)], object)),
        },
    )
    assert list(statistic_sets(ds)) == [
        "set of six activation statistics",
        "loss at the position",
        "loss over the name",
        TOGETHER,
    ]
    return measure_statistic_sets(ds.drop_vars("resid_post").assign(resid_post=ds.resid_post), SETTINGS)


def entry(table: pd.DataFrame, statistics: str, control: str) -> pd.Series:
    rows = table[(table["statistics"] == statistics) & (table["control"] == control)]
    assert len(rows) == 1
    return rows.iloc[0]


def test_a_statistic_without_the_stage_leaves_the_whole_effect(table):
    noise = "loss at the position"
    assert entry(table, noise, "alone")["accuracy"] < 0.58
    weighted = entry(table, noise, "weighted")
    assert weighted["left_low"] <= 1 <= weighted["left_high"]
    assert weighted["support"] > 0.8
    assert entry(table, noise, "labels drawn from them")["null"] == pytest.approx(0.5, abs=0.06)
    matched, random = (entry(table, noise, control) for control in ("matched", "random subsample"))
    assert matched["accuracy"] == pytest.approx(random["accuracy"], abs=0.08)


def test_a_statistic_that_carries_part_of_the_effect_leaves_the_rest(table):
    name = "loss over the name"
    assert entry(table, name, "alone")["accuracy_low"] > 0.6
    for control in ("weighted", "labels drawn from them"):
        row = entry(table, name, control)
        assert 0.1 < row["left"] < 0.9, control
        assert row["left_high"] < 1, control
    assert entry(table, name, "labels drawn from them")["null"] > 0.55
    assert entry(table, name, "weighted")["left"] < entry(table, "loss at the position", "weighted")["left"]


def test_matching_leaves_out_numbers_of_bins_that_no_split_can_fill(table):
    assert set(table.loc[table["control"] == "matched", "bins"]) == {3}
    assert (table["statistics"] == "").sum() == 1


def test_rows_sentences_and_the_table_of_the_report(table):
    rows = statistic_set_rows(table, ", template name", 300, stage="s3", layer=1, token="last", site="resid_post")
    names = [row["name"] for row in rows]
    assert "first v last accuracy, loss over the name: matched, 3 bins, template name" in names
    assert "share of the effect that remains, loss over the name: weighted, template name" in names
    assert len(set(names)) == len(names)
    assert all(row["value"] is None or np.isfinite(row["value"]) for row in rows)
    text = describe_statistic_sets(table, "the recorded template")
    weighted = table[(table["control"] == "weighted") & (table["statistics"] != TOGETHER)]
    least = weighted.sort_values("left").iloc[0]
    assert f"The least remains at an equal {least['statistics']}." in text
    assert "from the loss over the name" in text
    shown = statistic_set_table(table)
    assert len(shown.rows) == len(table)
    assert shown.rows[0][0] == "none"
