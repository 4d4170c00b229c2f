"""Block buffers: what they refuse, how much memory they take, variables of every kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import ActivationWriter, create, open_store
from stratalens.store.errors import InputError
from stratalens.store.format.schema import Variable, site_variable
from support.stores import add_stage, fill_randomly, make_labels, make_store, to_storage

SITE = site_variable("resid_post", ["d_model"], [4], "float32", "blocks.{layer}.hook_out")
NEW = site_variable("mlp_out", ["d_model"], [4], "bfloat16", "blocks.{layer}.mlp.hook_out")


def make(path: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "entities": make_labels(10, ["s0", "s1"]),
        "layers": [0, 1, 2],
        "tokens": ["last"],
        "variables": [SITE],
        "provenance": {"processing": {"fold_ln": False}},
        "block_size": 4,
    }
    return create(path, **{**arguments, **changes})


def test_buffers_refuse_what_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    store = make(path, variables=[SITE, NEW])
    with ActivationWriter(store) as writer, writer.stage("s0", order=0, fingerprint="f0") as stage:
        first, second, third = stage.pending()
        buffer = stage.buffer(first)
        values = np.zeros((3, 4, 1, 4), np.float32)
        buffer.write("resid_post", [3, 1, 0], values[:, :3])
        buffer.write("mlp_out", first.rows, to_storage(values, "bfloat16"), layers=[2, 0, 1])
        with pytest.raises(InputError, match=r"rows 2 of resid_post were neither written nor skipped"):
            stage.submit(buffer)
        with pytest.raises(InputError, match="rows 4 do not belong to this block: it has rows 0 to 3"):
            buffer.write("resid_post", [4], values[:, :1])
        with pytest.raises(InputError, match=r"shape \(2, 1, 1, 4\): expected \(3, 1, 1, 4\)"):
            buffer.write("resid_post", [2], values[:2, :1])
        with pytest.raises(InputError, match=r"stored as uint16 .bits of bfloat16., got float32"):
            buffer.write("mlp_out", [2], values[:, :1])
        with pytest.raises(InputError, match="did you mean 'resid_post'"):
            buffer.write("resid_pst", [2], values[:, :1])
        with pytest.raises(InputError, match="positions 0 to 2"):
            buffer.write("resid_post", [2], values[0, :1], layers=3)
        other = stage.buffer(second)
        with pytest.raises(InputError, match="more than 2 blocks are open"):
            stage.buffer(third)
        other.discard()
        buffer.write("resid_post", [2], values[0, :1], layers=0)
        buffer.write("resid_post", [2], values[1:, :1], layers=slice(1, None))
        stage.submit(buffer)
        with pytest.raises(InputError, match="submitted or discarded"):
            buffer.skip([0])
        with pytest.raises(InputError, match="recorded already"):
            stage.buffer(first)
    assert open_store(path).recorded.values[0].tolist() == [True] * 4 + [False] * 6
    assert not open_store(path).attrs["provenance"]["processing"]["fold_ln"]


def test_memory_is_two_buffers_whatever_the_run(tmp_path: Path) -> None:
    sizes: list[int] = []

    def allocate(nbytes: int) -> np.ndarray:
        sizes.append(nbytes)
        return np.empty(nbytes, np.uint8)

    store = make(tmp_path / "run.zarr", block_size=1)
    with ActivationWriter(store, allocate=allocate) as writer:
        for order in range(2):
            with writer.stage(f"s{order}", order=order, fingerprint=f"f{order}") as stage:
                for block in stage.pending():
                    stage.submit(fill_randomly(stage.buffer(block), writer.store, order))
    assert sizes == [store.layouts[n].file_nbytes for n in ("resid_post", "recorded")] * 2


def test_extra_variables_of_every_kind(tmp_path: Path) -> None:
    extra = [
        Variable("count", ("stage", "entity", "token"), dtype="int64"),
        Variable("flag", ("stage", "entity"), dtype="bool"),
    ]
    path = make_store(tmp_path / "run.zarr", 2, entities=7, block_size=3, extra=extra, skip={"s1": [4]})
    ds = open_store(path)
    assert ds["count"].dtype == np.int64
    assert (ds["count"].sel(stage="s1").isel(entity=4) == np.iinfo(np.int64).min).all()
    add_stage(path, "more", 7)
    np.testing.assert_array_equal(xr.open_zarr(path).flag.values, open_store(path).flag.values)
