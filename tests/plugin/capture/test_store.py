"""Where and how a capture is stored changes nothing in it: sites packed with zstd, a store on an fsspec URL."""

import uuid
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from stratalens.plugin.capture.run import capture
from stratalens.plugin.cli.run_file import RunFile
from stratalens.store import info, open_store, verify_store
from stratalens.store.errors import MismatchError
from support.models import TwoLayers, run_two_layers, table, tokenizer

SITES = ("layers.{layer}.hook_state",)


def record(path: Path | str, compression: str = "none", **kwargs: Any) -> xr.Dataset:
    return capture(
        TwoLayers(), table(12), path, sites=SITES, tokenizer=tokenizer(), forward=run_two_layers, block_size=4,
        compression=compression, **kwargs,
    )  # fmt: skip


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
