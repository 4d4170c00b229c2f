"""What a store holds, in one JSON-able dict: dims, sites, bytes, files, completeness, provenance."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from stratalens.store.manifest import load
from stratalens.store.metadata import FORMAT_VERSION
from stratalens.store.places import storage_at
from stratalens.store.planned import lacking_stages
from stratalens.store.scaling import overall


def info(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Describe a store from its metadata and commit records (and, where compressed, file sizes); no data is read.

    Returns
    -------
    dict
        ``path, format, complete, dims, layers, tokens, labels, sites`` (for each
        variable dims, dtype, compression, hook, bytes on disk, and for int8 what it
        lost), ``stages`` (name, order, fingerprint, provenance), ``completeness`` ({stage: {variable: fraction of rows
        committed}}), ``bytes, files, blocks, block_size, provenance, recorded_with``, and ``lacking_stages``: what an
        unfinished capture was to record and has not begun. ``complete`` is true where nothing is missing of either.
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
            **overall(store.measured.get(name, ())),
            "bytes": nbytes,
            "bytes_uncompressed": files * layout.file_nbytes,
        }
        if variable.attrs.get("kind") != "flag":
            for index, stage in enumerate(store.stages):
                rows = sum(size for size, there in zip(sizes, present[index], strict=True) if there)
                grid[stage.name][name] = rows / store.entities
    lacking = lacking_stages(store)
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
    """Whether what `info` described is complete, and which stages are not there.

    >>> state_in_words({"complete": False, "stages": [{}], "lacking_stages": ["week1", "week2"]})
    'not complete: 1 of 3 stages; not begun: week1, week2'
    """
    lacking = facts.get("lacking_stages", [])
    if not lacking:
        return "complete" if facts["complete"] else "not complete"
    held = len(facts["stages"])
    named = ", ".join(lacking[:8]) + (f" and {len(lacking) - 8} more" if len(lacking) > 8 else "")
    return f"not complete: {held} of {held + len(lacking)} stages; not begun: {named}"
