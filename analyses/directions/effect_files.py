"""Results of interventions on disk."""

from __future__ import annotations

import json
from pathlib import Path

import xarray as xr

_EFFECT_ATTRIBUTES = {"kind", "outcome", "verdict", "identity"}


def read_effects(folder: Path) -> dict[str, xr.Dataset]:
    """Read every result of `intervene` in a folder into memory, by the name of its zarr group; other results are left.

    Args:
        folder: results folder of a store; it may be missing.
    """
    effects = {}
    for path in sorted(folder.glob("*.zarr")) if folder.is_dir() else ():
        try:
            attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        except (OSError, ValueError, KeyError):
            continue
        if set(attributes) >= _EFFECT_ATTRIBUTES:
            effects[path.name.removesuffix(".zarr")] = read_effect(path)
    return effects


def read_effect(path: Path) -> xr.Dataset:
    """Read one result of `intervene` into memory."""
    result: xr.Dataset = xr.open_zarr(path, chunks=None, consolidated=False).load()
    result = result.assign({name: v.astype(object) for name, v in result.data_vars.items() if v.dtype.kind == "T"})
    result = result.assign_coords({name: v.astype(object) for name, v in result.coords.items() if v.dtype.kind == "T"})
    for variable in result.variables.values():
        variable.encoding = {}
    return result
