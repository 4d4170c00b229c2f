"""from_arrays: activations that exist already, written into a store."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from blake3 import blake3
from numpy.typing import NDArray

from stratalens.analyses.accessor import open_store
from stratalens.plugin.interop.array_sources import ArraySource, Layout
from stratalens.plugin.interop.array_variables import array_variables, check_layout, check_rows
from stratalens.plugin.progress import Progress, ProgressFunction
from stratalens.plugin.prompts.ids_of_store import with_ids_of_store
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.label_warnings import caller_level, warn_about_label_typos
from stratalens.plugin.stages.stage import Stage, resolve_stage_order
from stratalens.store.errors import InputError, MismatchError, NonFiniteError, suggest
from stratalens.store.format.layout import MEMORY_LIMIT
from stratalens.store.format.metadata import ROOT
from stratalens.store.format.schema import Variable
from stratalens.store.state.capture_plan import clear_if_complete, plan_stages
from stratalens.store.state.manifest import Store, load
from stratalens.store.storage.resolve import storage_at
from stratalens.store.writing.buffers import RowBlock
from stratalens.store.writing.create import create
from stratalens.store.writing.writer import ActivationWriter, StageWriter

ORIGIN = "existing arrays; stratalens did not run a model for these values"

_READ_BYTES = 64 << 20  # read at once
_SAMPLE_BYTES = 64 << 20  # hashed of every stage; smaller stages are hashed whole
_SAMPLE_RUNS = 16


def from_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    table: PromptTable | pd.DataFrame | str | os.PathLike[str],
    *,
    stages: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    tokens: Sequence[str] | Sequence[int] | None = None,
    dims: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ids: Sequence[Any] | None = None,
    dtype: str = "auto",
    nonfinite: Literal["raise", "keep"] = "raise",
    source: str = "",
    fingerprints: Mapping[str, str] | None = None,
    resume: bool = True,
    progress: bool | ProgressFunction | None = None,
    allow_same_weights: bool = False,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
    compression: str = "none",
) -> xr.Dataset:
    """Write activations that exist already into a store, and open it.

    Analyses, reports and `verify_store` treat the store as one that was recorded. Its provenance says that the values
    came from elsewhere. Arrays are read block by block, so memory maps, dask and zarr arrays may be larger than the
    memory. An interrupted call resumes after the last committed block when it is repeated.

    Args:
        path: folder of the store, or an fsspec URL.
        arrays: values by name. A value is an array of shape (stage, layer, entity, token, features); or
            {stage: array}, {layer: array}, {stage: {layer: array}} of arrays without these dims. An array is anything
            with shape, dtype and slices: NumPy, a memory map, a torch tensor, dask, zarr, xarray. Dims of size one may
            be left out, all of them or none. Names are sites (`resid_post`, `z`, `ln_final`, or a name of your own), or
            statistics of the prompts (`loss`, `entropy`, `answer_loss`, `resid_post_l2`, ...) without features.
        table: the prompts, one row for each row of the arrays in the same order: a PromptTable, a DataFrame, or a file.
        stages: names of the stages in training order. None: one stage, "model"; or those of the mappings.
        layers: block indices of the arrays. None: all from 0; or those of the mappings.
        tokens: names of the positions, or offsets -n .. -1. None: one position, "last".
        dims: names of the axes, for arrays in another order: ("entity", "layer", "d_model"), or {name: dims}.
            A DataArray names its own.
        ids: names of the rows of the arrays; they must be the `prompt_id` of the table. None trusts the order, except
            for a DataArray with a coordinate `entity`.
        dtype: "auto" (that of the arrays, float64 as float32), "float32", "bfloat16", "float16", or "int8" scaled by
            row.
        nonfinite: "raise" or "keep" for activations that are NaN or infinite.
        source: where the values came from, for the provenance: "nnsight 0.8, Pythia-70m".
        fingerprints: {stage: hash of the weights}, where you know them. Otherwise a hash of the values takes this
            place; of a stage above 64 MB, it covers the values of 16 evenly spaced runs of rows.
        resume: False refuses an existing store.
        progress: True, False, a function (stage, rows done, rows in all), or None for a bar on a terminal.
        allow_same_weights: accept two stages with the same values.
        memory_limit: bytes that the two block buffers may take together.
        block_size: rows that are committed together; None chooses.
        compression: "none", or "zstd" to pack the sites.

    Returns:
        The store as a lazy Dataset (`stratalens.open_store`).

    Raises:
        InputError: a shape, dtype, name or id is wrong; nothing was written.
        MismatchError: the store at `path` has other rows, values or sites.
        NonFiniteError: an activation is NaN or infinite, or overflows the requested dtype.

    Example:
        >>> import numpy as np, pandas as pd, tempfile, stratalens as sl
        >>> x = np.zeros((2, 3, 4, 1, 8), np.float32)  # (stage, layer, entity, token, d_model)
        >>> x[1] = 1
        >>> table = pd.DataFrame({"prompt": ["a b", "c d", "e f", "g h"], "colour": ["red", "blue", "red", "blue"]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ds = sl.from_arrays(f"{folder}/run.zarr", {"resid_post": x}, table, stages=["step0", "step600"])
        ...     dict(ds.resid_post.sizes), ds.colour.values.tolist()
        ({'stage': 2, 'layer': 3, 'entity': 4, 'token': 1, 'd_model': 8}, ['red', 'blue', 'red', 'blue'])
    """
    if nonfinite not in ("raise", "keep"):
        raise InputError(f"nonfinite={nonfinite!r}: {suggest(str(nonfinite), ('raise', 'keep'))}")
    table = _as_table(table)
    layout = check_layout(arrays, len(table), stages, layers, tokens, dims)
    sources, variables = array_variables(arrays, layout, dims, dtype)
    existing = existing_store(path)
    table = with_ids_of_store(table, existing, stacklevel=caller_level() + 1)
    check_rows(arrays, table, ids)
    hashes = _fingerprints(sources, variables, layout, fingerprints or {}, existing)
    store = create(
        path,
        entities=table.labels(),
        layers=layout.layers,
        tokens=layout.tokens,
        variables=list(variables.values()),
        provenance={"origin": ORIGIN, "source": source},
        memory_limit=memory_limit,
        block_size=block_size,
        exist_ok=resume,
        recorded_with={"model": source or "existing arrays"},
        compression=compression,
        label_orders=table.label_orders,
    )
    orders = resolve_stage_order([Stage(s, i, None) for i, s in enumerate(layout.stages)], store.stages, named=True)
    job = _Import(layout, sources, variables, table.labels()["entity"], nonfinite)
    with ActivationWriter(store) as writer:
        _check_values(writer.store, hashes)
        names = list(dict.fromkeys([*(stage.name for stage in writer.store.stages), *layout.stages]))
        warn_about_label_typos(table.labels(), names)
        plan_stages(writer.store, layout.stages)
        for number, name in enumerate(layout.stages):
            with writer.stage(
                name, order=orders[name], fingerprint=hashes[name], allow_same_weights=allow_same_weights
            ) as stage:
                job.write_stage(stage, number, len(table), progress)
        clear_if_complete(writer.store.storage)
    return open_store(path)


def existing_store(path: str | os.PathLike[str]) -> Store | None:
    """Load the store at a path; None where there is none."""
    storage = storage_at(path)
    return load(storage) if storage.kind() == "folder" and storage.get(ROOT) is not None else None


def _as_table(table: Any) -> PromptTable:
    if isinstance(table, PromptTable):
        return table
    if isinstance(table, pd.DataFrame):
        return PromptTable.from_dataframe(table)
    if isinstance(table, str | Path | os.PathLike):
        return PromptTable.read(os.fspath(table))
    raise InputError(
        f"the table is {type(table).__name__}; give a PromptTable, a DataFrame with a column 'prompt', or the path of "
        "a csv, jsonl or parquet file"
    )


@dataclass(frozen=True)
class _Import:
    """The arrays of a call and how their values are stored."""

    layout: Layout
    sources: Mapping[str, ArraySource]
    variables: Mapping[str, Variable]
    entities: NDArray[Any]
    nonfinite: str

    def write_stage(
        self, stage: StageWriter, number: int, total: int, progress: bool | ProgressFunction | None
    ) -> None:
        """Write the blocks of a stage that are not committed yet."""
        blocks = list(stage.pending())
        done = total - sum(map(len, blocks))
        with Progress(stage.name, done, total, progress) as bar:
            for block in blocks:
                buffer = stage.buffer(block)
                try:
                    for name in buffer.variables:
                        for layers, values in self._pieces(name, number, stage.name, block):
                            axis_free = values if self.variables[name].has("layer") else values[0]
                            buffer.write(name, block.rows, axis_free, layers)
                    stage.submit(buffer)
                finally:
                    buffer.discard()  # nothing to discard once it is submitted
                bar.advance(len(block))

    def _pieces(self, name: str, number: int, stage: str, block: RowBlock) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield the values of a block in storage dtype, a few layers at a time."""
        source, variable = self.sources[name], self.variables[name]
        count = len(self.layout.layers) if variable.has("layer") else 1
        step = max(1, _READ_BYTES // max(1, source.row_nbytes() * len(block)))
        for first in range(0, count, step):
            layers = slice(first, min(first + step, count))
            values = source.read(number, stage, layers, slice(block.start, block.stop))
            if not variable.has("token"):
                values = values.squeeze(2)
            if variable.attrs.get("kind") == "site":
                self._check_finite(values, variable, stage, layers, block)
            stored = in_dtype(values, variable.dtype)
            if self.nonfinite == "raise" and variable.dtype == "float16" and variable.attrs.get("kind") == "site":
                self._check_finite(stored, variable, stage, layers, block, dtype="float16")
            yield layers, stored

    def _check_finite(
        self, values: NDArray[Any], variable: Variable, stage: str, layers: slice, block: RowBlock, dtype: str = ""
    ) -> None:
        if self.nonfinite == "keep" and variable.dtype != "int8":
            return
        finite = np.isfinite(values)
        if finite.all():
            return
        place = np.argwhere(~finite)[0]
        layer = f"layer {self.layout.layers[layers.start + place[0]]}" if variable.has("layer") else "no layer"
        if dtype:
            problem = f"the activation is beyond the range of {dtype}. Pass dtype='float32' or 'bfloat16'."
        else:
            keep = "Correct the array" if variable.dtype == "int8" else "Pass nonfinite='keep' to store it unchanged"
            problem = f"the activation is {values[tuple(place)]}. {keep}."
        raise NonFiniteError(
            f"stage {stage!r}, site {variable.name!r}, {layer}, entity {self.entities[block.start + place[1]]!r}, "
            f"token {self.layout.tokens[place[2]]!r}, feature {place[3:].tolist()}: {problem}"
        )


def in_dtype(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return values as the writer takes them: bfloat16 rounded to nearest even, int8 as float32.

    Example:
        >>> in_dtype(np.array([1.0, 0.1]), "float32").dtype.name, in_dtype(np.array([1.0]), "bfloat16").dtype.name
        ('float32', 'bfloat16')
    """
    if dtype == "bfloat16":
        import ml_dtypes

        return values.astype(ml_dtypes.bfloat16, copy=False)
    with np.errstate(over="ignore"):
        return values.astype(np.float32 if dtype == "int8" else dtype, copy=False)


def _fingerprints(
    sources: Mapping[str, ArraySource],
    variables: Mapping[str, Variable],
    layout: Layout,
    chosen: Mapping[str, str],
    existing: Store | None,
) -> dict[str, str]:
    """Return the fingerprint of every stage: the caller's hash of the weights, or a hash of values.

    In a store that exists, the hash covers the sites that the stage was created with, so that others can be added.
    """
    for name in chosen:
        if name not in layout.stages:
            raise InputError(f"fingerprints has no such stage {name!r}: {suggest(str(name), layout.stages)}")
    hashed = sorted(name for name, variable in variables.items() if variable.attrs.get("kind") == "site")
    if existing is not None:
        first = {variable.name for variable in existing.groups[0]}
        hashed = [name for name in hashed if name in first] or hashed
    return {
        stage: str(chosen[stage])
        if stage in chosen
        else _hash_values([sources[name] for name in hashed], layout, number, stage)
        for number, stage in enumerate(layout.stages)
    }


def _hash_values(sources: Sequence[ArraySource], layout: Layout, number: int, stage: str) -> str:
    digest = blake3(b"stratalens values 1")
    for source in sources:
        layers = len(layout.layers) if source.layered else 1
        row = max(1, source.row_nbytes())
        digest.update(
            f"{source.name} {source.first.feature_shape} {source.first.dtype} {layers} {layout.rows}".encode()
        )
        for rows in _sampled_rows(layout.rows, _SAMPLE_BYTES // max(1, row * layers * len(sources))):
            step = max(1, _READ_BYTES // (row * (rows.stop - rows.start)))
            for first in range(0, layers, step):
                values = source.read(number, stage, slice(first, min(first + step, layers)), rows)
                digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return f"values:{digest.hexdigest()}"


def _sampled_rows(rows: int, limit: int) -> list[slice]:
    """Return all rows in pieces, or evenly spaced runs of about `limit` rows together.

    >>> _sampled_rows(10, 100), len(_sampled_rows(10**6, 1600)), _sampled_rows(10**6, 1600)[1]
    ([slice(0, 10, None)], 16, slice(66660, 66760, None))
    """
    if rows <= max(limit, _SAMPLE_RUNS):
        return [slice(0, rows)]
    length = max(1, limit // _SAMPLE_RUNS)
    starts = np.linspace(0, rows - length, _SAMPLE_RUNS).astype(int)
    return [slice(int(start), int(start) + length) for start in starts]


def _check_values(store: Store, hashes: Mapping[str, str]) -> None:
    """Raise MismatchError if the store has one of the stages with other values."""
    for name, fingerprint in hashes.items():
        index = store.stage_index(name)
        if index is not None and store.stages[index].fingerprint != fingerprint:
            raise MismatchError(
                f"stage {name!r} of {store.path} has other values (fingerprint {store.stages[index].fingerprint}, that "
                f"of these arrays is {fingerprint}). Pass the arrays that were imported before, or import these into "
                "another store or as another stage."
            )
