"""Synthetic stores with a planted, seeded structure, written by the real writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stratalens.store.format.schema import (
    Variable,
    answer_variable,
    output_variables,
    site_variable,
    statistic_variables,
)
from stratalens.store.writing.create import create
from stratalens.store.writing.writer import ActivationWriter

HOOK = "blocks.{layer}.hook_out"


def to_storage(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return values as the writer takes them: bfloat16 as bits, rounded to nearest even; int8 as float32."""
    if dtype == "int8":
        return values.astype(np.float32)
    if dtype != "bfloat16":
        return values.astype(dtype)
    import ml_dtypes

    return values.astype(ml_dtypes.bfloat16).view(np.uint16)


def stage_names(stages: int | Sequence[str]) -> list[str]:
    """Return stage names; a number n gives untrained, s1 .. s(n-1)."""
    return ["untrained", *(f"s{i}" for i in range(1, stages))] if isinstance(stages, int) else list(stages)


def make_labels(
    entities: int, stages: Sequence[str], prompts_per_entity: int = 1, labels: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Return label columns; `trained_stage` cycles over the trained stages, so groups have equal sizes."""
    subject = np.arange(entities) // prompts_per_entity
    trained = list(stages[1:]) or list(stages)
    columns: dict[str, np.ndarray] = {
        "entity": np.array([f"r{i:06d}" for i in range(entities)], dtype=object),
        "entity_id": np.array([f"e{i:05d}" for i in subject], dtype=object),
        "prompt": np.array([f"Q: Who is e{i}?\nA:" for i in subject], dtype=object),
        "template": np.array([f"t{i % prompts_per_entity}" for i in range(entities)], dtype=object),
        "trained_stage": np.array([trained[i % len(trained)] for i in subject], dtype=object),
    }
    for name, values in (labels or {}).items():
        columns[name] = np.asarray(values)
    return columns


def make_store(
    path: str | Path,
    stages: int | Sequence[str] = 3,
    layers: int | Sequence[int] = 2,
    entities: int = 24,
    tokens: Sequence[str] | Sequence[int] = ("last",),
    d_model: int = 8,
    dtype: str = "float32",
    labels: Mapping[str, Any] | None = None,
    *,
    planted: float = 0.0,
    seed: int = 0,
    prompts_per_entity: int = 1,
    statistics: bool = True,
    extra: Sequence[Variable] = (),
    skip: Mapping[str, Sequence[int]] | None = None,
    stop_before: str | None = None,
    block_size: int | None = None,
    provenance: Mapping[str, Any] | None = None,
    compression: str = "none",
) -> Path:
    """Write a store of random activations and return its path.

    Args:
        planted: strength of a linear ordering. At every stage, rows whose `trained_stage` is not later than that stage
            are shifted by ``planted * order of trained_stage`` along one fixed random unit direction for each
            (layer, token), in units of the noise's standard deviation; 0 plants nothing. Before a row is trained on
            (and at "untrained") there is no signal.
        prompts_per_entity: rows that share an entity_id, and all labels of that entity.
        skip: {stage: rows that are not recorded}.
        stop_before: name of the first stage that is left out, though it has an order.
    """
    names = stage_names(stages)
    layer_list = list(range(layers)) if isinstance(layers, int) else list(layers)
    columns = make_labels(entities, names, prompts_per_entity, labels)
    site = site_variable("resid_post", ["d_model"], [d_model], dtype, HOOK)
    variables: list[Variable] = [site, *extra]
    if statistics:
        variables += [*statistic_variables(site), *output_variables((10, 50, 90)), answer_variable()]
    store = create(
        path,
        entities=columns,
        layers=layer_list,
        tokens=tokens,
        variables=variables,
        provenance={
            "model": "synthetic",
            "tokenizer_fingerprint": "t0",
            "token_ids_digest": "d0",
            **(provenance or {}),
        },
        block_size=block_size,
        compression=compression,
    )
    order = {name: i for i, name in enumerate(names)}
    with ActivationWriter(store) as writer:
        for name in names:
            if name == stop_before:
                break
            with writer.stage(name, order=order[name], fingerprint=f"sha256:{name}") as stage:
                for block in stage.pending():
                    buffer = stage.buffer(block)
                    skipped = np.intersect1d(np.asarray((skip or {}).get(name, ()), dtype=int), block.rows)
                    rows = np.setdiff1d(block.rows, skipped)
                    if skipped.size:
                        buffer.skip(skipped)
                    values = activations(
                        columns, name, order, layer_list, tokens, d_model, rows, planted=planted, seed=seed
                    )
                    buffer.write("resid_post", rows, to_storage(values, dtype))
                    write_others(buffer, variables, site, values, rows, len(tokens), seed + order[name])
                    stage.submit(buffer)
    return Path(path)


def activations(
    columns: Mapping[str, np.ndarray],
    stage: str,
    order: Mapping[str, int],
    layers: Sequence[int],
    tokens: Sequence[Any],
    d_model: int,
    rows: np.ndarray,
    *,
    planted: float,
    seed: int,
) -> np.ndarray:
    """Return float32 (layer, row, token, d_model); the values of a row do not depend on the other rows."""
    shape = (len(layers), len(tokens), d_model)
    directions = np.random.default_rng([seed, 1]).standard_normal(shape)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    out = np.empty((len(layers), len(rows), len(tokens), d_model), dtype=np.float32)
    for i, row in enumerate(rows):
        noise = np.random.default_rng([seed, 2, order[stage], int(row)]).standard_normal(shape)
        trained = order.get(str(columns["trained_stage"][row]), 0)
        seen = trained if trained <= order[stage] else 0
        out[:, i] = noise + planted * seen * directions
    return out


def write_others(
    buffer: Any,
    variables: Sequence[Variable],
    site: Variable,
    values: np.ndarray,
    rows: np.ndarray,
    tokens: int,
    seed: int,
) -> None:
    """Write the simple statistics of the activations, and seeded noise for every other variable."""
    wide = values.astype(np.float64)
    known = {
        f"{site.name}_l2": np.linalg.norm(wide, axis=-1),
        f"{site.name}_l1": np.abs(wide).sum(-1),
        f"{site.name}_mean": wide.mean(-1),
        f"{site.name}_std": wide.std(-1),
        f"{site.name}_max": wide.max(-1),
        f"{site.name}_min": wide.min(-1),
    }
    for number, variable in enumerate(variables):
        if variable.name == site.name:
            continue
        shape: tuple[int, ...] = (len(rows), *((tokens,) if variable.has("token") else ()), *variable.shape)
        if variable.has("layer"):
            shape = (values.shape[0], *shape)
        if variable.name in known:
            array = known[variable.name]
        else:
            axis = 1 if variable.has("layer") else 0
            draws = [
                np.random.default_rng([seed, 3, number, int(r)]).standard_normal(shape[:axis] + shape[axis + 1 :])
                for r in rows
            ]
            array = np.stack(draws, axis=axis) if draws else np.empty(shape)
        buffer.write(variable.name, rows, to_storage(array, variable.dtype))


def add_stage(path: str | Path, name: str, order: int, seed: int = 0) -> None:
    """Add one stage of seeded noise to a store, over all its variables."""
    with ActivationWriter(path) as writer, writer.stage(name, order=order, fingerprint=f"sha256:{name}") as stage:
        for block in stage.pending():
            stage.submit(fill_randomly(stage.buffer(block), writer.store, seed))


def fill_randomly(buffer: Any, store: Any, seed: int) -> Any:
    """Fill a block buffer with noise that depends only on seed, block and variable."""
    for number, name in enumerate(buffer.variables):
        layout = store.layouts[name]
        variable = layout.variable
        shape: tuple[int, ...] = (
            *((layout.layers,) if variable.has("layer") else ()),
            len(buffer.block),
            *((layout.tokens,) if variable.has("token") else ()),
            *variable.shape,
        )
        values = np.random.default_rng([seed, buffer.block.index, number]).standard_normal(shape, dtype=np.float32)
        buffer.write(name, buffer.block.rows, to_storage(values, variable.dtype))
    return buffer
