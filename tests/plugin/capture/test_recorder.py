"""The Recorder in your own loop: the same rows as capture(), any order inside a block, clear refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stratalens.plugin.capture.recorder import Recorder
from stratalens.plugin.capture.run import capture
from stratalens.plugin.capture.store import RecordingStore, create_store
from stratalens.store.errors import InputError
from stratalens.store.reading.open import open_store
from support.models import TwoLayers, bridge, run_two_layers, table, tokenizer

SITES = ("layers.{layer}.hook_state",)


def small_store(path: Path, model: Any, rows: int = 16, **kwargs: Any) -> RecordingStore:
    kwargs = {"sites": SITES, "tokenizer": tokenizer(), "forward": run_two_layers, "block_size": 4, **kwargs}
    return create_store(path, table(rows), model, **kwargs)


def run(store: RecordingStore, model: Any, rows: Any, pad_to: int = 60) -> None:
    ids, mask = (torch.from_numpy(a) for a in store.spec.tokenized.batch(rows, pad_to))
    with torch.no_grad():
        model(ids, mask)


def loop(store: RecordingStore, model: Any, batches: Any, run_rows: Any = None, positions: Any = None) -> None:
    """Record batches of rows while the model runs on them, or on `run_rows`."""
    with Recorder(model, store, stage="s", forward=run_two_layers) as rec:
        for rows in batches:
            rec.batch(rows, positions)
            run(store, model, rows if run_rows is None else run_rows)


def test_your_own_loop_records_the_values_of_capture(tmp_path: Path) -> None:
    model, prompts = bridge("llama"), table(12)
    statistics = ("l2", "loss", "running_loss", "entropy")
    whole = capture(model, prompts, tmp_path / "a.zarr", positions=("last", "entity_last"), statistics=statistics)
    with (
        create_store(
            tmp_path / "b.zarr", prompts, model, positions=("last", "entity_last"), statistics=statistics
        ) as store,
        Recorder(model, store, stage="model") as rec,
    ):
        tokenized = store.spec.tokenized
        for rows in (np.array([5, 0, 7, 2]), np.arange(8, 12), np.array([1, 3, 4, 6])):
            ids, mask = tokenized.batch(rows, 60)
            last = tokenized.lengths[rows] - 1
            rec.batch(rows, {"last": last, "entity_last": store.spec.index[rows, 1]})
            with torch.no_grad():
                model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    ds = open_store(tmp_path / "b.zarr")
    for name in ("resid_post", "resid_post_l2", "loss", "running_loss", "entropy"):
        np.testing.assert_allclose(ds[name].values, whole[name].values, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left(tmp_path: Path) -> None:
    model, prompts = bridge("llama"), table(4)
    whole = capture(model, prompts, tmp_path / "a.zarr", statistics=("loss", "running_loss"))
    with create_store(tmp_path / "b.zarr", prompts, model, statistics=("loss", "running_loss")) as store:
        ids, mask = store.spec.tokenized.batch(range(4), 50)
        shift = 50 - mask.sum(1)
        ids, mask = (np.stack([np.roll(r, s) for r, s in zip(a, shift, strict=True)]) for a in (ids, mask))
        with Recorder(model, store, stage="model") as rec:
            rec.batch(range(4), {"last": np.full(4, 49)})
            with torch.no_grad():
                model(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    ds = open_store(tmp_path / "b.zarr")
    for name in ("resid_post", "loss", "running_loss"):
        np.testing.assert_allclose(ds[name].values, whole[name].values, rtol=2e-3, atol=2e-4)


def test_more_than_two_open_blocks(tmp_path: Path) -> None:
    model = TwoLayers()
    with small_store(tmp_path / "run.zarr", model) as store:
        with pytest.raises(InputError, match="3 blocks are open"):
            loop(store, model, ([0], [4], [8]))
        assert not open_store(tmp_path / "run.zarr").recorded.values.any()
        loop(store, model, ([4, 1], [0, 6], [2, 3], [7, 5], [8, 9, 10, 11], [12, 13, 14, 15]))
    assert open_store(tmp_path / "run.zarr").recorded.values.all()


def test_rows_that_were_never_announced(tmp_path: Path) -> None:
    model = TwoLayers()
    with small_store(tmp_path / "run.zarr", model) as store:
        with pytest.raises(InputError, match=r"Rows 2, 3 were never announced"):
            loop(store, model, ([0, 1],))
        loop(store, model, ([0, 1, 2, 3],))  # one whole block is fine
    assert open_store(tmp_path / "run.zarr").recorded.values.sum() == 4


@pytest.mark.parametrize(
    ("rows", "positions", "message"),
    [
        ([0, 99], None, "table has rows 0 to 15"),
        ([1, 1], None, "twice in one batch"),
        ([0.5], None, "row number"),
        ([0], {"first": [3]}, "has no 'last'"),
        ([0], {"last": [3], "lost": [3]}, "unknown position"),
        ([0, 1], {"last": [3]}, "one per row"),
    ],
)
def test_wrong_batches(tmp_path: Path, rows: Any, positions: Any, message: str) -> None:
    model = TwoLayers()
    with small_store(tmp_path / "run.zarr", model) as store, pytest.raises(InputError, match=message):
        loop(store, model, (rows,), positions=positions)


def test_forward_pass_without_a_batch_or_of_another_size(tmp_path: Path) -> None:
    model = TwoLayers()
    with small_store(tmp_path / "run.zarr", model) as store:
        with (
            Recorder(model, store, stage="s", forward=run_two_layers),
            pytest.raises(InputError, match=r"rec\.batch"),
        ):
            run(store, model, [0])
        with pytest.raises(InputError, match="announced with 2 rows"):
            loop(store, model, ([0, 1],), run_rows=[0, 1, 2])
        with pytest.raises(InputError, match="announced to this recorder before"):
            loop(store, model, ([0, 1], [0, 1]))


def test_a_position_outside_the_sequence_names_rows_and_position(tmp_path: Path) -> None:
    model = TwoLayers()
    message = (
        r"position 'last' is outside the 60 tokens that the model ran for table rows 1, 3: it is token 60 of row 1\. "
        r"Pass token indices in these sequences to rec\.batch"
    )
    with small_store(tmp_path / "run.zarr", model) as store:
        with pytest.raises(InputError, match=message):
            loop(store, model, ([0, 1, 3, 2],), positions={"last": [3, 60, 99, 59]})
        assert not open_store(tmp_path / "run.zarr").recorded.values.any()
        loop(store, model, ([0, 1, 2, 3],))


def test_batches_outside_the_with_are_refused(tmp_path: Path) -> None:
    model = TwoLayers()
    with small_store(tmp_path / "run.zarr", model) as store:
        recorder = Recorder(model, store, stage="s", forward=run_two_layers)
        assert not len(recorder.pending_rows())
        with pytest.raises(InputError, match=r"inside `with Recorder\(\.\.\.\) as rec:`"):
            recorder.batch([0])
        with recorder:
            pass
        assert recorder.pending_rows().tolist() == list(range(16))
        with pytest.raises(InputError, match="this recorder is not recording"):
            recorder.batch([0])


def test_missing_positions_are_nan(tmp_path: Path) -> None:
    model = TwoLayers()
    lengths = table(6).tokenize(tokenizer()).lengths
    far_back = int(np.median(lengths)) + 1
    ds = capture(
        model,
        table(6),
        tmp_path / "run.zarr",
        sites=SITES,
        tokenizer=tokenizer(),
        forward=run_two_layers,
        positions=("last", f"-{far_back}"),
        missing="nan",
    ).load()
    gone = lengths < far_back
    assert gone.any()
    assert not gone.all()
    far = ds.isel(stage=0).sel(token=f"-{far_back}")
    for name in ("state", "state_l2", "entropy"):
        values = far[name].transpose("entity", ...).values.reshape(6, -1)
        np.testing.assert_array_equal(np.isnan(values).all(axis=1), gone)
    first = lengths == far_back  # the first token, which the model does not predict
    np.testing.assert_array_equal(np.isnan(far.loss.values), gone | first)
    assert ds.recorded.values.all()
    assert np.isfinite(ds.state.sel(token="last").values).all()
