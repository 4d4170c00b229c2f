"""Labels that look like misspelled stage names are warned about; other labels and later stages are not."""

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from stratalens.plugin.capture.run import capture
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import LabelWarning
from support.models import TwoLayers, run_two_layers, table, tokenizer


def record(path: Path, stages: Any, prompts: PromptTable) -> xr.Dataset:
    sites = ("layers.{layer}.hook_state",)
    return capture(stages, prompts, path, sites=sites, tokenizer=tokenizer(), forward=run_two_layers, block_size=4)


def labelled(labels: list[str], **columns: Any) -> PromptTable:
    frame = table(len(labels)).frame.assign(trained_stage=labels, **columns)
    return PromptTable.from_dataframe(frame)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (
            ["week1", "week 1", "Week2", "weak2", "other"] * 4,
            r"names stages in some rows only: 'week 1' \(4 rows; is 'week1' meant\?\), 'Week2' \(4 rows; is 'week2' "
            r"meant\?\), 'weak2' \(4 rows; is 'week2' meant\?\), 'other' \(4 rows\) are no stages of this capture or "
            r"store. Its stages are 'base', 'week1', 'week2'",
        ),
        (["week1", "week2", "week2", "Week1"] * 5, r"'Week1' \(5 rows; is 'week1' meant\?\) is no stage"),
        (["Week1", "Week2"] * 10, r"'Week1' .10 rows; is 'week1' meant.*'Week2'"),
        (["week1", "never"] * 10, r"'never' \(10 rows\) is no stage"),
        (["week1", "week22"] * 10, r"'week22' \(10 rows\) is no stage"),
        (["week1", "week" + "9" * 5000] * 10, r"'week99.* \(10 rows\) is no stage"),  # Python reads no such number
        (["week1", "week3"] * 10, None),  # a stage that comes later
        (["week1", "week2"] * 10, None),
        (["week1", ""] * 10, None),
        (["red", "blue"] * 10, None),
        (["week3", "week4"] * 10, None),
    ],
)
def test_labels_that_are_nearly_stages(tmp_path: Path, labels: list[str], says: str | None) -> None:
    stages = {name: TwoLayers(i) for i, name in enumerate(("base", "week1", "week2"))}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        record(tmp_path / "run.zarr", stages, prompts=labelled(labels))
    label_warnings = [w for w in caught if issubclass(w.category, LabelWarning)]
    assert len(label_warnings) == (says is not None)
    if says is not None:
        assert re.search(says, str(label_warnings[0].message))
        assert label_warnings[0].filename == __file__


def test_the_column_that_names_stages_need_not_be_called_trained_stage(tmp_path: Path) -> None:
    stages = {name: TwoLayers(i) for i, name in enumerate(("base", "week1", "week2"))}
    frame = table(20).frame.assign(colour=["red", "base"] * 10, learned=["week1", "week2", "week2", "weeek2"] * 5)
    with pytest.warns(LabelWarning, match=r"label column 'learned' .*'weeek2' \(5 rows; is 'week2' meant\?\)"):
        record(tmp_path / "run.zarr", stages, prompts=PromptTable.from_dataframe(frame))
    capture_again = labelled(["base", "week1"] * 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record(tmp_path / "other.zarr", {"base": stages["base"], "week1": stages["week1"]}, prompts=capture_again)
        record(
            tmp_path / "other.zarr", {"week2": stages["week2"]}, prompts=capture_again
        )  # the stages of the store count too
