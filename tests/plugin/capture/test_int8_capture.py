"""capture() in int8 scaled by row: the values of a float32 capture within the error that the store reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratalens.plugin.capture.options import CaptureOptions
from stratalens.plugin.capture.run import capture
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.capture.store import create_store, store_size
from stratalens.plugin.cli.output import _dtype
from stratalens.plugin.cli.run_file import read_run_file
from stratalens.plugin.models.adapters import adapt
from stratalens.store import info, verify_store
from stratalens.store.errors import InputError, MismatchError
from support.models import TwoLayers, run_two_layers, table, tokenizer

ROWS = table(20)


def record(path: Path, dtype: str, **changes: Any) -> Any:
    return capture(
        {"a": TwoLayers(0), "b": TwoLayers(1)},
        ROWS,
        path,
        sites=("layers.{layer}.hook_state", "hook_embed"),
        positions=("last", "-30"),
        missing="nan",
        tokenizer=tokenizer(),
        forward=run_two_layers,
        block_size=8,
        dtype=dtype,
        statistics="all",
        **changes,
    )


def test_the_values_of_float32_within_the_stated_error(tmp_path: Path) -> None:
    wide, small = (record(tmp_path / f"{dtype}.zarr", dtype) for dtype in ("float32", "int8"))
    described = info(tmp_path / "int8.zarr")["variables"]
    for site in info(tmp_path / "int8.zarr")["sites"]:
        exact, rounded = wide[site].values, small[site].values
        there = ~np.isnan(exact).any(axis=-1)
        np.testing.assert_array_equal(np.isnan(rounded).any(axis=-1), ~there)
        off = np.linalg.norm(exact - rounded, axis=-1)[there] / np.linalg.norm(exact, axis=-1)[there]
        assert described[site]["max_relative_error"] == pytest.approx(off.max(), rel=1e-3)
        assert described[site]["mean_relative_error"] == pytest.approx(off.mean(), rel=1e-3)
        assert "rows off by 0." in _dtype(described[site])
    np.testing.assert_array_equal(wide.running_loss.values, small.running_loss.values)
    assert verify_store(tmp_path / "int8.zarr").ok
    with pytest.raises(MismatchError, match=r"dtype of .* differs.*\"int8\", got \"float32\""):
        record(tmp_path / "int8.zarr", "float32")
    record(tmp_path / "int8.zarr", "int8")


def test_the_forecast_counts_scales_and_errors(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "sites": ("layers.{layer}.hook_state",),
        "layers": None,
        "positions": ("last",),
        "dtype": "int8",
        "statistics": False,
        "tokenizer": tokenizer(),
    }
    model = TwoLayers(0)
    spec = CaptureSpec.from_model(ROWS, adapt(model, run_two_layers), CaptureOptions(block_size=8, **arguments))
    expected = store_size(spec, stages=1)
    path = tmp_path / "run.zarr"
    capture(model, ROWS, path, forward=run_two_layers, block_size=8, **arguments)
    assert (info(path)["bytes"], info(path)["files"]) == (expected.nbytes, expected.files)


def test_nonfinite_keep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8 has no NaN or infinity"):
        create_store(
            tmp_path / "run.zarr",
            ROWS,
            TwoLayers(0),
            sites=("layers.{layer}.hook_state",),
            dtype="int8",
            nonfinite="keep",
            tokenizer=tokenizer(),
            forward=run_two_layers,
        )
    assert not (tmp_path / "run.zarr").exists()


def test_a_run_file_asks_for_it(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text("prompts: p.csv\nmodel: m\nstore: s.zarr\ndtype: int8\n")
    assert read_run_file(run).dtype == "int8"
