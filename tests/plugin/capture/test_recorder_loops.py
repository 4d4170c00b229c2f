"""The Recorder in loops as they are written: padding, other ids, two recorders, failures, generation, user hooks."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from stratalens.plugin.capture.recorder import Recorder
from stratalens.plugin.capture.run import capture
from stratalens.plugin.capture.store import RecordingStore, create_store
from stratalens.plugin.models.hooks import observed
from stratalens.store.errors import InputError, MismatchError, RecordingWarning
from stratalens.store.reading.open import open_store
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at
from support.models import ON_39, bridge, hooked_transformer, table, tokenizer

ROWS = 6
PROMPTS = table(ROWS)
POSITIONS = ("entity_last", "last")
MODELS = ("llama", "gpt2", *(("hooked",) if ON_39 else ()))
every_model = pytest.mark.parametrize("kind", MODELS)


@cache
def model_of(kind: str) -> Any:
    return hooked_transformer() if kind == "hooked" else bridge(kind)


def store_at(path: Path, model: Any, **options: Any) -> RecordingStore:
    defaults = {"positions": POSITIONS, "statistics": False, "check": False, "tokenizer": tokenizer(), "block_size": 8}
    return create_store(path, PROMPTS, model, **{**defaults, **options})


def batch_of(rows: Any, side: str = "right", extra: int = 0) -> tuple[Tensor, Tensor, Any]:
    """Token ids, attention mask, and the token index of both positions, with other tokens after each prompt."""
    tokens = tokenizer()
    ids = [tokens(PROMPTS.prompts[row]).input_ids + list(range(5, 5 + extra)) for row in rows]
    length = max(map(len, ids)) + 2
    pads = [length - len(row) for row in ids]
    front = pads if side == "left" else [0] * len(ids)
    padded = torch.tensor([[3] * f + row + [3] * (p - f) for row, p, f in zip(ids, pads, front, strict=True)])
    mask = torch.tensor([[0] * f + [1] * len(row) + [0] * (p - f) for row, p, f in zip(ids, pads, front, strict=True)])
    tokenized = PROMPTS.tokenize(tokens)
    assert tokenized.offsets is not None
    index = []
    for row, start in zip(rows, front, strict=True):
        end = PROMPTS.spans["entity"][row][1]
        entity = max(i for i, (a, b) in enumerate(tokenized.offsets[row].tolist()) if a < end and b > 0)
        index.append([start + entity, start + int(tokenized.lengths[row]) - 1])
    return padded, mask, np.array(index)


def values_of(model: Any, ids: Tensor, mask: Tensor, index: Any) -> np.ndarray[Any, Any]:
    """Residual streams of shape (layer, entity, token, d_model) as `run_with_cache` gives them."""
    with torch.no_grad():
        _, activations = model.run_with_cache(ids, attention_mask=mask)
    rows = torch.arange(len(ids))[:, None]
    layers = [activations[f"blocks.{n}.hook_resid_post"][rows, torch.from_numpy(index)] for n in range(3)]
    return np.asarray(torch.stack(layers).numpy())


def recorded(path: Path, stage: str = "s") -> np.ndarray[Any, Any]:
    return np.asarray(open_store(path).resid_post.sel(stage=stage).values)


@every_model
@pytest.mark.parametrize(("side", "extra"), [("left", 0), ("right", 3)])
def test_positions_are_found_behind_padding_and_before_other_tokens(
    kind: str, side: str, extra: int, tmp_path: Path
) -> None:
    model, rows = model_of(kind), np.array([3, 0, 5, 1, 4, 2])
    ids, mask, index = batch_of(rows, side, extra)
    statistics = ("loss", "running_loss", "entropy", "entity_loss")
    with store_at(tmp_path / "a.zarr", model, statistics=statistics) as store, Recorder(model, store, "s") as rec:
        rec.batch(rows)
        with torch.no_grad():
            logits = model(ids, attention_mask=mask)
    expected = values_of(model, ids, mask, index)
    np.testing.assert_allclose(recorded(tmp_path / "a.zarr")[:, rows], expected, rtol=1e-5, atol=1e-6)
    ds = open_store(tmp_path / "a.zarr").isel(stage=0, entity=rows)
    log_probs = logits.log_softmax(-1)
    losses = -log_probs[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].numpy()
    line = np.arange(ROWS)[:, None]
    np.testing.assert_allclose(ds.loss.values, losses[line, index - 1], rtol=2e-3, atol=2e-3)
    entropy = -(log_probs.exp() * log_probs).sum(-1).numpy()[line, index]
    np.testing.assert_allclose(ds.entropy.values, entropy, rtol=2e-3, atol=2e-3)
    starts = mask.argmax(1).numpy()
    for number, start in enumerate(starts):
        mean = losses[number, start : index[number, 1]].mean()
        np.testing.assert_allclose(ds.running_loss.values[number, 1], mean, rtol=2e-3, atol=2e-3)
    assert np.isfinite(ds.entity_loss.values).all()


@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_output_statistics_in_a_loop_are_those_of_capture(kind: str, tmp_path: Path) -> None:
    model, rows = bridge(kind), np.arange(ROWS)
    names = ("loss", "running_loss", "entropy", "entity_loss", "answer_loss")
    prompts = table(ROWS, answers=True)
    options: dict[str, Any] = {"statistics": names, "positions": POSITIONS, "check": False}
    whole = capture(model, prompts, tmp_path / "a.zarr", **options)
    with create_store(tmp_path / "b.zarr", prompts, model, **options) as store, Recorder(model, store, "model") as rec:
        ids, mask = (torch.from_numpy(a) for a in store.spec.tokenized.batch(rows, 60, answers=True))
        length = mask.sum(1)
        for row in rows:  # two more tokens after every answer
            ids[row, length[row] : length[row] + 2], mask[row, length[row] : length[row] + 2] = 7, 1
        rec.batch(rows)
        with torch.no_grad():
            model(ids, attention_mask=mask)
    ds = open_store(tmp_path / "b.zarr")
    for name in ("resid_post", *names):
        np.testing.assert_allclose(ds[name].values, whole[name].values, rtol=1e-4, atol=1e-4)
    with create_store(tmp_path / "c.zarr", prompts, model, **options) as store, Recorder(model, store, "model") as rec:
        ids, mask = (torch.from_numpy(a) for a in store.spec.tokenized.batch(rows, 60))
        rec.batch(rows)
        with pytest.raises(InputError, match=r"row 0 \('.*'\): the ids of the answer do not follow"):
            model(ids, attention_mask=mask)
        rec.discard_batch()


def _reversed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return ids.flip(0), mask.flip(0)


def _with_bos(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.cat([torch.zeros_like(ids[:, :1]), ids], 1), None


def _without_first(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return ids[:, 1:], None


def _truncated(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return ids[:, :5], None


def _hole(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return ids, mask.index_fill(1, torch.tensor([2]), 0)


def _changed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return ids.index_fill(1, torch.tensor([4]), 399), mask


def _left_without_mask(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.nn.functional.pad(ids, (2, 0), value=3), None


def _one_too_many(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.cat([ids, ids[:1]]), None


OTHER_IDS = [
    (
        _reversed,
        r"row \d \('.*'\): the ids differ from the table's at token \d+: the model received \d+, the table",
    ),
    (_with_bos, r"row 0 \('.*'\): the ids do not start where the table's do: .*one token more is in front"),
    (_without_first, r"row 0 .*the ids do not start where the table's do.*the first token of the table is missing"),
    (_truncated, r"row 0 .*the sequence ends after 5 tokens, but its prompt in the table has \d+"),
    (_hole, r"row 0 .*the attention mask is 0 on token 2 of the prompt"),
    (_changed, r"row 0 .*the ids differ from the table's at token 4: the model received 399"),
    (_left_without_mask, r"row 0 .*the ids do not start.*behind padding that no attention mask marks"),
    (_one_too_many, r"the model ran 7 sequences in a batch announced with 6 rows"),
]


@every_model
def test_other_ids_are_refused_and_the_rows_can_be_run_again(kind: str, tmp_path: Path) -> None:
    model, rows = model_of(kind), range(ROWS)
    ids, mask, index = batch_of(rows)
    with store_at(tmp_path / "a.zarr", model) as store, Recorder(model, store, "s") as rec, torch.no_grad():
        for change, message in OTHER_IDS:
            wrong, its_mask = change(ids, mask)
            rec.batch(rows)
            with pytest.raises(InputError, match=message):
                model(wrong, attention_mask=its_mask)
        rec.batch(rows)
        model(ids, attention_mask=mask)
    np.testing.assert_allclose(recorded(tmp_path / "a.zarr"), values_of(model, ids, mask, index), rtol=1e-5, atol=1e-6)


@every_model
def test_a_model_that_is_called_with_text(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    with store_at(tmp_path / "a.zarr", model) as store, Recorder(model, store, "s") as rec, torch.no_grad():
        for row, prompt in enumerate(PROMPTS.prompts):
            rec.batch([row])
            model(prompt, prepend_bos=False)
    for row in range(ROWS):
        expected = values_of(model, *batch_of([row]))
        np.testing.assert_allclose(recorded(tmp_path / "a.zarr")[:, [row]], expected, rtol=1e-4, atol=1e-5)


class FromBatch(HookedRootModule):
    """A model that takes a dictionary, so that the recorder does not see its ids."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.hook_embed = torch.nn.Embedding(400, 8), HookPoint()
        self.setup()

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the embeddings of the ids."""
        return self.hook_embed(self.embed(batch["ids"]))


def test_ids_that_the_recorder_does_not_see_must_be_passed(tmp_path: Path) -> None:
    model, rows = FromBatch(), range(ROWS)
    ids, mask, index = batch_of(rows, "left")
    options: dict[str, Any] = {"sites": "embed", "forward": lambda model, ids, mask: model({"ids": ids})}
    with store_at(tmp_path / "a.zarr", model, **options) as store:
        with Recorder(model, store, "s", forward=options["forward"]) as rec:
            rec.batch(rows)
            with pytest.raises(InputError, match="the recorder does not see the token ids of this forward pass"):
                model({"ids": ids})
            with pytest.raises(InputError, match=r"row 0 .*the ids do not start"):
                rec.batch(rows, tokens=ids)
            rec.batch(rows, tokens=ids, attention_mask=mask)
            model({"ids": ids})
        with Recorder(model, store, "given", forward=options["forward"], allow_same_weights=True) as rec:
            rec.batch(rows, {"entity_last": index[:, 0], "last": index[:, 1]})
            model({"ids": ids})
    expected = model.embed.weight.detach()[ids].numpy()[np.arange(ROWS)[:, None], index]
    ds = open_store(tmp_path / "a.zarr")
    for stage in ("s", "given"):
        np.testing.assert_array_equal(ds.embed.sel(stage=stage).values, expected)


@every_model
def test_two_recorders_and_a_capture_on_one_model(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    halves = [[0, 1, 2], [3, 4, 5]]
    outer, inner = store_at(tmp_path / "a.zarr", model), store_at(tmp_path / "b.zarr", model, sites="mlp_out")
    options: dict[str, Any] = {"positions": POSITIONS, "statistics": False, "tokenizer": tokenizer(), "check": False}
    alone = capture(model, PROMPTS, tmp_path / "alone.zarr", **options)
    with outer, inner, torch.no_grad(), Recorder(model, outer, "s") as first, Recorder(model, inner, "s") as second:
        first.batch(halves[0])
        second.batch(halves[0])
        ids, mask, _ = batch_of(halves[0])
        model(ids, attention_mask=mask)  # both record it
        among = capture(model, PROMPTS, tmp_path / "among.zarr", **options)
        ids, mask, _ = batch_of(halves[1])
        second.batch(halves[1])
        model(ids, attention_mask=mask)  # the second one alone
        first.batch(halves[1])
        during = capture(model, PROMPTS, tmp_path / "during.zarr", **options)  # although a batch is announced
        with first.paused(), second.paused():
            model(ids.flip(0))
        model(ids, attention_mask=mask)
        with pytest.raises(InputError, match=r"without an announced batch.*rec\.paused"):
            model(ids, attention_mask=mask)
    for ds in (among, during):
        assert ds.drop_attrs().identical(alone.drop_attrs())
    for rows in halves:
        ids, mask, index = batch_of(rows)
        expected = values_of(model, ids, mask, index)
        np.testing.assert_allclose(recorded(tmp_path / "a.zarr")[:, rows], expected, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            _, activations = model.run_with_cache(ids, attention_mask=mask)
        mlp = activations["blocks.1.hook_mlp_out"][torch.arange(3)[:, None], torch.from_numpy(index)].numpy()
        ds = open_store(tmp_path / "b.zarr").mlp_out.isel(stage=0, layer=1, entity=rows)
        np.testing.assert_allclose(ds.values, mlp, rtol=1e-5, atol=1e-6)


@every_model
@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt, ZeroDivisionError])
def test_a_batch_that_failed_runs_again_in_smaller_ones(kind: str, error: type[BaseException], tmp_path: Path) -> None:
    model = model_of(kind)
    fails = [True]

    def failing(tensor: Tensor, hook: Any) -> None:
        if fails:
            fails.clear()
            raise error("stop here")

    with store_at(tmp_path / "a.zarr", model) as store, torch.no_grad(), Recorder(model, store, "s") as rec:
        rec.batch(range(ROWS))
        with pytest.raises(error, match="stop here"):
            model.run_with_hooks(batch_of(range(ROWS))[0], fwd_hooks=[("blocks.2.hook_resid_pre", failing)])
        rec.batch([5, 0])  # and the loop went wrong before the model ran
        for rows in ([0, 1, 2], [3, 4, 5]):
            ids, mask, _ = batch_of(rows)
            rec.batch(rows)
            model(ids, attention_mask=mask)
        assert not len(rec.pending_rows())
    for rows in ([0, 1, 2], [3, 4, 5]):
        expected = values_of(model, *batch_of(rows))
        np.testing.assert_allclose(recorded(tmp_path / "a.zarr")[:, rows], expected, rtol=1e-5, atol=1e-6)


def test_a_batch_that_never_ran_is_named(tmp_path: Path) -> None:
    model = model_of("llama")
    with store_at(tmp_path / "a.zarr", model, block_size=2) as store:
        with Recorder(model, store, "s") as rec:
            rec.batch([0, 1])
            with pytest.raises(InputError, match=r"rows 0, 1 were announced, but the model did not run.*discard_batch"):
                rec.batch([2, 3])
        with Recorder(model, store, "s") as rec:
            rec.batch([0, 1])
            rec.discard_batch()
            rec.batch([2, 3])
            ids, mask, _ = batch_of([2, 3])
            model(ids, attention_mask=mask)
            rec.batch([0, 1])
            rec.discard_batch()
            with pytest.raises(InputError, match=r"without an announced batch"):
                model(ids, attention_mask=mask)
            rec.batch([4, 5])
            rec.discard_batch()
            ids, mask, _ = batch_of([0, 1])
            rec.batch([0, 1])
            model(ids, attention_mask=mask)
        assert open_store(tmp_path / "a.zarr").recorded.values.tolist() == [[True] * 4 + [False] * 2]


def _hf(model: Any, ids: Tensor, mask: Tensor, use_cache: bool) -> Any:
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    return model.original_model.generate(ids, attention_mask=mask, use_cache=use_cache, **options)


def _lens(model: Any, ids: Tensor, mask: Tensor, use_cache: bool) -> Any:
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "verbose": False, "stop_at_eos": False}
    return model.generate(ids, use_past_kv_cache=use_cache, **options)


GENERATORS = [("llama", _hf), ("gpt2", _hf), ("llama", _lens), ("gpt2", _lens), *([("hooked", _lens)] if ON_39 else [])]


@pytest.mark.parametrize(("kind", "generate"), GENERATORS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_the_pass_over_the_prompt_of_a_generation_is_recorded(
    kind: str, generate: Callable[..., Any], use_cache: bool, tmp_path: Path
) -> None:
    model = model_of(kind)
    statistics = ("loss", "entropy")
    with store_at(tmp_path / "a.zarr", model, statistics=statistics) as store, Recorder(model, store, "s") as rec:
        for row in range(ROWS):
            ids = torch.tensor([tokenizer()(PROMPTS.prompts[row]).input_ids])
            rec.batch([row])
            assert generate(model, ids, torch.ones_like(ids), use_cache).shape[1] == ids.shape[1] + 3
    whole = capture(
        model, PROMPTS, tmp_path / "b.zarr", positions=POSITIONS, statistics=statistics, tokenizer=tokenizer()
    )
    ds = open_store(tmp_path / "a.zarr")
    for name in ("resid_post", *statistics):
        np.testing.assert_allclose(ds[name].values, whole[name].values, rtol=1e-3, atol=1e-4)


def test_a_batch_of_prompts_padded_on_the_left_is_generated_from(tmp_path: Path) -> None:
    model, rows = model_of("llama"), range(ROWS)
    ids, mask, index = batch_of(rows, "left")
    with store_at(tmp_path / "a.zarr", model) as store, Recorder(model, store, "s") as rec:
        rec.batch(rows)
        with pytest.raises(InputError, match="12 sequences in a batch announced with 6 rows"):
            model.original_model.generate(ids, attention_mask=mask, num_beams=2, max_new_tokens=2)
        rec.batch(rows)
        _hf(model, ids, mask, use_cache=True)
        assert not len(rec.pending_rows())
        with pytest.raises(InputError, match="without an announced batch"):  # not a continuation
            _hf(model, ids[:, 1:], mask[:, 1:], use_cache=True)
    np.testing.assert_allclose(recorded(tmp_path / "a.zarr"), values_of(model, ids, mask, index), rtol=1e-4, atol=1e-5)


def test_a_pass_over_a_part_of_the_prompt_names_row_and_token(tmp_path: Path) -> None:
    model = model_of("llama")
    ids, mask, _ = batch_of([2])
    with store_at(tmp_path / "a.zarr", model) as store, Recorder(model, store, "s") as rec:
        rec.batch([2])
        with pytest.raises(InputError, match=r"row 2 \('.*'\): the sequence ends after 4 tokens"):
            _hf(model, ids[:, :4], mask[:, :4], use_cache=True)


def add_one(tensor: Tensor, hook: Any) -> Tensor:
    return tensor + 1.0


@every_model
def test_hooks_before_the_recorder_are_seen_and_those_inside_are_not(kind: str, tmp_path: Path) -> None:
    model, rows = model_of(kind), range(ROWS)
    ids, mask, index = batch_of(rows)
    plain, point = values_of(model, ids, mask, index), "blocks.1.hook_resid_post"
    name = model.hook_dict[point].name
    with store_at(tmp_path / "a.zarr", model) as store, torch.no_grad():
        with Recorder(model, store, "plain") as rec:
            rec.batch(rows)
            model(ids, attention_mask=mask)
        with model.hooks(fwd_hooks=[(point, add_one)]):
            changed = values_of(model, ids, mask, index)
            with Recorder(model, store, "before", allow_same_weights=True) as rec:
                rec.batch(rows)
                model(ids, attention_mask=mask)
            before = capture(
                model, PROMPTS, tmp_path / "b.zarr", positions=POSITIONS, statistics=False, tokenizer=tokenizer()
            )
        with Recorder(model, store, "inside", allow_same_weights=True) as rec:
            rec.batch(rows)
            with pytest.warns(
                RecordingWarning, match=f"hooks were added inside the recorder, after its own, at {name}"
            ):
                model.run_with_hooks(ids, attention_mask=mask, fwd_hooks=[(point, add_one)])
        provenance = {entry.name: dict(entry.provenance) for entry in store.writer.store.stages}
        assert provenance == {"plain": {}, "before": {"user_hooks": [name]}, "inside": {}}
        assert [dict(entry.provenance) for entry in load(storage_at(tmp_path / "b.zarr")).stages] == [
            {"user_hooks": [name]}
        ]
        with pytest.raises(
            MismatchError, match=r"user_hooks differs for stage 'before'.*put the same hooks on the model"
        ):
            Recorder(model, store, "before", allow_same_weights=True).__enter__()
    tolerance: dict[str, float] = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(recorded(tmp_path / "a.zarr", "plain"), plain, **tolerance)
    np.testing.assert_allclose(changed[1], plain[1] + 1, **tolerance)
    np.testing.assert_allclose(recorded(tmp_path / "a.zarr", "before"), changed, **tolerance)
    np.testing.assert_allclose(before.resid_post.values[0], changed, rtol=1e-3, atol=1e-4)
    inside = recorded(tmp_path / "a.zarr", "inside")
    np.testing.assert_allclose(inside[1], plain[1], **tolerance)  # the value before the hook
    np.testing.assert_allclose(inside[2], changed[2], **tolerance)  # and its effect


def test_hooks_of_pytorch_count_and_those_that_only_observe_do_not(tmp_path: Path) -> None:
    model = bridge("neox")
    with store_at(tmp_path / "a.zarr", model) as store:
        handle = model.original_model.gpt_neox.layers[1].register_forward_hook(lambda module, args, output: None)
        with Recorder(model, store, "s"):
            pass
        handle.remove()
        (name,) = store.writer.store.stages[0].provenance["user_hooks"]
        assert "layers.1" in name or "blocks.1" in name
        with (
            observed([(model.hook_dict["blocks.0.hook_in"], lambda value: None)]),
            Recorder(model, store, "t", allow_same_weights=True),
        ):
            pass
        assert dict(store.writer.store.stages[1].provenance) == {}


class Checkpointed(HookedRootModule):
    """A model that computes its activations again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.maps, self.hook_state = torch.nn.Embedding(400, 8), torch.nn.Linear(8, 8), HookPoint()
        self.setup()

    def _block(self, x: Tensor) -> Tensor:
        return torch.tanh(self.hook_state(self.maps(x)))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the states of the ids."""
        states: Tensor = checkpoint(self._block, self.embed(ids), use_reentrant=False)
        return states


def test_activations_that_are_computed_again_in_the_backward_pass_are_not_recorded(tmp_path: Path) -> None:
    model, calls = Checkpointed(), list[int]()
    ids, mask, index = batch_of(range(ROWS), "left")
    with torch.no_grad():
        states = model.maps(model.embed(ids))
    expected = states[torch.arange(ROWS)[:, None], torch.from_numpy(index)].numpy()
    options: dict[str, Any] = {"sites": "hook_state", "forward": lambda model, ids, mask: model(ids, mask)}
    with (
        observed([(model.hook_state, lambda value: calls.append(1))]),
        store_at(tmp_path / "a.zarr", model, **options) as store,
        Recorder(model, store, "s", forward=options["forward"]) as rec,
    ):
        calls.clear()
        rec.batch([0, 1, 2])
        loss = model(ids[:3], mask[:3]).sum()
        rec.batch([3, 4, 5])
        loss.backward()  # the next batch is announced already
        model(ids[3:], mask[3:]).sum().backward()
    assert len(calls) == 4
    np.testing.assert_allclose(open_store(tmp_path / "a.zarr").state.values[0], expected, rtol=1e-5, atol=1e-6)
