"""A description of a store as one JSON-compatible dict, and its completeness in words."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratalens.store.errors import join_names
from stratalens.store.format.int8 import summarize_errors
from stratalens.store.format.layout import ArrayLayout
from stratalens.store.format.metadata import FORMAT_VERSION
from stratalens.store.state.capture_plan import missing_stages
from stratalens.store.state.index import attach_index
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.store_files import check_store_files
from stratalens.store.storage.resolve import storage_at


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a store without reading data.

    Sources are the metadata, the commit records and, for compressed variables, the file sizes.

    Returns:
        A dict with these keys:

        - path, format: path or URL, and version of the format.
        - complete: whether every planned stage has all rows.
        - dims: size of stage, layer, entity and token.
        - layers, tokens: values of these dims.
        - labels: data type of each label column.
        - sites: names of the sites.
        - variables: for each variable dims, dtype, compression, kind, hook, doc, bytes, uncompressed bytes, and for
          int8 the errors.
        - stages: for each stage name, order, fingerprint and provenance, in training order.
        - completeness: {stage: {variable: fraction of rows committed}}.
        - whole_stages: names of the stages with all rows of all variables.
        - lacking_stages: names of planned stages that the capture has not started.
        - bytes, files, blocks, block_size: size on disk, number of data files, number of row blocks, rows of a block.
        - provenance, recorded_with: fields that must match, and fields for information.
    """
    store = load(storage_at(path))
    attach_index(store)
    check_store_files(store)
    state = store.commits()
    geometry = store.geometry
    block_rows = [stop - start for start, stop in map(geometry.rows, range(geometry.blocks))]
    total = nfiles = 0
    variables: dict[str, Any] = {}
    grid: dict[str, dict[str, float]] = {s.name: {} for s in store.stages}
    for name, layout in store.layouts.items():
        present = state.present[store.group_of[name]]
        files = int(present.sum())
        nbytes = files * layout.file_nbytes
        if layout.compressed:
            nbytes = _compressed_nbytes(store, layout, np.argwhere(present).tolist())
        total += nbytes
        nfiles += files
        variable = layout.variable
        variables[name] = {
            "dims": dict(zip(variable.dims, layout.array_shape(len(store.stages), store.entities), strict=True)),
            "dtype": variable.dtype,
            "compression": variable.compression,
            "kind": variable.attrs.get("kind", ""),
            "hook": variable.attrs.get("hook", ""),
            "doc": variable.doc,
            **summarize_errors(store.measured.get(name, ())),
            "bytes": nbytes,
            "bytes_uncompressed": files * layout.file_nbytes,
        }
        if variable.attrs.get("kind") != "flag":
            for index, stage in enumerate(store.stages):
                grid[stage.name][name] = float(np.dot(block_rows, present[index])) / store.entities
    missing = missing_stages(store)
    return {
        "path": str(store.storage.root),
        "format": FORMAT_VERSION,
        "complete": bool(state.present.all()) and bool(store.stages) and not missing,
        "dims": {
            "stage": len(store.stages),
            "layer": len(store.layers),
            "entity": store.entities,
            "token": len(store.tokens),
        },
        "layers": list(store.layers),
        "tokens": list(store.tokens),
        "labels": dict(store.label_types),
        "sites": [n for n, v in variables.items() if v["kind"] == "site"],
        "variables": variables,
        "stages": [s.to_json() for s in sorted(store.stages, key=lambda s: s.order)],
        "whole_stages": [name for name, shares in grid.items() if _complete(shares)],
        "lacking_stages": missing,
        "completeness": grid,
        "bytes": total,
        "files": nfiles,
        "blocks": geometry.blocks,
        "block_size": store.block_size,
        "provenance": dict(store.provenance),
        "recorded_with": dict(store.recorded_with),
    }


def _compressed_nbytes(store: Store, layout: ArrayLayout, places: Sequence[Sequence[int]]) -> int:
    """Return the bytes of the files of a compressed variable at some (stage, block)."""
    storage = store.storage
    if not storage.lists_folders:  # the index has the sizes, or there is a request for each
        return sum(storage.size(layout.key(stage, block)) or 0 for stage, block in places)
    sizes = storage.sizes(layout.variable.name)
    return sum(sizes.get(layout.file_name(stage, block), 0) for stage, block in places)


def state_in_words(facts: Mapping[str, Any]) -> str:
    """Say whether a store is complete; if not, name its incomplete stages.

    Args:
        facts: result of `info`.

    Example:
        >>> shares = {"base": {"z": 1.0, "q": 1.0}, "week1": {"z": 0.4, "q": 0.4}, "week2": {"z": 1.0, "q": 0.0}}
        >>> state_in_words({"complete": False, "completeness": shares, "lacking_stages": ["week3"]})
        'not complete: 1 of 4 stages complete; week1 at 40%, week2 at 0% of q; not started: week3'
    """
    if facts["complete"]:
        return "complete"
    grid, missing = facts["completeness"], facts.get("lacking_stages", [])
    started = [f"{name} at {_least(shares)}" for name, shares in grid.items() if not _complete(shares)]
    text = f"not complete: {len(grid) - len(started)} of {len(grid) + len(missing)} stages complete"
    text += f"; {join_names(started)}" if started else ""
    return text + (f"; not started: {join_names(missing)}" if missing else "")


def percent(share: float) -> str:
    """Format a fraction of rows in percent, rounded down, so that only all rows give 100%.

    >>> percent(0.29), percent(0.999), percent(1.0)
    ('29%', '99%', '100%')
    """
    return f"{math.floor(share * 100 + 1e-9)}%"


def _complete(shares: Mapping[str, float]) -> bool:
    return all(share >= 1 for share in shares.values())


def _least(shares: Mapping[str, float]) -> str:
    """Format the smallest fraction of rows, and name its variables unless all have that fraction."""
    least = min(shares.values())
    names = [name for name, share in shares.items() if share == least]
    return percent(least) if len(names) == len(shares) else f"{percent(least)} of {join_names(names, 3)}"
