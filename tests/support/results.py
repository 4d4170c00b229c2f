"""Results with planted numbers, with the dims and variables of real results, for tests of plots and report.

The planted order grows with the layer, the number of trained stages and the distance between two groups, so that every
plot has known values. `planted_results()` returns all results together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.directions.effects import summarise_effects

STAGES = ("base", "s1", "s2", "s3", "s4", "s5", "s6")
TOKENS = ("entity_last", "last")


def _strings(values: Sequence[str]) -> np.ndarray:
    return np.array(list(values), dtype=object)


def place_coords(
    stages: Sequence[str], layers: int, tokens: Sequence[str]
) -> dict[str, tuple[str, np.ndarray] | np.ndarray]:
    return {
        "stage": _strings(stages),
        "stage_order": ("stage", np.arange(len(stages))),
        "layer": np.arange(layers),
        "token": _strings(tokens),
    }


def _groups(stages: Sequence[str]) -> list[str]:
    return list(stages[1:]) if len(stages) > 1 else ["g1", "g2", "g3"]


def strength(stages: Sequence[str], layers: int, tokens: Sequence[str]) -> np.ndarray:
    """Strength of the planted order at (stage, layer, token), from 0 to 1; 0 before the first stage."""
    trained = np.linspace(0, 1, len(stages)) if len(stages) > 1 else np.ones(1)
    depth = (np.arange(1, layers + 1) / layers) ** 2
    place = np.linspace(0.4, 1.0, len(tokens)) if len(tokens) > 1 else np.ones(1)
    return trained[:, None, None] * depth[None, :, None] * place[None, None, :]


def with_interval(
    name: str, value: np.ndarray, dims: Sequence[str], half: float, null: float, lowest: float, highest: float
) -> dict[str, tuple[Sequence[str], np.ndarray]]:
    far = np.abs(value - null) / half
    return {
        name: (dims, value),
        f"{name}_low": (dims, np.clip(value - half, lowest, highest)),
        f"{name}_high": (dims, np.clip(value + half, lowest, highest)),
        f"{name}_null": (dims, np.full(value.shape, null)),
        f"{name}_p": (dims, np.clip(np.exp(-(far**1.5)), 1 / 1001, 1.0)),
    }


def projection(
    stages: Sequence[str] = STAGES, layers: int = 13, tokens: Sequence[str] = TOKENS, seed: int = 0
) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    groups = _groups(stages)
    s = strength(stages, layers, tokens)
    line = np.linspace(0, 1, len(groups)) ** 1.5
    bow = np.sin(np.pi * line) * 0.3
    coordinate = s[..., None, None] * np.stack([line * 4, bow], -1)
    coordinate = coordinate + rng.normal(0, 0.12, coordinate.shape)
    half = np.full(coordinate.shape, 0.25)
    place = ("stage", "layer", "token")
    variables = {
        "coordinate": ((*place, "group", "component"), coordinate),
        "coordinate_low": ((*place, "group", "component"), coordinate - half),
        "coordinate_high": ((*place, "group", "component"), coordinate + half),
        **with_interval("r2", 0.2 + 0.75 * s, place, 0.1, 0.2, 0.0, 1.0),
        **with_interval("rank_correlation", s, place, 0.25, 0.0, -1.0, 1.0),
        **with_interval("exact_order", s**3, place, 0.1, 0.01, 0.0, 1.0),
    }
    coords = {**place_coords(stages, layers, tokens), "group": _strings(groups)}
    coords["component"] = _strings(["w1", "w2"])
    attrs = {"site": "resid_post", "by": "trained_stage", "permutations": 1000, "holdout": 0.5, "seed": seed}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def probes(
    stages: Sequence[str] = STAGES,
    layers: int = 13,
    tokens: Sequence[str] = TOKENS,
    folds: int = 5,
    width: int = 16,
    scale: float = 1.0,
    seed: int = 0,
    null: bool = True,
) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    groups = _groups(stages)
    pairs = list(combinations(range(len(groups)), 2))
    s = strength(stages, layers, tokens)
    gap = np.array([((j - i) / max(len(groups) - 1, 1)) * (0.6 + 0.4 * j / len(groups)) for i, j in pairs])
    mean = 0.5 + scale * 0.47 * s[..., None] * gap
    place = ("stage", "layer", "token", "pair")
    accuracy = np.clip(mean[..., None] + rng.normal(0, 0.025, (*mean.shape, folds)), 0, 1)
    direction = rng.normal(size=(len(groups), width))
    coef = np.stack([direction[j] - direction[i] for i, j in pairs])
    coef = coef * s[..., None, None] + rng.normal(0, 0.3, (*mean.shape, width))
    interval = with_interval("accuracy", accuracy.mean(-1), place, 0.05, 0.5, 0.0, 1.0)
    variables: dict[str, object] = {
        **(interval if null else {k: v for k, v in interval.items() if k[9:] in ("_low", "_high")}),
        "accuracy": ((*place, "fold"), accuracy),
        "auc": ((*place, "fold"), np.clip(accuracy + 0.03, 0, 1)),
        "coef": ((*place, "d_model"), coef),
        "intercept": (place, np.zeros(mean.shape)),
        "converged": (place, np.ones(mean.shape, dtype=bool)),
    }
    coords = {
        **place_coords(stages, layers, tokens),
        "pair": _strings([f"{groups[i]} v {groups[j]}" for i, j in pairs]),
        "pair_first": ("pair", _strings([groups[i] for i, _ in pairs])),
        "pair_second": ("pair", _strings([groups[j] for _, j in pairs])),
        "fold": np.arange(folds),
    }
    attrs = {"site": "resid_post", "target": "trained_stage", "method": "logistic", "C": 0.1, "folds": folds}
    return xr.Dataset(variables, coords=coords, attrs=attrs)


def cosines(probe: xr.Dataset) -> xr.DataArray:
    unit = probe["coef"] / np.sqrt((probe["coef"] ** 2).sum("d_model"))
    other = unit.drop_vars(["pair_first", "pair_second"]).rename(pair="pair_other")
    result = xr.dot(unit, other, dim="d_model").rename("cosine")
    result.attrs = {"site": probe.attrs["site"], "over": "pair"}
    return result


def matched(probe: xr.Dataset, repeats: int = 5) -> xr.Dataset:
    rng = np.random.default_rng(1)
    mean = probe["accuracy"].mean("fold")
    cut = xr.DataArray(
        [1.0, 0.8, 0.85], dims="sample", coords={"sample": _strings(["all", "matched", "random_subsample"])}
    )
    accuracy = ((mean - 0.5) * cut + 0.5).expand_dims(repeat=np.arange(repeats))
    accuracy = accuracy + rng.normal(0, 0.02, accuracy.shape)
    accuracy = accuracy.transpose("stage", "layer", "token", "pair", "repeat", "sample")
    statistics = _strings(["resid_post_l2", "loss", "entropy"])
    balance = xr.DataArray(
        np.array([[0.6, 0.02], [0.3, 0.01], [0.2, 0.03]]),
        dims=("statistic", "balance_at"),
        coords={"statistic": statistics, "balance_at": _strings(["before", "after"])},
    )
    return xr.Dataset({"accuracy": accuracy, "balance": balance}, attrs={**probe.attrs, "holdout": 0.2})


def centroids(
    stages: Sequence[str] = STAGES, layers: int = 13, tokens: Sequence[str] = TOKENS, width: int = 16
) -> xr.Dataset:
    rng = np.random.default_rng(2)
    groups = _groups(stages)
    base = rng.normal(size=(1, layers, len(tokens), len(groups), width))
    steps = rng.normal(0, 0.1, (len(stages), layers, len(tokens), len(groups), width))
    for g in range(len(groups)):
        if g + 1 < len(stages):
            steps[g + 1, :, :, g] *= 4
    values = base + np.cumsum(steps, axis=0)
    return xr.Dataset(
        {
            "centroid": (("stage", "layer", "token", "group", "d_model"), values),
            "count": (("stage", "group"), np.full((len(stages), len(groups)), 300)),
        },
        coords={**place_coords(stages, layers, tokens), "group": _strings(groups)},
        attrs={"site": "resid_post", "by": "trained_stage"},
    )


def generalise(probe: xr.Dataset) -> xr.DataArray:
    groups = list(dict.fromkeys([*probe["pair_first"].values, *probe["pair_second"].values]))
    groups = sorted(groups)
    coordinate = np.linspace(-1, 1, len(groups))
    size = (probe["accuracy"].mean("fold") - 0.5) * 2
    values = size.values[..., None] * coordinate
    coords = {k: v for k, v in size.coords.items() if k not in ("fold",)}
    return xr.DataArray(
        values,
        dims=(*size.dims, "group"),
        coords={**coords, "group": _strings(groups)},
        name="score",
        attrs={"site": "resid_post"},
    )


def recorded_store(
    stages: Sequence[str] = STAGES, layers: int = 3, tokens: Sequence[str] = TOKENS, per_group: int = 20
) -> xr.Dataset:
    """Create data as from open_store: per-row statistics, labels and recency (activations of width 8)."""
    rng = np.random.default_rng(3)
    groups = _groups(stages)
    label = np.repeat(np.array(groups, dtype=object), per_group)
    shift = np.repeat(np.arange(len(groups)), per_group) * 0.2
    shape = (len(stages), layers, len(label), len(tokens))
    dims = ("stage", "layer", "entity", "token")
    out = (len(stages), len(label), len(tokens))
    activations = rng.normal(size=(*shape, 8)).astype(np.float32)
    activations[..., 0] += 5 * shift[None, None, :, None]
    units = {"units": "activation units"}
    return xr.Dataset(
        {
            "resid_post": ((*dims, "d_model"), activations),
            "resid_post_l2": (dims, rng.normal(36, 1, shape) + shift[None, None, :, None], units),
            "resid_post_mean": (dims, rng.normal(0, 0.1, shape), units),
            "loss": (("stage", "entity", "token"), rng.gamma(4, 0.5, out), {"units": "nats"}),
            "entropy": (("stage", "entity", "token"), rng.gamma(3, 0.5, out), {"units": "nats"}),
            "answer_loss": (("stage", "entity"), rng.gamma(2, 0.5, out[:2]), {"units": "nats"}),
            "recorded": (("stage", "entity"), np.ones(out[:2], dtype=bool)),
            "exposure": (
                ("stage", "entity"),
                np.arange(len(stages))[:, None] - (1 + np.repeat(np.arange(len(groups)), per_group))[None],
            ),
        },
        coords={
            **place_coords(stages, layers, tokens),
            "entity": _strings([f"r{i:06d}" for i in range(len(label))]),
            "entity_id": ("entity", _strings([f"<|e{i}|>" for i in range(len(label))])),
            "prompt": ("entity", _strings([f"Q: Who is e{i}?\nA:" for i in range(len(label))])),
            "trained_stage": ("entity", label),
            "template": ("entity", _strings(["who", "mean"] * (len(label) // 2))),
        },
        attrs={"site": "resid_post"},
    )


def effects(
    stages: Sequence[str] = ("s3",), layers: int = 4, doses: Sequence[float] = (-2.0, 1.0, 2.0), random: int = 20
) -> xr.Dataset:
    """Effects as of `intervene`: "acts" changes the outcome by .5 for each unit of dose in layer 2, "idle" nowhere."""
    rng, rows, dose = np.random.default_rng(0), 12, np.array(doses)
    size = np.zeros((len(stages), layers, 2))
    size[:, min(2, layers - 1), 0] = 0.5
    noise = 0.01 * rng.standard_normal((len(stages), layers, 2 + random, len(dose), rows)) * dose[:, None]
    clean = rng.normal(3, 1, (len(stages), rows))
    values = clean[:, None, None, None] + noise
    values[:, :, :2] += size[..., None, None] * dose[:, None]
    outcome = xr.DataArray(
        values[:, :, :2],
        dims=("stage", "layer", "direction", "dose", "entity"),
        coords={"stage": _strings(stages), "layer": range(layers), "direction": ["acts", "idle"], "dose": dose},
    )
    attrs = {"kind": "steer" if len(dose) > 1 else "ablate", "outcome": "answer_loss", "unit": "nats per token"}
    attrs |= {"site": "resid_post", "positions": "last", "null_kind": "of the same length"}
    before = xr.DataArray(clean, dims=("stage", "entity"))
    return summarise_effects(outcome, before, values[:, :, 2:], units=np.arange(rows), attrs=attrs)


def losses(stages: Sequence[str] = STAGES, steps: int = 40) -> pd.DataFrame:
    trained = _groups(stages)
    return pd.DataFrame(
        {
            "stage": np.repeat(np.array(trained, dtype=object), steps),
            "step": np.arange(steps * len(trained)),
            "loss": np.tile(3 * np.exp(-np.arange(steps) / 12) + 0.4, len(trained)),
        }
    )


def store_info(stages: Sequence[str] = STAGES, layers: int = 13, tokens: Sequence[str] = TOKENS) -> dict:
    return {
        "model": "SmolLM2-135M-Instruct, first 13 layers",
        "path": "run.zarr",
        "dims": {"stage": len(stages), "layer": layers, "entity": 7200, "token": len(tokens), "d_model": 576},
        "sites": {"resid_post": {"dtype": "float32", "hook": "blocks.{layer}.hook_out"}},
        "stages": list(stages),
        "tokens": list(tokens),
        "bytes": 2_100_000_000,
        "completeness": {stage: {"resid_post": 1.0, "ln_final": 1.0} for stage in stages},
        "versions": {"stratalens": "0.1.0", "transformer_lens": "4.3.0", "torch": "2.13.0"},
        "machine": "2 x x86_64, no GPU",
        "date": "2026-01-02 03:04 UTC",
    }


def planted_results(
    stages: Sequence[str] = STAGES, layers: int = 13, tokens: Sequence[str] = TOKENS, scale: float = 1.0
) -> dict[str, object]:
    probe = probes(stages, layers, tokens, scale=scale)
    return {
        "projection": projection(stages, layers, tokens),
        "probes": probe,
        "cosines": cosines(probe),
        "centroids": centroids(stages, layers, tokens),
        "statistics_probe": probes(stages, layers, tokens, scale=scale * 0.3, seed=4).drop_vars("coef"),
        "matched_probe": matched(probe),
        "residual_probe": probes(stages, layers, tokens, scale=scale * 0.7, seed=5),
        "generalise": generalise(probe),
        "losses": losses(stages),
        "store": recorded_store(stages, layers, tokens),
    }
