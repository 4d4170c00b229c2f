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
