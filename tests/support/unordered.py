"""Stores whose only label has groups without an order, each with a mean of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from stratalens.store.format.schema import (
    answer_variable,
    output_variables,
    site_variable,
    statistic_variables,
)
from stratalens.store.writing.create import create
from stratalens.store.writing.writer import ActivationWriter
from support.stores import HOOK, write_others

HABITATS = ("forest", "desert", "lake", "mountain")


def unordered_store(
    path: str | Path,
    groups: Sequence[str] = HABITATS,
    stages: Sequence[str] = ("step0", "step60", "step600"),
    layers: int = 2,
    entities: int = 60,
    tokens: Sequence[str] = ("last",),
    d_model: int = 8,
    *,
    planted: float = 2.0,
    prompts_per_entity: int = 1,
    sizes: Mapping[str, int] | None = None,
    labels: Mapping[str, Any] | None = None,
    statistics: bool = True,
    seed: int = 0,
) -> Path:
    """Write a store with the label `habitat` and return its path.

    Args:
        path: the store.
        groups: names of the groups; the entities cycle over them.
        planted: distance of the group means from their centre at the last stage and layer, in units of the noise.
        sizes: number of entities of some groups, where they differ; their other entities go to the first group.
        labels: further label columns.
    """
    rng = np.random.default_rng(seed)
    subject = np.arange(entities * prompts_per_entity) // prompts_per_entity
    group = np.arange(entities) % len(groups)
    for name, size in (sizes or {}).items():
        index = list(groups).index(name)
        group[np.flatnonzero(group == index)[size:]] = 0
    code = group[subject]
    columns: dict[str, np.ndarray] = {
        "entity": np.array([f"r{i:06d}" for i in range(len(subject))], dtype=object),
        "entity_id": np.array([f"e{i:05d}" for i in subject], dtype=object),
        "entity_text": np.array([f"animal {i}" for i in subject], dtype=object),
        "prompt": np.array([f"Q: Where does animal {i} live?\nA:" for i in subject], dtype=object),
        "template": np.array([f"t{i % prompts_per_entity}" for i in range(len(subject))], dtype=object),
        "habitat": np.array([groups[i] for i in code], dtype=object),
    }
    columns |= {name: np.asarray(values) for name, values in (labels or {}).items()}
    site = site_variable("resid_post", ["d_model"], [d_model], "float32", HOOK)
    variables = [site]
    if statistics:
        variables += [*statistic_variables(site), *output_variables((10, 50, 90)), answer_variable()]
    provenance = {"model": "synthetic", "tokenizer_fingerprint": "t0", "token_ids_digest": "d0"}
    store = create(
        path,
        entities=columns,
        layers=list(range(layers)),
        tokens=tokens,
        variables=variables,
        provenance=provenance,
        block_size=None,
        compression="none",
    )
    means = rng.standard_normal((layers, len(groups), len(tokens), d_model))
    means *= planted / np.linalg.norm(means, axis=-1, keepdims=True)
    noise = rng.standard_normal((len(stages), layers, len(subject), len(tokens), d_model))
    with ActivationWriter(store) as writer:
        for order, name in enumerate(stages):
            with writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
                for block in stage.pending():
                    buffer, rows = stage.buffer(block), np.asarray(block.rows)
                    depth = (np.arange(layers) + 1)[:, None, None, None] / layers
                    strength = order / max(len(stages) - 1, 1) * depth
                    values = (noise[order][:, rows] + strength * means[:, code[rows]]).astype(np.float32)
                    buffer.write("resid_post", rows, values)
                    write_others(buffer, variables, site, values, rows, len(tokens), seed + order)
                    stage.submit(buffer)
    return Path(path)


def without_order(result: Any, names: Sequence[str] = HABITATS) -> Any:
    """Return a planted result with other names of its groups, which have no order."""
    keys = [key for key in ("group", "pair_first", "pair_second") if key in result.coords]
    old = sorted({str(g) for key in keys for g in np.atleast_1d(result[key].values)})
    new = dict(zip(old, names, strict=False))
    coords: dict[str, Any] = {}
    for key in keys:
        coords[key] = (result[key].dims, np.array([new[str(g)] for g in result[key].values], dtype=object))
    for key in ("pair", "pair_other"):
        if key in result.coords:
            pairs = [[new[g] for g in str(pair).split(" v ")] for pair in result[key].values]
            coords[key] = (key, np.array([" v ".join(pair) for pair in pairs], dtype=object))
    result = result.assign_coords(coords)
    return result.assign_attrs(ordered=False, **{k: "habitat" for k in ("by", "target") if k in result.attrs})


def multiclass_result(layers: int = 2, entities: int = 40, stages: Sequence[str] = ("step0", "step600")) -> xr.Dataset:
    """Return a result like that of `probe(pairs="multiclass")`: half of the rows right, all of the first group."""
    labels = np.array([HABITATS[i % 4] for i in range(entities)], dtype=object)
    right = np.broadcast_to((labels == HABITATS[0]) | (np.arange(entities) % 8 < 4), (len(stages), layers, entities))
    place = ("stage", "layer", "token", "pair")
    rows = right.reshape(len(stages), layers, 1, 1, entities).astype(np.int8)
    mean = rows.mean(-1)
    return xr.Dataset(
        {
            "accuracy": ((*place, "fold"), np.repeat(mean[..., None], 5, axis=-1)),
            "accuracy_mean": (place, mean),
            "accuracy_low": (place, mean - 0.1),
            "accuracy_high": (place, mean + 0.1),
            "right": ((*place, "entity"), rows),
            "tested": ((*place, "entity"), np.ones_like(rows)),
            "chance": ("pair", [0.25]),
            "score": (("stage", "layer", "token", "group", "entity"), np.zeros((len(stages), layers, 1, 4, entities))),
        },
        coords={
            "stage": np.array(list(stages), dtype=object),
            "stage_order": ("stage", np.arange(len(stages))),
            "layer": np.arange(layers),
            "token": np.array(["last"], dtype=object),
            "pair": np.array(["multiclass"], dtype=object),
            "pair_first": ("pair", np.array([HABITATS[0]], dtype=object)),
            "pair_second": ("pair", np.array([HABITATS[-1]], dtype=object)),
            "group": np.array(HABITATS, dtype=object),
            "habitat": ("entity", labels),
            "entity_id": ("entity", np.array([f"e{i}" for i in range(entities)], dtype=object)),
        },
        attrs={"site": "resid_post", "target": "habitat", "pairs": "multiclass", "ordered": False, "folds": 5},
    )
