"""steer, ablate and patch equal hooks written by hand bit for bit, on every kind of model, and leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

import stratalens as sl
from stratalens.plugin.models.adapters import adapt
from stratalens.store.errors import InputError, MismatchError, NotRecordedError
from support.models import BRIDGES, ON_39, TwoLayers, bridge, hooked, table

KINDS = [*BRIDGES, "compatibility", "two layers", *(["hooked"] if ON_39 else [])]
IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def make(kind: str) -> Any:
    return TwoLayers() if kind == "two layers" else hooked(kind)


def run(model: Any) -> Tensor:
    with torch.no_grad():
        if isinstance(model, TwoLayers):
            return model(IDS, MASK)
        return model(IDS, attention_mask=MASK)


def by_hand(model: Any, hook: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Run with a hook of TransformerLens's own method."""

    def edit(value: Tensor, hook: Any) -> Tensor:
        return function(value)

    with torch.no_grad(), model.hooks(fwd_hooks=[(hook, edit)]):
        return run(model)


def site(model: Any) -> tuple[str, str, int]:
    """Site, hook at layer 1, and width."""
    if isinstance(model, TwoLayers):
        return "layers.{layer}.hook_state", "layers.1.hook_state", 12
    return "resid_post", "blocks.1.hook_resid_post", 32


def axes(model: Any, count: int = 1, layers: tuple[int, ...] = (1,), seed: int = 0) -> Any:
    name, _, width = site(model)
    x = np.random.default_rng(seed).normal(size=(count, width))
    return sl.directions(
        xr.DataArray(
            np.repeat(x[None], len(layers), 0),
            dims=("layer", "direction", "d_model"),
            coords={"layer": list(layers), "direction": [f"axis {i}" for i in range(count)]},
        ),
        site=name,
    )


