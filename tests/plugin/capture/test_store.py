"""Stores of captures: compression and URLs change no value; labels are corrected; tables without entities warn."""

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.plugin.capture.run import capture
from stratalens.plugin.capture.store import relabel
from stratalens.plugin.cli.capture_jobs import capture_run
from stratalens.plugin.cli.run_file import RunFile, read_run_file
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store import info, open_store, verify_store
from stratalens.store.errors import InputError, LabelWarning, MismatchError
from support.models import TwoLayers, run_two_layers, save_checkpoint, table, tokenizer

SITES = ("layers.{layer}.hook_state",)


def record(path: Path | str, compression: str = "none", **kwargs: Any) -> xr.Dataset:
    return capture(
        TwoLayers(),
        table(12),
        path,
        sites=SITES,
        tokenizer=tokenizer(),
        forward=run_two_layers,
        block_size=4,
        compression=compression,
        **kwargs,
    )


def test_packed_capture_holds_the_same_values(tmp_path: Path) -> None:
    plain, packed = record(tmp_path / "a.zarr", "none"), record(tmp_path / "b.zarr", "zstd")
    xr.testing.assert_equal(plain, packed)
    kinds = {name: v["compression"] for name, v in info(tmp_path / "b.zarr")["variables"].items()}
    assert {name for name, kind in kinds.items() if kind == "zstd"} == set(info(tmp_path / "b.zarr")["sites"])
    with pytest.raises(MismatchError, match="compression"):
        record(tmp_path / "b.zarr", "none")


def test_capture_onto_a_url_resumes(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}/run.zarr"

    def stop(stage: str, done: int, total: int) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(url, progress=stop)
    assert open_store(url).recorded.values.any()
    assert not open_store(url).recorded.values.all()
    xr.testing.assert_equal(record(url), record(tmp_path / "a.zarr"))
    assert verify_store(url).ok


def test_the_run_file_has_the_key() -> None:
    run = RunFile.model_validate({"model": "m", "prompts": "p.csv", "store": "s.zarr", "compression": "zstd"})
    assert run.compression == "zstd"
    assert RunFile.model_validate({"model": "m", "prompts": "p.csv", "store": "s.zarr"}).compression == "none"


def record_table(path: Path, stages: Any, prompts: PromptTable) -> xr.Dataset:
    return capture(
        stages, prompts, path, sites=SITES, tokenizer=tokenizer(), forward=run_two_layers, block_size=4
    ).load()


def labelled(labels: list[str], **columns: Any) -> PromptTable:
    frame = table(len(labels)).frame.assign(trained_stage=labels, **columns)
    return PromptTable.from_dataframe(frame)


def test_a_label_is_corrected_and_the_capture_resumes(tmp_path: Path) -> None:
    path, stages = tmp_path / "run.zarr", {name: TwoLayers(i) for i, name in enumerate(("base", "week1"))}
    with pytest.warns(LabelWarning):
        record_table(path, stages, labelled(["week1", "week 1"] * 10))
    right = labelled(["week1"] * 20, colour=["red", "blue"] * 10)
    with pytest.raises(
        MismatchError, match=r"'trained_stage' of 'p\w{12}' .row 1. is 'week 1' in the store, 'week1' in"
    ):
        record_table(path, {**stages, "week2": TwoLayers(2)}, right)
    before = open_store(path).load()
    assert relabel(path, right) == {"trained_stage": 10, "colour": 20}
    assert relabel(path, right) == {}
    ds = record_table(path, {**stages, "week2": TwoLayers(2)}, right)
    assert ds.trained_stage.values.tolist() == ["week1"] * 20
    assert verify_store(path).ok
    unchanged = ds.sel(stage=["base", "week1"])
    for name in before.drop_vars("exposure").data_vars:
        np.testing.assert_array_equal(before[name].values, unchanged[name].values, err_msg=str(name))
    with pytest.warns(LabelWarning, match=r"'weak1' \(20 rows; is 'week1' meant\?\) is no stage"):
        relabel(path, labelled(["weak1"] * 20))
    with pytest.raises(InputError, match="PromptTable, not DataFrame"):
        relabel(path, right.frame)  # type: ignore[arg-type]


def test_a_table_without_entities_keeps_the_entity_ids_of_the_store(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    whole = table(8)
    record_table(path, TwoLayers(), whole)
    bare = PromptTable.from_dataframe(whole.frame[["prompt_id", "prompt"]].assign(size=range(8)))
    assert relabel(path, bare) == {"size": 8}
    assert open_store(path).entity_id.values.tolist() == whole.labels()["entity_id"].tolist()


def test_every_table_without_entities_is_warned_about_once(tmp_path: Path) -> None:
    """The second table of a process warns too, although every table from a DataFrame has the same source."""
    message = "neither a column entity nor entity_id, so every prompt counts as its own entity"
    for name in ("a", "b"):
        bare = PromptTable.from_dataframe(table(8).frame[["prompt"]])
        with pytest.warns(LabelWarning, match=message) as caught:
            record_table(tmp_path / f"{name}.zarr", TwoLayers(), bare)
        assert [warning.filename for warning in caught] == [__file__]
        record_table(tmp_path / f"{name}-again.zarr", TwoLayers(), bare)
    record_table(tmp_path / "c.zarr", TwoLayers(), table(8))


def test_the_command_line_shows_the_warning_about_entities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_checkpoint(tmp_path / "model")
    table(4).frame[["prompt"]].to_csv(tmp_path / "prompts.csv", index=False)
    path = tmp_path / "run.yaml"
    path.write_text("model: model\nprompts: prompts.csv\nstore: run.zarr\nlayers: [0]\nstatistics: false\n")
    capture_run(read_run_file(path))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert line.startswith(f"warning: {tmp_path / 'prompts.csv'} has neither a column entity nor entity_id")
