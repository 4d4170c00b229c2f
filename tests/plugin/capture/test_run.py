"""Batch size, memory and interruption change no recorded value; stages are skipped, resumed and added."""

import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from stratalens.plugin.capture.run import capture
from stratalens.plugin.stages.stage import Stage
from stratalens.store import info, open_store, verify_store
from stratalens.store.errors import InputError, MismatchError
from stratalens.store.state.info import state_in_words
from support.models import TwoLayers, bridge, run_two_layers, save_checkpoint, table, tokenizer
from support.synthetic_writer import content

SITES = ("layers.{layer}.hook_state",)


def record(path: Path, stages: Any, forward: Any = run_two_layers, **kwargs: Any) -> xr.Dataset:
    kwargs = {"table": table(20), "sites": SITES, "block_size": 4, "positions": ("last", "-2"), **kwargs}
    prompts = kwargs.pop("table")
    return capture(stages, prompts, path, tokenizer=tokenizer(), forward=forward, **kwargs).load()


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
            torch.empty(1 << 58)  # an impossible request to the real allocator
        return model(ids, mask)

    same(record(tmp_path / "a.zarr", TwoLayers()), record(tmp_path / "b.zarr", TwoLayers(), greedy, batch_size=4))
    assert max(sizes) == 4
    assert sizes[-1] <= 2

    def hopeless(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > 4:  # dry runs are short
            torch.empty(1 << 58)
        return model(ids, mask)

    with pytest.raises(RuntimeError) as caught:
        record(tmp_path / "c.zarr", TwoLayers(), hopeless)
    assert "single row" in "".join(caught.value.__notes__)


def test_a_model_is_freed_before_the_next_one_is_loaded(tmp_path: Path) -> None:
    models: list[weakref.ref[TwoLayers]] = []

    def load(seed: int) -> TwoLayers:
        assert [model() for model in models] == [None] * seed
        model = TwoLayers(seed)
        models.append(weakref.ref(model))
        return model

    record(tmp_path / "run.zarr", {str(seed): partial(load, seed) for seed in range(3)})


def test_an_interrupted_run_resumes_to_the_same_store(tmp_path: Path) -> None:
    calls = []

    def interrupted(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        if len(calls) == 12:
            raise KeyboardInterrupt
        return model(ids, mask)

    stages = {"a": TwoLayers(0), "b": TwoLayers(1)}
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "b.zarr", stages, interrupted, batch_size=2, check=False)
    partial = open_store(tmp_path / "b.zarr").recorded.values
    assert partial.any()
    assert not partial.all()
    began = open_store(tmp_path / "b.zarr").sizes["stage"]
    facts = info(tmp_path / "b.zarr")
    assert (len(facts["stages"]), facts["lacking_stages"]) == (began, ["b"][began - 1 :])
    seen: list[tuple[str, int, int]] = []
    again = record(tmp_path / "b.zarr", stages, batch_size=3, check=False, progress=lambda *at: seen.append(at))
    same(record(tmp_path / "a.zarr", stages, check=False), again)
    start, *others = [done for name, done, _ in seen if name == "a"]
    assert start == partial[0].sum()
    assert not others or min(others) > start  # nothing was run twice
    assert content(tmp_path / "a.zarr") == content(tmp_path / "b.zarr")


def test_planned_stages_are_known_until_they_are_there(tmp_path: Path) -> None:
    path, stages = tmp_path / "run.zarr", {name: TwoLayers(i) for i, name in enumerate(("base", "w1", "w2", "w3"))}

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "w1":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(path, stages, progress=stop)
    facts = info(path)
    assert not facts["complete"]
    stored = len(facts["stages"])
    assert 1 <= stored <= 2
    missing = ["w1", "w2", "w3"][stored - 1 :]
    assert facts["lacking_stages"] == missing
    report = verify_store(path)
    assert report.ok
    assert report.missing[-len(missing) :] == [f"stage {name!r}, planned and not started" for name in missing]
    started = "; w1 at 0%" if stored == 2 else ""
    assert state_in_words(facts) == f"not complete: 1 of 4 stages complete{started}; not started: {', '.join(missing)}"
    key = open_store(path).attrs["stratalens_key"]
    (path / ".stratalens" / "planned.json").unlink()
    assert open_store(path).attrs["stratalens_key"] == key  # the plan is not part of the content key
    record(path, stages)
    assert info(path)["complete"]
    assert not (path / ".stratalens" / "planned.json").exists()
    record(tmp_path / "once.zarr", stages)
    assert content(path) == content(tmp_path / "once.zarr")
    record(path, {"base": stages["base"]})  # a capture of fewer stages leaves no plan
    assert info(path)["complete"]


@pytest.mark.parametrize("resumed", [False, True])
def test_a_refused_stage_is_not_planned(resumed: bool, tmp_path: Path) -> None:
    """The store reports the same state as before the refused capture, even after an interrupted one."""
    path, stages = tmp_path / "run.zarr", {"a": TwoLayers(0), "b": TwoLayers(1)}

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "b":
            raise KeyboardInterrupt

    if resumed:
        with pytest.raises(KeyboardInterrupt):
            record(path, {**stages, "again": TwoLayers(1)}, progress=stop)
        assert info(path)["lacking_stages"][-1] == "again"
    else:
        record(path, stages)
    with pytest.raises(MismatchError, match="same weights"):
        record(path, {**stages, "again": TwoLayers(1)})
    facts = info(path)
    assert (facts["complete"], facts["lacking_stages"]) == (True, [])
    assert not (path / ".stratalens" / "planned.json").exists()


def test_a_refusal_leaves_the_plan_of_an_interrupted_capture(tmp_path: Path) -> None:
    path, stages = tmp_path / "run.zarr", {name: TwoLayers(i) for i, name in enumerate("abc")}

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "b":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(path, stages, progress=stop)
    plan = (path / ".stratalens" / "planned.json").read_bytes()
    with pytest.raises(MismatchError, match="same weights"):
        record(path, {"a": stages["a"], "again": TwoLayers(0)})
    assert (path / ".stratalens" / "planned.json").read_bytes() == plan
    assert "c" in info(path)["lacking_stages"]


def test_complete_stages_are_skipped_and_new_ones_added(tmp_path: Path) -> None:
    path, run = tmp_path / "run.zarr", []

    def counting(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        run.append(ids.shape[1])
        return model(ids, mask)

    record(path, {"a": TwoLayers(0)})
    record(path, {"a": TwoLayers(0)}, counting)
    assert max(run) <= 4  # dry runs only
    ds = record(path, {"b": lambda: TwoLayers(1)})
    assert ds.stage.values.tolist() == ["a", "b"]
    assert ds.stage_order.values.tolist() == [0, 1]
    ds = record(path, {"a": TwoLayers(0), "b": TwoLayers(1), "c": TwoLayers(2)})
    assert ds.stage_order.values.tolist() == [0, 1, 2]
    swapped = (
        r"stage 'a' is number 1 of 3 in the store \(a, b, c\) and number 2 of 2 in this job \(b, a\), after "
        r"'b'. List these stages in the order of the store: a, b$"
    )
    with pytest.raises(InputError, match=swapped):
        record(path, {"b": TwoLayers(1), "a": TwoLayers(0)})
    between = (
        r"stage 'b' is number 2 of 3 in the store \(a, b, c\) and number 3 of 3 in this job \(a, new, b\). The store "
        r"cannot insert new before 'b', because .* Record all stages into a new store, or list new last "
        r"\(a, b, new\) if it really came last in training$"
    )
    with pytest.raises(InputError, match=between):
        record(path, {"a": TwoLayers(0), "new": TwoLayers(4), "b": TwoLayers(1)})
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


def test_other_weights_are_reported_where_the_store_records_more_than_the_capture(tmp_path: Path) -> None:
    path, more = tmp_path / "run.zarr", ("layers.{layer}.hook_state", "hook_embed")
    record(path, {"a": TwoLayers(0)})
    record(path, {"a": TwoLayers(0)}, sites=more)
    with pytest.raises(MismatchError, match=r"sites differ: .* also records embed\. To fix it") as caught:
        record(path, {"a": TwoLayers(1)})
    (note,) = caught.value.__notes__
    assert note.startswith("In addition, weights_fingerprint differs for stage 'a': ")
    for name, seed in (("a", 0), ("b", 1)):  # the same weights, and a stage that the store does not have
        with pytest.raises(MismatchError, match="sites differ") as caught:
            record(path, {name: TwoLayers(seed)})
        assert not hasattr(caught.value, "__notes__")


def test_processing_flags_must_match(tmp_path: Path) -> None:
    capture({"a": bridge("gpt2", 0)}, table(3), tmp_path / "run.zarr", statistics=False)
    folded = bridge("gpt2", 1)
    folded.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(MismatchError, match="processing"):
        capture({"b": folded}, table(3), tmp_path / "run.zarr", statistics=False)


def test_checkpoint_folders_and_functions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_checkpoint(tmp_path / "s1", seed=1)
    stages = {"base": bridge("llama", 0), "s1": folder, "s2": lambda: bridge("llama", 2)}
    capsys.readouterr()
    ds = capture(stages, table(5), tmp_path / "run.zarr", statistics=("l2",), progress=False)
    assert capsys.readouterr().err == ""  # no bar of transformers either
    for index, seed in enumerate((0, 1, 2)):
        alone = capture(bridge("llama", seed), table(5), tmp_path / f"{seed}.zarr", statistics=("l2",))
        np.testing.assert_array_equal(ds.resid_post.values[index], alone.resid_post.values[0])
        assert ds.weights_fingerprint.values[index] == alone.weights_fingerprint.values[0]