def hook_counts(model: Any) -> dict[str, tuple[int, int]]:
    return {name: (len(p.fwd_hooks), len(p._forward_hooks)) for name, p in adapt(model).points.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_a_hook_written_by_hand(kind: str) -> None:
    model = make(kind)
    clean, counts = run(model), hook_counts(model)
    directions = axes(model)
    _, hook, _ = site(model)
    d = torch.from_numpy(directions.at(None, 1)[0])

    def last(value: Tensor) -> Tensor:
        value = value.clone()
        value[0, 4] = value[0, 4] + 3.0 * d
        value[1, 2] = value[1, 2] + 3.0 * d
        return value

    def set_to(value: Tensor) -> Tensor:
        return value - (value @ d)[..., None] * d + torch.tensor(0.5) * d

    cases = {
        "all": (sl.steer(model, directions, dose=3.0), lambda value: value + 3.0 * d),
        "out": (sl.ablate(model, directions), lambda value: value - (value @ d)[..., None] * d),
        "to": (sl.ablate(model, directions, to=0.5), set_to),
        "last": (sl.steer(model, directions, dose=3.0, positions="named"), last),
    }
    if kind != "two layers":  # it does not call its mask attention_mask
        cases["from the mask"] = (sl.steer(model, directions, dose=3.0, positions="last"), last)
    for name, (intervention, function) in cases.items():
        with intervention as steering:
            if name == "last":
                steering.batch({"named": [4, 2]})
            edited = run(model)
        expected = by_hand(model, hook, function)
        assert torch.equal(edited, expected), name
        assert not torch.equal(edited, clean), name
    assert torch.equal(run(model), clean)
    assert hook_counts(model) == counts


@pytest.mark.parametrize("kind", ["llama", "gpt2", *(["hooked"] if ON_39 else [])])
def test_generation_is_steered(kind: str) -> None:
    model = make(kind)
    directions = axes(model, layers=(0, 2))
    options = {"max_new_tokens": 6, "do_sample": False, "verbose": False, "stop_at_eos": False, "return_type": "tokens"}
    clean = model.generate(IDS[:1], **options)
    d = torch.from_numpy(directions.at(None, 0)[0])
    for positions, function in (
        ("all", lambda value, hook: value + 40.0 * d),
        ("last", lambda value, hook: torch.cat([value[:, :-1], value[:, -1:] + 40.0 * d], 1)),
    ):
        with sl.steer(model, directions, dose=40.0, positions=positions):
            steered = model.generate(IDS[:1], **options)
        hooks = [(f"blocks.{layer}.hook_resid_post", function) for layer in (0, 2)]
        with model.hooks(fwd_hooks=hooks):
            expected = model.generate(IDS[:1], **options)
        assert torch.equal(steered, expected)
        assert not torch.equal(steered, clean)
    assert torch.equal(model.generate(IDS[:1], **options), clean)


def test_left_and_right_padding_have_the_same_last_token() -> None:
    model = bridge("llama")
    seen: dict[str, Tensor] = {}
    ids, mask = IDS[1:2, :3], torch.ones(1, 3, dtype=torch.long)
    pad = torch.zeros(1, 2, dtype=torch.long)
    for side, pair in {"right": ((ids, pad), (mask, pad)), "left": ((pad, ids), (pad, mask))}.items():
        with sl.steer(model, axes(model), dose=5.0, positions=("last", "-2")), torch.no_grad():
            _, cache = model.run_with_cache(torch.cat(pair[0], 1), attention_mask=torch.cat(pair[1], 1))
        with torch.no_grad():
            _, clean = model.run_with_cache(torch.cat(pair[0], 1), attention_mask=torch.cat(pair[1], 1))
        moved = (cache["resid_post", 1] - clean["resid_post", 1]).norm(dim=-1)[0]
        seen[side] = moved > 1
    assert seen["right"].tolist() == [False, True, True, False, False]
    assert seen["left"].tolist() == [False, False, False, True, True]


def test_several_directions() -> None:
    model = bridge("gpt2")
    directions = axes(model, 3)
    d = torch.from_numpy(directions.at(None, 1)).double()
    x: list[Tensor] = []
    model.blocks[1].hook_out.add_hook(lambda value, hook: x.append(value.clone()))
    with sl.ablate(model, directions):
        run(model)
        model.blocks[1].hook_out.add_hook(lambda value, hook: x.append(value.clone()))
        run(model)
    before, after = x[0].double(), x[-1].double()
    assert float((after @ d.T).abs().max()) < 1e-4
    inside = torch.linalg.lstsq(d.T, (before - after).reshape(-1, 32).T).solution  # only their span was removed
    torch.testing.assert_close((d.T @ inside).T, (before - after).reshape(-1, 32), atol=1e-4, rtol=1e-4)
    with sl.ablate(model, directions, to=[1.0, 2.0, 3.0]):
        model.blocks[1].hook_out.add_hook(lambda value, hook: x.append(value.clone()))
        run(model)
    torch.testing.assert_close(
        x[-1].double() @ d.T, torch.tensor([1.0, 2.0, 3.0]).double().expand(2, 5, 3), atol=1e-4, rtol=1e-4
    )
    model.reset_hooks()
    with sl.steer(model, directions, dose={"axis 2": 2.0}):
        one = run(model)
    with sl.steer(model, directions.sel(direction="axis 2"), dose=2.0):
        torch.testing.assert_close(one, run(model))
    twice = sl.directions(
        xr.DataArray([[1.0] * 32, [2.0] * 32], dims=("direction", "d_model")).expand_dims(layer=[1]), site="resid_post"
    )
    with pytest.raises(InputError, match="linearly dependent"):
        sl.ablate(model, twice)


def test_hooks_are_gone_after_an_exception_and_others_stay() -> None:
    model = bridge("llama")
    run(model)  # the first pass of a bridge adds hooks of its own
    fired: list[str] = []
    model.blocks[1].hook_out.add_hook(lambda value, hook: fired.append("mine"))
    counts = hook_counts(model)
    modules = [len(m._forward_pre_hooks) for m in model.original_model.modules()]
    intervention = sl.steer(model, axes(model), 2.0, positions="last")
    with pytest.raises(RuntimeError, match="mine"), intervention:
        _run_and_raise(model)
    assert hook_counts(model) == counts
    assert [len(m._forward_pre_hooks) for m in model.original_model.modules()] == modules
    run(model)
    assert fired == ["mine"] * 2


def _run_and_raise(model: Any) -> None:
    run(model)
    raise RuntimeError("mine")


def test_contexts_nest_and_a_capture_inside_records_the_edited_activations(tmp_path: Path) -> None:
    model = bridge("llama")
    prompts, directions = table(6), axes(model)
    d = directions.at(None, 1)[0]
    options: dict[str, Any] = {"statistics": False, "progress": False, "check": False}
    clean = sl.capture(model, prompts, tmp_path / "a.zarr", **options)
    with sl.steer(model, directions, 2.0), sl.steer(model, directions, 1.0):
        edited = sl.capture(model, prompts, tmp_path / "b.zarr", **options)
    moved = (edited.resid_post - clean.resid_post).values[0]
    np.testing.assert_array_equal(moved[0], 0)
    np.testing.assert_allclose(moved[1, :, 0], np.broadcast_to(3 * d, moved[1, :, 0].shape), atol=1e-5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any, xr.Dataset]:
    models = {"early": bridge("llama", 0), "late": bridge("llama", 1)}
    prompts = table(8)
    path = tmp_path_factory.mktemp("store") / "run.zarr"
    return models, prompts, sl.capture(models, prompts, path, positions=("last", "entity_last"), progress=False)


def test_directions_find_the_stage_of_the_model(store: tuple[dict[str, Any], Any, xr.Dataset]) -> None:
    models, _, ds = store
    directions = sl.directions(sl.centroids(ds, by="group", progress=False).sel(token="last"), pairs=[(0, 1)])
    for name, model in models.items():
        with sl.steer(model, directions.sel(layer=1), 2.0):
            edited = run(model)
        d = torch.from_numpy(directions.at(name, 1)[0])
        assert torch.equal(edited, by_hand(model, "blocks.1.hook_resid_post", lambda value, d=d: value + 2.0 * d))
    with pytest.raises(MismatchError, match="has other weights"):
        sl.steer(models["late"], directions.sel(stage="early"))
    with sl.steer(models["late"], directions.sel(stage="early", layer=1), 2.0, other_stage=True):
        edited = run(models["late"])
    d = torch.from_numpy(directions.at("early", 1)[0])
    assert torch.equal(edited, by_hand(models["late"], "blocks.1.hook_resid_post", lambda value: value + 2.0 * d))
    with pytest.raises(InputError, match="choose one"):
        sl.steer(bridge("llama", 2), directions, other_stage=True)
    with pytest.raises(MismatchError, match="has other weights"):
        sl.steer(bridge("llama", 2), directions)
    with pytest.raises(MismatchError, match="32 features along d_model, this model has 16"):
        sl.steer(bridge("llama", 2, hidden_size=16), directions, other_stage=True)


def test_ablation_to_the_mean_of_a_group(store: tuple[dict[str, Any], Any, xr.Dataset]) -> None:
    models, _, ds = store
    means = sl.centroids(ds, by="group", progress=False).sel(token="last")
    directions = sl.directions(means, pairs=[(0, 1)]).sel(layer=[1])
    d = torch.from_numpy(directions.at("late", 1)[0])
    target = d @ torch.from_numpy(means.centroid.sel(stage="late", layer=1, group=2).values)
    with sl.ablate(models["late"], directions, to=means.sel(group=2)):
        edited = run(models["late"])
    expected = by_hand(
        models["late"], "blocks.1.hook_resid_post", lambda value: value - (value @ d)[..., None] * d + target * d
    )
    torch.testing.assert_close(edited, expected, atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="several vectors at one place"):
        sl.ablate(models["late"], directions, to=means)


def test_patching_recorded_activations(store: tuple[dict[str, Any], Any, xr.Dataset]) -> None:
    models, prompts, ds = store
    model = models["late"]
    tokens = prompts.tokenize(model.tokenizer)
    ids, mask = (torch.from_numpy(a) for a in tokens.batch([2, 5], int(tokens.lengths[[2, 5]].max())))
    end = tokens.lengths[[2, 5]] - 1
    values = torch.from_numpy(ds.resid_post.sel(stage="early", layer=1).values[[7, 0]])

    def call() -> Tensor:
        with torch.no_grad():
            return model(ids, attention_mask=mask)

    def hand(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[0, end[0]], value[1, end[1]] = values[0, 0], values[1, 0]
        return value

    options: dict[str, Any] = {"stage": "early", "rows": [7, 0], "layers": [1]}
    with sl.patch(model, ds, **options):
        edited = call()
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", hand)]):
        assert torch.equal(edited, call())
    directions = axes(model, 2)
    q = torch.linalg.qr(torch.from_numpy(directions.at(None, 1)).T.double())[0].float()

    def interchange(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        for row in range(2):
            x = value[row, end[row]]
            value[row, end[row]] = x + (values[row, 0] - x) @ q @ q.T
        return value

    with sl.patch(model, ds, along=directions, **options):
        edited = call()
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", interchange)]):
        torch.testing.assert_close(edited, call(), atol=1e-5, rtol=1e-5)
    with sl.patch(model, ds, stage="late", rows=[2, 5]):  # its own activations change nothing
        torch.testing.assert_close(call()[0, end[0]], _clean(model, ids, mask)[0, end[0]], atol=1e-4, rtol=1e-4)
    with (
        sl.patch(model, ds, positions="entity_last", **options) as patching,
        pytest.raises(InputError, match="announce"),
    ):
        call()
    with sl.patch(model, ds, positions="entity_last", **options) as patching:
        patching.batch({"entity_last": [3, -1]})
        assert not torch.equal(call()[0], _clean(model, ids, mask)[0])
        assert torch.equal(call()[1], _clean(model, ids, mask)[1])


def _clean(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    hooks = {name: list(p._forward_hooks.items()) for name, p in adapt(model).points.items()}
    for point in adapt(model).points.values():
        point._forward_hooks.clear()
    try:
        with torch.no_grad():
            return model(ids, attention_mask=mask)
    finally:
        for name, point in adapt(model).points.items():
            point._forward_hooks.update(hooks[name])


BAD: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "dose": (lambda m, d: sl.steer(m, d, float("nan")), "dose=nan is not a finite number"),
    "dose text": (lambda m, d: sl.steer(m, d, "two"), "dose='two' is not a finite number"),  # type: ignore[arg-type]
    "doses": (lambda m, d: sl.steer(m, d, [1.0, 2.0]), "2 doses for 1 directions"),
    "dose name": (lambda m, d: sl.steer(m, d, {"axis": 1.0}), "did you mean 'axis 0'"),
    "positions": (lambda m, d: sl.steer(m, d, positions=()), "positions is empty"),
    "positions all": (lambda m, d: sl.steer(m, d, positions=("all", "last")), "must be the only position"),
    "model": (lambda m, d: sl.steer(m.original_model, d), "no TransformerLens hooks"),
    "directions": (lambda m, d: sl.steer(m, [1.0]), "takes a result of probe"),  # type: ignore[arg-type]
    "patch all": (lambda m, d: sl.patch(m, xr.Dataset(), positions="all"), "cannot be patched"),
    "patch site": (lambda m, d: sl.patch(m, xr.Dataset()), "is not in this store"),
    "to": (lambda m, d: sl.ablate(m, d, to=[1.0, 2.0]), "2 numbers for 1 directions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    model = bridge("llama")
    call, message = BAD[case]
    with pytest.raises(InputError, match=message):
        call(model, axes(model))


def test_bad_places_are_named(store: tuple[dict[str, Any], Any, xr.Dataset]) -> None:
    models, _, ds = store
    model = models["late"]
    x = xr.DataArray(np.ones(32), dims="d_model")
    for where, site_name, message in (
        (x.expand_dims(layer=[7]), "resid_post", "of layer 7, but .* blocks 0 to 2"),
        (x.expand_dims(layer=[1]), "resid_pst", "did you mean 'resid_post'"),
        (x, "resid_post", "have no layer"),
        (x.expand_dims(layer=[1]), "embed", "outside the blocks"),
        (x.expand_dims(layer=[1]) * 0, "resid_post", "has length zero at layer 1"),
        (xr.DataArray(np.ones((1, 48)), dims=("layer", "d_mlp"), coords={"layer": [1]}), "resid_post", "48 features"),
    ):
        with pytest.raises(InputError, match=message):
            sl.steer(model, sl.directions(where, site=site_name))
    for options, message in (
        ({"stage": "lat"}, "did you mean 'late'"),
        ({}, "choose one: stage='late'"),
        ({"stage": "late", "rows": 8}, "rows 0 to 7"),
        ({"stage": "late", "rows": "r999999"}, "not in the store"),
        ({"stage": "late", "positions": "-2"}, "was not recorded"),
        ({"stage": "late", "layers": [4]}, "layer 4 was not recorded"),
    ):
        with pytest.raises(InputError, match=message):
            sl.patch(model, ds, **options)
    gone = ds.assign(recorded=ds.recorded.load() & (ds.stage != "late"))
    with pytest.raises(NotRecordedError, match="never recorded"):
        sl.patch(model, gone, stage="late")


def test_a_model_in_training_mode_is_refused() -> None:
    model = bridge("gpt2")
    model.original_model.train()
    with pytest.raises(InputError, match=r"training mode.*model\.eval\(\)"):
        sl.steer(model, axes(model))
    model.original_model.eval()
    with sl.steer(model, axes(model)):
        run(model)


def test_a_dose_that_overflows_is_named() -> None:
    model = bridge("llama", dtype=torch.float16)
    with sl.steer(model, axes(model), dose=1e6), pytest.raises(InputError, match=r"dose 1e\+06 .* use a smaller dose"):
        run(model)
    assert hook_counts(model) == hook_counts(bridge("llama", dtype=torch.float16))


def test_texts_without_a_mask_have_no_last_token() -> None:
    model = bridge("llama")
    texts = ["Ann", "Who is Bob?"]
    for call in (model, model.run_with_hooks):
        with (
            sl.steer(model, axes(model), 5.0, positions="last"),
            pytest.raises(InputError, match="token ids with attention_mask"),
        ):
            call(texts)
    ids = model.to_tokens(texts[1])
    with sl.steer(model, axes(model), 5.0, positions="last"), torch.no_grad():
        assert torch.equal(model(texts[1]), model(ids))
