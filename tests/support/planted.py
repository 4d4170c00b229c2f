"""Datasets in memory with a planted structure, for tests of the analyses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr


def planted(
    *,
    stages: int = 3,
    layers: int = 2,
    groups: int = 4,
    per_group: int = 40,
    rows_per_entity: int = 1,
    tokens: Sequence[str] = ("entity_last", "last"),
    d: int = 16,
    effect: float = 1.0,
    entity_noise: float = 0.0,
    seed: int = 0,
    chunked: bool = True,
    dtype: str = "float32",
) -> xr.Dataset:
    """Create activations in which group g of the last stage and layer is at g * effect along one direction.

    The effect grows from zero (first stage) to `effect` (last stage), and in the same way over layers; it is the same
    at every token. The attribute `direction` of resid_post is the direction. Groups are called s1, s2, ... and stages
    s0 (untrained), s1, ..., so that stage_order orders the groups. The rows of an entity share an offset of size
    `entity_noise`.
    """
    rng = np.random.default_rng(seed)
    entities = groups * per_group
    n = entities * rows_per_entity
    label_of = rng.permutation(np.repeat(np.arange(groups), per_group))
    entity = rng.permutation(np.repeat(np.arange(entities), rows_per_entity))
    group = label_of[entity]
    direction = rng.standard_normal(d)
    direction /= np.linalg.norm(direction)
    offsets = entity_noise * rng.standard_normal((entities, d))
    x = rng.standard_normal((stages, layers, n, len(tokens), d))
    x += offsets[entity][None, None, :, None, :]
    strength = effect * np.linspace(0, 1, stages)[:, None] * np.linspace(0, 1, layers + 1)[None, 1:]
    x += strength[:, :, None, None, None] * group[None, None, :, None, None] * direction
    names = np.array([f"s{g + 1}" for g in range(groups)], object)
    # Stage names up to the number of groups, the last one recorded is the last one trained.
    order = np.unique(np.linspace(0, groups, stages).round().astype(int)) if stages > 1 else np.array([groups])
    ds = xr.Dataset(
        {
            "resid_post": (
                ("stage", "layer", "entity", "token", "d_model"),
                x.astype(dtype),
                {"hook": "blocks.{layer}.hook_resid_post", "direction": direction.tolist()},
            ),
            "recorded": (("stage", "entity"), np.ones((stages, n), bool)),
            "exposure": (("stage", "entity"), (order[:, None] - (group + 1)[None, :]).astype(float)),
        },
        coords={
            "stage": np.array([f"s{o}" for o in order], object),
            "stage_order": ("stage", order),
            "layer": np.arange(layers),
            "entity": np.array([f"r{i:05d}" for i in range(n)], object),
            "token": np.array(list(tokens), object),
            "entity_id": ("entity", np.array([f"e{i:04d}" for i in entity], object)),
            "trained_stage": ("entity", names[group]),
            "template": ("entity", np.array(["who", "what"], object)[rng.integers(0, 2, n)]),
        },
    )
    return ds.chunk({"stage": 1, "layer": 1, "entity": max(1, n // 3)}) if chunked else ds


def with_statistics(ds: xr.Dataset, seed: int = 0) -> xr.Dataset:
    """Add the L2 norm, a loss that depends on the group (defined at `last` only) and a noise statistic."""
    rng = np.random.default_rng(seed)
    place = ("stage", "entity", "token")
    shape = tuple(ds.sizes[d] for d in place)
    group = np.unique(ds.trained_stage.values, return_inverse=True)[1]
    loss = rng.normal(size=shape) + 1.5 * group[None, :, None]
    loss[:, :, 0] = np.nan
    return ds.assign(
        resid_post_l2=np.sqrt((ds.resid_post**2).sum("d_model")),
        loss=(place, loss),
        entropy=(place, rng.normal(size=shape)),
    )


CONFOUNDS = ("shift", "square", "step", "spread", "product", "norm")


def confounded(
    kind: str, per_class: int = 300, *, real: float = 0.0, noise: int = 2, d: int = 16, seed: int = 0
) -> xr.Dataset:
    """Create two groups of label `age` whose activations differ only through their statistics.

    Given the statistics, activations and label are independent, except for `real` standard deviations along the
    second feature. The statistics are `loss` (and `entropy` for the product of two) and `noise` columns n0, n1, ...
    that differ between no groups.
    """
    rng = np.random.default_rng([seed, CONFOUNDS.index(kind)])
    n = 2 * per_class
    y = np.repeat([0, 1], per_class)
    x = rng.normal(size=(n, d))
    s = rng.normal(size=n) + 0.93 * y
    statistics = {"loss": s}
    if kind == "shift":
        x[:, 0] += s
    elif kind == "square":
        x[:, 0] += 0.7 * s**2
    elif kind == "step":
        x[:, 0] += 2.0 * (s > 0.5)
    elif kind == "spread":
        statistics["loss"] = s = (s - 0.93 * y) * np.where(y, 2.0, 1.0)
        x[:, 0] += 0.8 * s**2
    elif kind == "product":
        a, b = rng.normal(size=(2, 6 * n))
        drawn = rng.random(6 * n) < 1 / (1 + np.exp(-1.3 * a * b))
        rows = np.concatenate([np.flatnonzero(drawn == side)[:per_class] for side in (False, True)])
        statistics = {"loss": a[rows], "entropy": b[rows]}
        x[:, 0] += 1.2 * a[rows] * b[rows]
    else:
        statistics["loss"] = size = np.exp(0.35 * s)
        x = size[:, None] * (2 * np.eye(d)[0] + 0.5 * x)
    x[:, 1] += real * y
    statistics |= {f"n{i}": rng.normal(size=n) for i in range(noise)}
    columns = {name: (("entity", "token"), values[:, None]) for name, values in statistics.items()}
    return xr.Dataset(
        {"resid_post": (("entity", "token", "d_model"), x[:, None].astype("f4")), **columns},
        coords={"age": ("entity", np.array(["new", "old"], object)[1 - y])},
        attrs={"statistics": list(statistics)},
    )
