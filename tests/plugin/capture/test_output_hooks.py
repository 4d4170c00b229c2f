"""Output statistics from a few rows of logits, against all logits in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stratalens.plugin.capture.output_hooks import OutputHooks, Sequences, head_is_separable
from stratalens.plugin.capture.run import capture
from stratalens.plugin.capture.spec import sample_ids
from stratalens.plugin.models import site_resolution as sites
from stratalens.plugin.models.adapters import adapt
from support.models import BRIDGES, ON_39, bridge, hooked_transformer, table

KINDS = [*BRIDGES, "cohere", "opt", *(["hooked"] if ON_39 else [])]
SPLIT = {"opt": False}  # a projection is between its final norm and its output layer


def make(kind: str) -> Any:
    return hooked_transformer() if kind == "hooked" else bridge(kind)


def log_probabilities(model: Any, ids: np.ndarray, stop: int) -> torch.Tensor:
    """Log probabilities (position, vocab) in float64, from a single row without padding."""
    with torch.no_grad():
        return model(torch.from_numpy(ids[:stop])[None])[0].double().log_softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_confidence_equal_those_of_all_logits(kind: str, tmp_path: Path) -> None:
    model, prompts = make(kind), table(6, answers=True)
    wanted = (
        "loss",
        "running_loss",
        "entropy",
        "max_logprob",
        "logsumexp",
        "logit_std",
        "logit_percentile",
        "answer_loss",
    )
    options = {"layers": [0], "positions": ("last", "entity_last", "-4"), "statistics": wanted}
    # TransformerLens 3.9 computes the attention of Cohere in another way than transformers, which the check refuses.
    ds = capture(model, prompts, tmp_path / "run.zarr", check=False, **options)
    adapter = adapt(model)
    tokenized = prompts.tokenize(model.tokenizer)
    sites.resolve(adapter, "resid_post", [0], sample_ids(tokenized.ids))
    assert head_is_separable(adapter) is SPLIT.get(kind, True)
    offsets = {"last": -1, "-4": -4}
    for row in range(6):
        prompt, answer = tokenized.ids[row], tokenized.answer_ids[row]
        both = np.concatenate([prompt, answer])
        logp = log_probabilities(model, both, len(both))
        losses = -logp[:-1].gather(1, torch.from_numpy(both[1:])[:, None])[:, 0].numpy()
        cell = ds.isel(stage=0, entity=row).load()
        for name, offset in offsets.items():
            p = len(prompt) + offset
            at = cell.sel(token=name)
            assert at.loss.item() == pytest.approx(losses[p - 1], abs=2e-4)
            assert at.running_loss.item() == pytest.approx(losses[:p].mean(), abs=2e-4)
            assert at.max_logprob.item() == pytest.approx(logp[p].max().item(), abs=2e-4)
            assert at.entropy.item() == pytest.approx(-(logp[p].exp() * logp[p]).sum().item(), abs=2e-4)
            spread = logp[p].numpy().std()  # a shift by the logsumexp does not change it
            assert at.logit_std.item() == pytest.approx(spread, rel=1e-3)
            middle = np.percentile(logp[p].numpy(), 50) + at.logsumexp.item()
            assert at.logit_percentile.sel(percentile=50).item() == pytest.approx(middle, abs=5e-4)
        assert cell.answer_loss.item() == pytest.approx(losses[len(prompt) - 1 :].mean(), abs=2e-4)
    assert np.isfinite(ds.loss.sel(token="entity_last").values).all()


def test_first_token_has_no_loss(tmp_path: Path) -> None:
    prompts = table(3)
    model = bridge("llama")
    lengths = prompts.tokenize(model.tokenizer).lengths
    ds = capture(
        model, prompts, tmp_path / "run.zarr", layers=[0], positions="all", statistics=("loss", "running_loss")
    )
    for row, length in enumerate(lengths):
        for name in ("loss", "running_loss"):
            values = ds[name].values[0, row]
            assert np.isnan(values[: len(values) - length + 1]).all()
            assert np.isfinite(values[len(values) - length + 1 :]).all()


def test_answers_leave_the_prompts_activations_alone(tmp_path: Path) -> None:
    model = bridge("gpt2")
    prompts = table(5, answers=True)
    with_answers = capture(model, prompts, tmp_path / "a.zarr", statistics=("answer_loss", "l2"))
    without = capture(model, prompts, tmp_path / "b.zarr", statistics=("l2",))
    np.testing.assert_allclose(with_answers.resid_post.values, without.resid_post.values, rtol=2e-5, atol=2e-6)
    assert "answer_loss" not in without


def test_running_loss_is_recorded_on_request(tmp_path: Path) -> None:
    first, second = {"a": bridge("llama")}, {"a": bridge("llama"), "b": bridge("llama", 1)}
    default = capture(first, table(3), tmp_path / "a.zarr", layers=[0])
    assert {"loss", "entity_loss", "entropy", "resid_post_l2"} < set(default)
    assert "running_loss" not in default
    every = capture(first, table(3), tmp_path / "b.zarr", layers=[0], statistics="all")
    assert set(every) == {*default, "running_loss"}
    for name in default:
        np.testing.assert_array_equal(default[name].values, every[name].values)
    # A store goes on with what it records.
    assert "running_loss" not in capture(second, table(3), tmp_path / "a.zarr", layers=[0])
    assert np.isfinite(capture(second, table(3), tmp_path / "b.zarr", layers=[0]).running_loss.values).all()


@pytest.mark.parametrize("kind", KINDS)
def test_losses_need_no_whole_row_of_logits(kind: str) -> None:
    adapter = adapt(make(kind))
    prompts = table(4)
    tokenized = prompts.tokenize(adapter.model.tokenizer)
    sites.resolve(adapter, "resid_post", [0], sample_ids(tokenized.ids))
    hooks = OutputHooks(adapter, ("loss", "running_loss"))
    assert hooks.split is SPLIT.get(kind, True)
    layer = adapter.output_layer()
    if not hooks.split:
        return
    assert layer is not None
    hidden = adapter.dry_run_result[1][0]  # type: ignore[index]
    separate = adapter.scale_logits(torch.nn.functional.linear(hidden, *layer))
    torch.testing.assert_close(separate, adapter.head(hidden))
    asked: list[int] = []
    adapter.head = lambda rows: asked.append(len(rows))  # type: ignore[method-assign]
    hooks.attach()
    ids, mask = tokenized.batch(np.arange(4), int(tokenized.lengths.max()))
    with torch.inference_mode():
        adapter.run(torch.from_numpy(ids), torch.from_numpy(mask), "none")
        last = tokenized.lengths[:, None] - 1
        batch = Sequences(ids, np.zeros(4, np.int64), last, tokenized.lengths, tokenized.lengths)
        values = hooks.statistics(batch)
    hooks.detach()
    assert not asked
    assert bool(torch.isfinite(values["running_loss"]).all())


def test_only_what_was_asked_for(tmp_path: Path) -> None:
    ds = capture(bridge("llama"), table(3), tmp_path / "a.zarr", sites=("z", "embed"), statistics=("l2", "entropy"))
    assert {"z_l2", "embed_l2", "entropy"} <= set(ds)
    assert not {"z_l1", "loss", "logit_max"} & set(ds)
    assert ds.z_l2.dims == ("stage", "layer", "entity", "token", "head")
    expected = np.linalg.norm(ds.z.values.astype(np.float64), axis=-1)
    np.testing.assert_allclose(ds.z_l2.values, expected, rtol=1e-6)
    off = capture(bridge("llama"), table(3), tmp_path / "b.zarr", statistics=False)
    assert set(off.data_vars) == {"resid_post", "recorded"}


def test_no_more_logits_than_asked_for() -> None:
    adapter = adapt(bridge("llama"))
    rows: list[int] = []
    handle = adapter.hf.lm_head.register_forward_hook(lambda m, i, o: rows.append(o.shape[1]))
    ids = torch.ones((2, 9), dtype=torch.long)
    adapter.run(ids, torch.ones_like(ids), "none")
    handle.remove()
    assert rows == [0]
    assert not OutputHooks(adapter, ()).names
