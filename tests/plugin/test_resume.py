"""What is recorded depends on neither batch size, memory nor interruption; stages are skipped, resumed, added."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from stratalens.capturing import capture
from stratalens.stages import Stage
from stratalens.store.errors import InputError, MismatchError
from support.models import TwoLayers, bridge, run_two_layers, save_checkpoint, table, tokenizer

SITES = ("layers.{layer}.hook_state",)


def record(path: Path, stages: Any, forward: Any = run_two_layers, **kwargs: Any) -> xr.Dataset:
    kwargs = {"table": table(20), "block_size": 4, "positions": ("last", "-2"), **kwargs}
    prompts = kwargs.pop("table")
    return capture(stages, prompts, path, sites=SITES, tokenizer=tokenizer(), forward=forward, **kwargs).load()


def same(a: xr.Dataset, b: xr.Dataset) -> None:
    for name in a.data_vars:
        np.testing.assert_array_equal(a[name].values, b[name].values, err_msg=str(name))


def test_batch_size_changes_nothing(tmp_path: Path) -> None:
    whole = record(tmp_path / "a.zarr", TwoLayers())
    for size in (1, 3, "auto"):
        same(whole, record(tmp_path / f"{size}.zarr", TwoLayers(), batch_size=size))


def test_running_out_of_memory_halves_the_batch_and_changes_nothing(tmp_path: Path) -> None:
    sizes = []

    def greedy(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > 2:
            torch.empty(1 << 58)  # the real allocator, asked for the impossible
        return model(ids, mask)

    same(record(tmp_path / "a.zarr", TwoLayers()), record(tmp_path / "b.zarr", TwoLayers(), greedy, batch_size=4))
    assert max(sizes) == 4
    assert sizes[-1] <= 2

    def hopeless(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > 4:  # probing passes are short
            torch.empty(1 << 58)
        return model(ids, mask)

    with pytest.raises(RuntimeError) as caught:
        record(tmp_path / "c.zarr", TwoLayers(), hopeless)
    assert "single row" in "".join(caught.value.__notes__)


def test_an_interrupted_run_resumes_to_the_same_store(tmp_path: Path) -> None:
    calls = []

    def interrupted(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        if len(calls) == 12:
            raise KeyboardInterrupt
        return model(ids, mask)

    stages = {"a": TwoLayers(0), "b": TwoLayers(1)}
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "b.zarr", stages, interrupted, batch_size=2)
    from stratalens.store.reader import open_store

    partial = open_store(tmp_path / "b.zarr").recorded.values
    assert partial.any()
    assert not partial.all()
    seen: list[tuple[str, int, int]] = []
    again = record(tmp_path / "b.zarr", stages, batch_size=3, progress=lambda *at: seen.append(at))
    same(record(tmp_path / "a.zarr", stages), again)
    first = [done for name, done, _ in seen if name == "a"]
    assert not first or min(first) > partial[0].sum()  # nothing was run twice


def test_complete_stages_are_skipped_and_new_ones_added(tmp_path: Path) -> None:
    path, run = tmp_path / "run.zarr", []

    def counting(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        run.append(ids.shape[1])
        return model(ids, mask)

    record(path, {"a": TwoLayers(0)})
    record(path, {"a": TwoLayers(0)}, counting)
    assert max(run) <= 4  # only probed
    ds = record(path, {"b": lambda: TwoLayers(1)})
    assert ds.stage.values.tolist() == ["a", "b"]
    assert ds.stage_order.values.tolist() == [0, 1]
    ds = record(path, {"a": TwoLayers(0), "b": TwoLayers(1), "c": TwoLayers(2)})
    assert ds.stage_order.values.tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="another order"):
        record(path, {"b": TwoLayers(1), "a": TwoLayers(0)})
    ds = record(path, [Stage("d", 7, TwoLayers(3))])
    assert ds.stage_order.values.tolist() == [0, 1, 2, 7]


def test_what_does_not_match_refuses(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    record(path, {"a": TwoLayers(0)})
    with pytest.raises(MismatchError, match="weights_fingerprint"):
        record(path, {"a": TwoLayers(1)})
    with pytest.raises(InputError, match="weights"):
        record(path, {"b": TwoLayers(0)})
    assert record(path, {"b": TwoLayers(0)}, allow_same_weights=True).sizes["stage"] == 2
    with pytest.raises(InputError, match="number of prompts"):
        record(path, {"c": TwoLayers(3)}, table=table(21))
    with pytest.raises(InputError, match="positions"):
        record(path, {"c": TwoLayers(3)}, positions=("last",))
    with pytest.raises(InputError, match="differ"):
        record(path, {"c": TwoLayers(3, width=16)})
    with pytest.raises(InputError, match="holds a store"):
        record(path, {"a": TwoLayers(0)}, resume=False)
    assert record(path, {"a": TwoLayers(0), "b": TwoLayers(0)}, allow_same_weights=True).recorded.values.all()


def test_processing_flags_must_match(tmp_path: Path) -> None:
    capture({"a": bridge("gpt2", 0)}, table(3), tmp_path / "run.zarr", statistics=False)
    folded = bridge("gpt2", 1)
    folded.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(MismatchError, match="processing"):
        capture({"b": folded}, table(3), tmp_path / "run.zarr", statistics=False)


def test_checkpoint_folders_and_functions(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "s1", seed=1)
    stages = {"base": bridge("llama", 0), "s1": folder, "s2": lambda: bridge("llama", 2)}
    ds = capture(stages, table(5), tmp_path / "run.zarr", statistics=("l2",))
    for index, seed in enumerate((0, 1, 2)):
        alone = capture(bridge("llama", seed), table(5), tmp_path / f"{seed}.zarr", statistics=("l2",))
        np.testing.assert_array_equal(ds.resid_post.values[index], alone.resid_post.values[0])
        assert ds.weights_fingerprint.values[index] == alone.weights_fingerprint.values[0]
