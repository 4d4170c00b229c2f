"""A capture with its sites packed: the run file's key, the same values, refusal to mix."""

from pathlib import Path

import pytest
import xarray as xr

from stratalens.capturing import capture
from stratalens.runfile import RunFile
from stratalens.store import info
from stratalens.store.errors import MismatchError
from support.models import TwoLayers, run_two_layers, table, tokenizer

SITES = ("layers.{layer}.hook_state",)


def record(path: Path, compression: str) -> xr.Dataset:
    return capture(
        TwoLayers(), table(12), path, sites=SITES, tokenizer=tokenizer(), forward=run_two_layers, block_size=4,
        compression=compression,
    )  # fmt: skip


def test_packed_capture_holds_the_same_values(tmp_path: Path) -> None:
    plain, packed = record(tmp_path / "a.zarr", "none"), record(tmp_path / "b.zarr", "zstd")
    xr.testing.assert_equal(plain, packed)
    kinds = {name: v["compression"] for name, v in info(tmp_path / "b.zarr")["variables"].items()}
    assert {name for name, kind in kinds.items() if kind == "zstd"} == set(info(tmp_path / "b.zarr")["sites"])
    with pytest.raises(MismatchError, match="compression"):
        record(tmp_path / "b.zarr", "none")


def test_the_run_file_has_the_key() -> None:
    run = RunFile.model_validate({"model": "m", "prompts": "p.csv", "store": "s.zarr", "compression": "zstd"})
    assert run.compression == "zstd"
    assert RunFile.model_validate({"model": "m", "prompts": "p.csv", "store": "s.zarr"}).compression == "none"
