"""Outcomes other than answers: a probe further up, generated text; directions of shuffled labels as the null."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import stratalens as sl
from stratalens.store.errors import InputError
from support.models import ON_39, TwoLayers, bridge, hooked_transformer, run_two_layers, table, tokenizer

QUICK: dict[str, Any] = {"progress": False, "random": 2, "doses": (-4.0, 4.0)}


@cache
def shared(kind: str, seed: int = 0) -> Any:
    return hooked_transformer() if kind == "hooked" else bridge(kind, seed)


def axis(layers: tuple[int, ...] = (0, 1), width: int = 32, site: str = "resid_post") -> Any:
    x = np.random.default_rng(0).normal(size=(len(layers), width))
    return sl.directions(
        xr.DataArray(x, dims=("layer", "d_model"), coords={"layer": list(layers)}), site=site, name="a"
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("store") / "run.zarr"
    return sl.capture({"a": shared("llama"), "b": shared("llama", 1)}, table(24), path, progress=False)


@pytest.fixture(scope="module")
def probes(store: Any) -> xr.Dataset:
    return sl.probe(store, target="group", pairs=[(0, 1)], method="ridge", folds=2, progress=False)


@pytest.mark.parametrize("stage", ["a", "b"])
def test_the_score_of_a_probe_further_up(store: Any, probes: xr.Dataset, stage: str) -> None:
    model, prompts = shared("llama", {"a": 0, "b": 1}[stage]), table(6, seed=3)
    probe = probes.sel(layer=2)
    result = sl.intervene({stage: model}, prompts, axis(), outcome=probe, positions="last", **QUICK)
    assert result.attrs["outcome"] == "probe_score"
    assert result.attrs["computed_positions"] == "from the first changed token on"
    weights = torch.from_numpy(probe.coef.sel(stage=stage).squeeze().values)
    intercept = float(probe.intercept.sel(stage=stage).squeeze())
    tokens = prompts.tokenize(tokenizer())
    for layer, dose in ((0, 4.0), (1, -4.0), (1, None)):
        d = torch.from_numpy(axis().at(None, layer)[0])
        for row in range(len(prompts)):
            seen: list[Tensor] = []

            def edit(value: Tensor, hook: Any, step: Any = dose, d: Any = d) -> Tensor:
                value = value.clone()
                value[:, -1] += 0 if step is None else step * d
                return value

            hooks = [(f"blocks.{layer}.hook_out", edit), ("blocks.2.hook_out", lambda v, hook, s=seen: s.append(v))]
            with torch.no_grad(), model.hooks(fwd_hooks=hooks):
                model(torch.from_numpy(tokens.ids[row])[None])
            expected = float(seen[0][0, -1] @ weights) + intercept
            own = result.clean if dose is None else result.outcome.sel(layer=layer, dose=dose)
            assert float(own.squeeze().values[row]) == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_probes_that_cannot_be_an_outcome(probes: xr.Dataset) -> None:
    for outcome, message in (
        (probes, "has several layer; select one"),
        (probes.sel(layer=1), "does not change, or changes by the dose alone"),
        (probes.sel(layer=2).drop_vars("intercept"), "has coef and intercept"),
        (probes.sel(layer=2, stage=["b"]).isel(d_model=slice(4)), "has 4 features"),
        (probes.sel(layer=2), "the probe of the outcome has stages a, b"),
    ):
        with pytest.raises(InputError, match=message):
            sl.intervene({"other": shared("llama")}, table(4), axis(), outcome=outcome, **QUICK)


def by_hand(model: Any, ids: Any, layer: int, step: Tensor | None, new: int) -> list[int]:
    """Greedy tokens, with one edit at the last token of the prompt."""
    own, at = [int(i) for i in ids], len(ids) - 1
    for _ in range(new):

        def edit(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, at] += 0 if step is None else step
            return value

        with torch.no_grad(), model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", edit)]):
            token = int(model(torch.tensor([own]))[0, -1].argmax())
        if token == 0:
            break
        own.append(token)
    return own[len(ids) :]


@pytest.mark.parametrize("kind", ["llama", *(["hooked"] if ON_39 else [])])
def test_greedy_text_is_that_of_a_loop_and_is_kept(kind: str, tmp_path: Path) -> None:
    model, prompts, tokens = shared(kind), table(4, answers=True), table(4).tokenize(tokenizer())
    options = {**QUICK, "positions": "last", "outcome": sl.GeneratedText(new_tokens=5), "doses": (0.0, 40.0)}
    path = tmp_path / "effects.zarr"
    result = sl.intervene(model, prompts, axis((1,)), path=path, **options)
    d = torch.from_numpy(axis((1,)).at(None, 1)[0])
    for row in range(4):
        for dose, step in ((0.0, None), (40.0, 40.0 * d)):
            expected = tokenizer().decode(by_hand(model, tokens.ids[row], 1, step, 5), skip_special_tokens=True)
            assert str(result.text.sel(dose=dose).squeeze().values[row]) == expected
    assert result.clean_text.values.ravel().tolist() == result.text.sel(dose=0.0).values.ravel().tolist()
    assert result.text.dims == result.outcome.dims
    again = sl.intervene(model, prompts, axis((1,)), path=path, **options)
    xr.testing.assert_equal(again, result)
    assert (result.outcome == 0).all()  # no answer in these texts


def test_texts_are_judged_and_sampled_with_common_random_numbers() -> None:
    prompts = table(4, answers=True)
    frame = prompts.frame.drop(columns=["entity_start", "entity_end"])
    calls: list[list[str]] = []

    def judge(texts: list[str], batch: Any) -> list[float]:
        calls.append(texts)
        return [len(text) + 100.0 * row for text, row in zip(texts, batch.rows, strict=True)]

    options = {**QUICK, "doses": (0.0, 1e-6), "positions": "all", "random": 0}
    sampled = sl.GeneratedText(judge, new_tokens=4, temperature=1.0, seed=1)
    result = sl.intervene(shared("llama"), prompts, axis((1,)), outcome=sampled, **options)
    texts = result.text.squeeze()
    assert texts.sel(dose=1e-6).values.tolist() == texts.sel(dose=0).values.tolist()  # the same random numbers
    assert (result.outcome.squeeze().values // 100 == np.arange(4)).all()
    single = sl.intervene(shared("llama"), prompts, axis((1,)), outcome=sampled, batch_size=1, **options)
    assert single.text.values.tolist() == result.text.values.tolist()
    other = sl.GeneratedText(judge, new_tokens=4, temperature=1.0, seed=2)
    changed = sl.intervene(shared("llama"), prompts, axis((1,)), outcome=other, **options)
    assert changed.text.values.tolist() != result.text.values.tolist()
    texts_of_clean = [str(text) for text in result.clean_text.values[0]]
    known = sl.PromptTable.from_dataframe(frame.assign(answer=[text[1:3] or "?" for text in texts_of_clean]))
    greedy = sl.intervene(
        TwoLayers(),
        known,
        sl.directions(xr.DataArray(np.eye(12)[0], dims="d_model"), site="embed", name="first"),
        outcome=sl.GeneratedText(lambda texts: [1.0] * len(texts), new_tokens=2),
        tokenizer=tokenizer(),
        forward=run_two_layers,
        **QUICK,
    )
    assert greedy.text.dims == ("stage", "direction", "dose", "entity")
    found_again = sl.intervene(
        shared("llama"),
        known,
        axis((1,)),
        outcome=sl.GeneratedText(new_tokens=4, temperature=1.0, seed=1),
        **options,
    )
    assert float(found_again.clean.mean()) > 0.5


def test_shuffled_labels_as_the_null(store: Any, probes: xr.Dataset) -> None:
    model, prompts = shared("llama"), table(5, seed=4, answers=True)
    tested = sl.directions(probes.sel(stage="a", layer=[1]), entities=[])
    shuffled = sl.shuffled_probes(store, "group", pairs=[(0, 1)], draws=3, method="ridge", progress=False)
    null = sl.directions(shuffled.sel(layer=[1], stage=["a"]))
    result = sl.intervene({"a": model}, prompts, tested, null=shuffled.sel(layer=[1], stage=["a"]), **QUICK)
    assert result.sizes["random"] == 3
    assert "from shuffled labels" in result.attrs["verdict"]
    alone = sl.intervene({"a": model}, prompts, null, **(QUICK | {"random": 0}))
    np.testing.assert_allclose(result.null.values[0, 0].T, alone.effect.values[0, 0], rtol=1e-6)
    for wrong, message in (
        (axis((2,)), "has no directions at layer 1"),
        (axis((1,), 16), "16"),
        (axis((1,), site="mlp_out"), "make both at one site"),
    ):
        with pytest.raises(InputError, match=message):
            sl.intervene({"a": model}, prompts, tested, null=wrong, **QUICK)


def test_entities_that_made_the_directions_are_named(probes: xr.Dataset) -> None:
    model, prompts = shared("llama"), table(24, answers=True)
    fitted = sl.directions(probes.sel(stage="a", layer=1))
    assert len(fitted.entities) == 16  # a probe of groups 0 and 1 knows its entities
    result = sl.intervene({"a": model}, prompts, fitted, **QUICK)
    groups = prompts.labels()["group"]
    assert result.scored.values.tolist() == [group == 2 for group in groups]
    assert result.attrs["overlap"] == "entities that made the directions are not scored"
    with pytest.raises(InputError, match="16 entities of the prompts made the directions"):
        sl.intervene({"a": model}, prompts, fitted, overlap="refuse", **QUICK)
    same = sl.PromptTable.from_dataframe(prompts.frame[prompts.frame["group"] < 2])
    with pytest.raises(InputError, match=r"every entity of the prompts made the directions.*overlap='allow'"):
        sl.intervene({"a": model}, same, fitted, **QUICK)
    allowed = sl.intervene({"a": model}, same, fitted, overlap="allow", **QUICK)
    assert allowed.scored.all()
    assert "scored too" in allowed.attrs["overlap"]
    unknown = sl.intervene({"a": model}, same, axis((1,)), **QUICK)
    assert unknown.attrs["overlap"].startswith("not known")
