"""What a store holds, in one JSON-able dict: dims, sites, bytes, files, completeness, provenance."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from stratalens.store.errors import join_names
from stratalens.store.format.int8 import summarize_errors
from stratalens.store.format.metadata import FORMAT_VERSION
from stratalens.store.state.capture_plan import missing_stages
from stratalens.store.state.manifest import load
from stratalens.store.storage.resolve import storage_at


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a store from its metadata and commit records (and, where compressed, file sizes); no data is read.

    Returns
    -------
    dict
        ``path, format, complete, dims, layers, tokens, labels, sites`` (for each
        variable dims, dtype, compression, hook, bytes on disk, and for int8 what it
        lost), ``stages`` (name, order, fingerprint, provenance), ``completeness`` ({stage: {variable: fraction of rows
        committed}}), ``whole_stages`` (names of those that lack no row of anything), ``bytes, files, blocks,
        block_size, provenance, recorded_with``, and ``missing_stages``: what an unfinished capture was to record and
        has not begun. ``complete`` is true where all stages are whole and none is lacking.
    """
    store = load(storage_at(path))
    state = store.commits()
    geometry = store.geometry
    sizes = [stop - start for start, stop in (geometry.rows(b) for b in range(geometry.blocks))]
    total = nfiles = 0
    variables: dict[str, Any] = {}
    grid: dict[str, dict[str, float]] = {s.name: {} for s in store.stages}
    for name, layout in store.layouts.items():
        present = state.present[store.group_of[name]]
        files = int(present.sum())
        nbytes = files * layout.file_nbytes
        if layout.compressed:
            held = store.storage.sizes(name)
            nbytes = sum(held.get(layout.file_name(int(s), int(b)), 0) for s, b in np.argwhere(present))
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
                rows = sum(size for size, there in zip(sizes, present[index], strict=True) if there)
                grid[stage.name][name] = rows / store.entities
    lacking = missing_stages(store)
    return {
        "path": str(store.storage.root),
        "format": FORMAT_VERSION,
        "complete": bool(state.present.all()) and bool(store.stages) and not lacking,
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
        "whole_stages": [name for name, shares in grid.items() if _whole(shares)],
        "lacking_stages": lacking,
        "completeness": grid,
        "bytes": total,
        "files": nfiles,
        "blocks": geometry.blocks,
        "block_size": store.block_size,
        "provenance": dict(store.provenance),
        "recorded_with": dict(store.recorded_with),
    }


def state_in_words(facts: Mapping[str, Any]) -> str:
    """Whether what `info` described is complete; if not, how many stages are whole, and what is missing of the others.

    >>> shares = {"base": {"z": 1.0, "q": 1.0}, "week1": {"z": 0.4, "q": 0.4}, "week2": {"z": 1.0, "q": 0.0}}
    >>> state_in_words({"complete": False, "completeness": shares, "lacking_stages": ["week3"]})
    'not complete: 1 of 4 stages whole; week1 at 40%, week2 at 0% of q; not begun: week3'
    """
    if facts["complete"]:
        return "complete"
    grid, lacking = facts["completeness"], facts.get("lacking_stages", [])
    begun = [f"{name} at {_least(shares)}" for name, shares in grid.items() if not _whole(shares)]
    parts = [f"not complete: {len(grid) - len(begun)} of {len(grid) + len(lacking)} stages whole"]
    parts += [join_names(begun)] if begun else []
    parts += [f"not begun: {join_names(lacking)}"] if lacking else []
    return "; ".join(parts)


def percent(share: float) -> str:
    """A share of rows in whole percent, rounded down: 100% is said of all rows alone.

    >>> percent(0.29), percent(0.999), percent(1.0)
    ('29%', '99%', '100%')
    """
    return f"{math.floor(share * 100 + 1e-9)}%"


def _whole(shares: Mapping[str, float]) -> bool:
    return all(share >= 1 for share in shares.values())


def _least(shares: Mapping[str, float]) -> str:
    """The smallest share of rows, and of which variables where others have more."""
    least = min(shares.values())
    of = [name for name, share in shares.items() if share == least]
    return percent(least) if len(of) == len(shares) else f"{percent(least)} of {join_names(of, 3)}"
