"""intervene equals a plain loop, resumes, finds the directions of each stage, and names bad input before it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import stratalens as sl
from stratalens.store.errors import InputError, MismatchError
from support.models import ON_39, TwoLayers, bridge, hooked_transformer, run_two_layers, table, tokenizer

QUICK: dict[str, Any] = {"progress": False, "random": 3, "doses": (-3.0, 3.0)}
SITE = "resid_post"


def axis(layers: tuple[int, ...] = (0, 2), width: int = 32, count: int = 1, dim: str = "d_model") -> Any:
    x = np.random.default_rng(0).normal(size=(len(layers), count, width))
    names = [f"axis {i}" for i in range(count)]
    array = xr.DataArray(x, dims=("layer", "direction", dim), coords={"layer": list(layers), "direction": names})
    return sl.directions(array, site=SITE)


def by_hand(model: Any, prompts: Any, directions: Any, layer: int, dose: float, positions: str) -> list[float]:
    """Mean loss of the answers, row by row without padding, with a hook of TransformerLens."""
    tokens = prompts.tokenize(tokenizer())
    d = torch.from_numpy(directions.at(None, layer)[0])
    losses = []
    for row, answer in zip(tokens.ids, tokens.answer_ids, strict=True):

        def edit(value: Tensor, hook: Any, last: int = len(row) - 1) -> Tensor:
            value = value.clone()
            at = slice(None) if positions == "all" else last
            value[:, at] = value[:, at] + dose * d
            return value

        ids = torch.tensor([[*row, *answer]])
        with torch.no_grad(), model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_post", edit)]):
            logs = model(ids, attention_mask=torch.ones_like(ids)).log_softmax(-1)[0]
        at = range(len(row) - 1, len(row) + len(answer) - 1)
        losses.append(-float(np.mean([float(logs[i, token]) for i, token in zip(at, answer, strict=True)])))
    return losses


@pytest.mark.parametrize("kind", ["llama", *(["hooked"] if ON_39 else [])])
@pytest.mark.parametrize("positions", ["all", "last"])
def test_equal_to_a_plain_loop(kind: str, positions: str) -> None:
    model, prompts, directions = (
        hooked_transformer() if kind == "hooked" else bridge(kind),
        table(5, answers=True),
        axis(),
    )
    options = QUICK | {"unrelated": ["ab and cd", "some more of it"]}
    result = sl.intervene(model, prompts, directions, positions=positions, **options)
    assert result.outcome.dims == ("stage", "layer", "direction", "dose", "entity")
    for layer in (0, 2):
        for dose in (-3.0, 3.0):
            expected = by_hand(model, prompts, directions, layer, dose, positions)
            own = result.outcome.sel(stage="model", layer=layer, direction="axis 0", dose=dose)
            np.testing.assert_allclose(own, expected, rtol=2e-5)
    np.testing.assert_allclose(result.effect, (result.outcome - result.clean).mean("entity"))
    assert result.attrs["computed"] == "blocks above the intervention"
    blocks, whole = (
        sl.intervene(model, prompts, directions, positions=positions, reuse=reuse, **options)
        for reuse in ("blocks", "nothing")
    )
    assert whole.attrs["computed"] == "all blocks"
    np.testing.assert_array_equal(whole.outcome, blocks.outcome)  # bit for bit
    np.testing.assert_array_equal(whole.null, blocks.null)
    assert result.attrs["computed_positions"] == (
        "all positions" if positions == "all" else "from the first changed token on"
    )
    np.testing.assert_allclose(result.outcome, whole.outcome, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.null, whole.null, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.kl, whole.kl, rtol=1e-3, atol=1e-6)


def test_the_clean_loss_is_that_of_a_store(tmp_path: Path) -> None:
    model, prompts = bridge("llama"), table(6, answers=True)
    ds = sl.capture(model, prompts, tmp_path / "run.zarr", progress=False)
    result = sl.intervene(model, prompts, axis(), **QUICK)
    np.testing.assert_allclose(result.clean.values[0], ds.answer_loss.values[0], rtol=1e-6)
    assert result.entity.values.tolist() == ds.entity.values.tolist()


def test_a_dose_of_zero_and_a_direction_without_length_do_nothing() -> None:
    directions = axis(count=2)
    directions.data["vector"][0, 1] = np.nan
    result = sl.intervene(
        bridge("gpt2"),
        table(4, answers=True),
        directions,
        doses=(0.0, 2.0),
        random=2,
        unrelated=["ab", "cd"],
        progress=False,
    )
    assert (result.effect.sel(dose=0, direction="axis 0") == 0).all()
    assert np.isnan(result.effect.sel(layer=0, direction="axis 1")).all()
    assert np.isfinite(result.effect.sel(layer=2)).all()
    assert (result.kl.sel(dose=0, direction="axis 0") == 0).all()
    assert float(result.kl.sel(dose=2, direction="axis 0").min()) > 0


class StopError(Exception):
    pass


def test_an_interrupted_job_resumes_and_a_complete_one_is_opened(tmp_path: Path) -> None:
    model, prompts, path = bridge("llama"), table(12, answers=True), tmp_path / "effects.zarr"
    options = {**QUICK, "batch_size": 4}
    expected = sl.intervene(model, prompts, axis(), **options)
    reports: list[tuple[int, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        reports.append((done, total))
        if done > total / 2:
            raise StopError

    with pytest.raises(StopError):
        sl.intervene(model, prompts, axis(), path=path, **(options | {"progress": stop}))
    assert not path.exists()
    first = reports[-1]
    reports.clear()
    result = sl.intervene(
        model, prompts, axis(), path=path, **(options | {"progress": lambda *a: reports.append(a[1:])})
    )
    assert reports[0] == first  # what was done is not done again
    assert reports[-1][0] == reports[-1][1] == 24
    xr.testing.assert_equal(result, expected)
    assert [p.name for p in tmp_path.iterdir()] == ["effects.zarr"]
    again = sl.intervene(model, prompts, axis(), path=path, **(options | {"progress": stop}))
    xr.testing.assert_equal(again, expected)
    assert again.attrs["verdict"] == result.attrs["verdict"]
    with pytest.raises(MismatchError, match="other prompts, directions"):
        sl.intervene(model, prompts, axis(), path=path, **(options | {"doses": (1.0,)}))
    with pytest.raises(MismatchError, match="other weights"):
        sl.intervene(bridge("llama", 3), prompts, axis(), path=path, **options)


def test_every_stage_has_its_own_directions(tmp_path: Path) -> None:
    models = {"early": bridge("llama", 0), "late": bridge("llama", 1)}
    prompts = table(9, answers=True)
    ds = sl.capture(models, prompts, tmp_path / "run.zarr", progress=False)
    directions = sl.directions(sl.centroids(ds, by="group", progress=False), pairs=[(0, 1)]).sel(layer=1)
    both = sl.intervene(models, prompts, directions, **QUICK)
    assert both.stage.values.tolist() == ["early", "late"]
    for name, model in models.items():
        alone = sl.intervene(model, prompts, directions.sel(stage=name), **QUICK)
        np.testing.assert_array_equal(alone.outcome.values[0], both.outcome.sel(stage=name).values)
    with pytest.raises(MismatchError, match="other weights"):
        sl.intervene(models, prompts, directions.sel(stage="early"), **QUICK)
    moved = sl.intervene(models, prompts, directions.sel(stage="early"), other_stage=True, **QUICK)
    np.testing.assert_array_equal(moved.outcome.sel(stage="early"), both.outcome.sel(stage="early"))
    assert (moved.outcome.sel(stage="late") != both.outcome.sel(stage="late")).any()


def test_entities_that_made_the_directions_are_not_scored() -> None:
    prompts = table(6, answers=True)
    made = prompts.labels()["entity_id"][:2]
    directions = sl.directions(axis((1,)).vectors, site=SITE, entities=made)
    result = sl.intervene(bridge("gpt2"), prompts, directions, **QUICK)
    assert result.scored.values.tolist() == [False, False, True, True, True, True]
    expected = (result.outcome - result.clean).sel(entity=result.scored).mean("entity")
    np.testing.assert_allclose(result.effect, expected)
    assert "4 entities" in result.attrs["verdict"]
    assert result.attrs["entities_that_made_the_directions"] == 2


def test_patching_along_a_direction(tmp_path: Path) -> None:
    model, prompts = bridge("llama"), table(5, answers=True)
    ds = sl.capture({"a": model, "b": bridge("llama", 4)}, prompts, tmp_path / "run.zarr", progress=False)
    directions = axis((1,))
    options = {"kind": "patch", "positions": "last", "source": ds, "source_stage": "b", "progress": False, "random": 2}
    rows = [3, 0, 1, 2, 4]
    result = sl.intervene(model, prompts, directions, source_rows=rows, **options)
    assert result.dose.values.tolist() == [1.0]
    assert "kl" not in result
    tokens, losses = prompts.tokenize(tokenizer()), []
    for row in range(5):
        ids = torch.tensor([[*tokens.ids[row], *tokens.answer_ids[row]]])
        with sl.patch(model, ds, stage="b", rows=rows[row], positions="last", layers=[1], along=directions) as patching:
            patching.batch({"last": [len(tokens.ids[row]) - 1]})
            with torch.no_grad():
                logs = model(ids, attention_mask=torch.ones_like(ids)).log_softmax(-1)[0]
        n = len(tokens.ids[row])
        losses.append(-float(np.mean([float(logs[n - 1 + i, t]) for i, t in enumerate(tokens.answer_ids[row])])))
    np.testing.assert_allclose(result.outcome.squeeze().values, losses, rtol=2e-5)


def test_ablation_and_other_outcomes() -> None:
    model, prompts, directions = bridge("llama"), table(4, answers=True), axis((1,))
    frame = prompts.frame.drop(columns=["entity_start", "entity_end"]).assign(other_answer=" a Bob")
    prompts = sl.PromptTable.from_dataframe(frame)
    loss = sl.intervene(model, prompts, directions, "ablate", **QUICK)
    assert loss.dose.values.tolist() == [1.0]
    assert "slope" not in loss
    lengths = prompts.tokenize(tokenizer()).answer_lengths
    probability = sl.intervene(model, prompts, directions, "ablate", outcome="answer_probability", **QUICK)
    np.testing.assert_allclose(probability.outcome.squeeze(), np.exp(-loss.outcome.squeeze() * lengths), rtol=1e-6)
    difference = sl.intervene(model, prompts, directions, "ablate", outcome="answer_difference", **QUICK)
    swapped = sl.PromptTable.from_dataframe(frame.rename(columns={"answer": "other_answer", "other_answer": "answer"}))
    reverse = sl.intervene(model, swapped, directions, "ablate", outcome="answer_difference", **QUICK)
    np.testing.assert_allclose(difference.outcome, -reverse.outcome, rtol=1e-9)
    first = {"outcome": lambda logits: logits[:, 0, 7]}
    second = {"outcome": lambda logits, batch: logits[:, 0, 7] + 0 * torch.from_numpy(batch.rows)}
    one, two = (sl.intervene(model, prompts, directions, "ablate", **QUICK, **own) for own in (first, second))
    np.testing.assert_allclose(one.outcome, two.outcome)
    assert one.attrs["outcome"] == "<lambda>"


def test_a_model_of_the_users_and_a_site_outside_the_blocks() -> None:
    x = xr.DataArray(np.eye(12)[0], dims="d_model")
    options: dict[str, Any] = {"tokenizer": tokenizer(), "forward": run_two_layers, **QUICK}
    result = sl.intervene(TwoLayers(), table(4, answers=True), sl.directions(x, site="embed", name="first"), **options)
    assert result.outcome.dims == ("stage", "direction", "dose", "entity")
    assert result.null.dims == ("stage", "dose", "random")
    assert "layer" not in result.attrs["verdict"].split("(site embed")[1].split(")")[0]


def test_orthogonal_and_isotropic_nulls() -> None:
    model, prompts = bridge("gpt2"), table(6, answers=True)
    results = [
        sl.intervene(model, prompts, axis((1,)), null=kind, **QUICK)
        for kind in ("covariance", "isotropic", "orthogonal")
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].outcome, other.outcome)
        assert (results[0].null != other.null).all()
    assert "orthogonal to the directions" in results[2].attrs["verdict"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"kind": "ster"}, "did you mean 'steer'"),
    "doses": ({"doses": (1.0, float("inf"))}, "not a finite number"),
    "same doses": ({"doses": (1.0, 1.0)}, "names a dose twice"),
    "no doses": ({"doses": ()}, "is empty"),
    "outcome": ({"outcome": "answer_los"}, "did you mean 'answer_loss'"),
    "against": ({"outcome": "answer_difference", "against": "groop"}, "did you mean 'group'"),
    "positions": ({"positions": "lst"}, "unknown position 'lst'"),
    "long positions": ({"positions": "-40"}, "too short for position"),
    "random": ({"random": -1}, "random=-1"),
    "null": ({"null": "covarance"}, "did you mean 'covariance'"),
    "to": ({"to": 1.0}, "leave it out for kind='steer'"),
    "patch": ({"kind": "patch"}, "needs source="),
    "source": ({"source": xr.Dataset()}, "is for kind='patch'"),
    "table": ({"table": ["a"]}, "pass a PromptTable"),
    "directions": ({"directions": 3}, "takes a result of probe"),
    "path": ({"path": "effects.npz"}, "ends in .zarr"),
    "folder": ({"path": "nowhere/effects.zarr"}, "does not exist"),
    "function": ({"outcome": lambda logits: logits}, "return one number for each"),
    "unrelated": ({"unrelated": ["Hi"], "positions": "entity_last"}, "needs a column 'entity'"),
    "stages": ({"stages": []}, "stages is"),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return bridge("llama")


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_nothing_is_written(
    case: str, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    changes, message = BAD[case]
    arguments = {"stages": model, "table": table(4, answers=True), "directions": axis((1,)), "path": "effects.zarr"}
    with pytest.raises(InputError, match=message):
        sl.intervene(**(arguments | QUICK | changes))
    assert list(tmp_path.iterdir()) == []


def test_positions_where_all_prompts_are_equal_have_no_random_directions(model: Any) -> None:
    prompts = sl.PromptTable.from_dataframe(table(4, answers=True).frame[["prompt", "answer"]])
    directions = sl.directions(axis((1,)).data.vector, site="resid_pre").sel(layer=1)
    assert np.isfinite(sl.intervene(model, prompts, directions, positions="last", **QUICK).effect).all()
    x = xr.DataArray(np.eye(32)[:1], dims=("layer", "d_model"), coords={"layer": [0]})
    with pytest.raises(InputError, match="null='isotropic'"):
        sl.intervene(model, prompts, sl.directions(x, site="resid_pre"), positions="last", **QUICK)
