"""One site at one layer as a plain array file (.npy or .safetensors), for tools that know nothing of zarr.

Values are written stage by stage, block by block, so that memory stays small
whatever the store holds. Rows that were never recorded are an error, never zeros.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import xarray as xr

from stratalens.store.errors import InputError, NotRecordedError, no_site_error
from stratalens.store.reading.open import open_store

SUFFIXES = (".npy", ".safetensors")


_ROWS = 4096


def export_array(
    store: str | os.PathLike[str], *, site: str, layer: int | None, target: str | os.PathLike[str]
) -> None:
    """Write one site at one layer, all stages, to a file.

    The array has dims (stage, entity, token, features...); bfloat16 comes out as
    float32, other dtypes as they are stored. A .safetensors file holds it as
    the tensor `site`, with dims, stages, entities, tokens and hook name as JSON
    in its metadata; beside a .npy file the same JSON lies as `<file>.json`.

    Parameters
    ----------
    store
        Path of the store.
    site
        A recorded site.
    layer
        Block index; None for sites outside the blocks.
    target
        The file; its suffix says the format. Replaced only when it is whole.

    Raises
    ------
    InputError
        Unknown site, layer or suffix.
    NotRecordedError
        Some rows of a stage were never recorded.
    """
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise InputError(f"cannot export to {target.name!r}: the suffix says the format; valid: {', '.join(SUFFIXES)}")
    if not target.parent.is_dir():
        raise InputError(f"folder {target.parent} does not exist; make it first")
    ds = open_store(store, chunks=None)
    array = _selected(ds, site, layer)
    recorded = ds["recorded"].values
    if not recorded.all():
        stages = [str(name) for name, row in zip(ds["stage"].values, recorded, strict=True) if not row.all()]
        raise NotRecordedError(
            f"{store}: rows of stage {', '.join(stages)} were never recorded; "
            "finish the capture (stratalens capture RUN.yaml --resume), then export"
        )
    facts = {
        "dims": list(map(str, array.dims)),
        "site": site,
        "layer": layer,
        "hook": str(array.attrs.get("hook", "")),
        "stage": [str(v) for v in ds["stage"].values],
        "entity": [str(v) for v in ds["entity"].values],
        "token": [v.item() if isinstance(v, np.generic) else str(v) for v in ds["token"].values],
    }
    temporary = target.with_name(target.name + ".part")
    try:
        if target.suffix == ".npy":
            _fill(np.lib.format.open_memmap(temporary, mode="w+", dtype=array.dtype, shape=array.shape), array)
            side = target.with_name(target.name + ".json")
            side.write_text(json.dumps(facts), encoding="utf-8")
        else:
            _fill(_safetensors(temporary, site, array, facts), array)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _selected(ds: xr.Dataset, site: str, layer: int | None) -> xr.DataArray:
    sites = [str(name) for name, v in ds.data_vars.items() if v.attrs.get("kind") == "site"]
    if site not in sites:
        raise no_site_error(site, sites)
    array = ds[site]
    if "layer" not in array.dims:
        if layer is not None:
            raise InputError(f"site {site!r} lies outside the blocks and has no layers; leave --layer out")
        return array
    layers = [int(v) for v in ds["layer"].values]
    if layer is None:
        raise InputError(f"site {site!r} was recorded at layers {layers}; say which one with --layer")
    if layer not in layers:
        raise InputError(f"layer {layer} was not recorded; valid: {', '.join(map(str, layers))}")
    return array.isel(layer=layers.index(layer))


def _fill(out: np.memmap, array: xr.DataArray) -> None:
    for stage in range(array.shape[0]):
        for start in range(0, array.shape[1], _ROWS):
            rows = slice(start, start + _ROWS)
            out[stage, rows] = array[stage, rows].values
    out.flush()


def _safetensors(path: Path, name: str, array: xr.DataArray, facts: object) -> np.memmap:
    """An empty .safetensors file of one tensor, mapped for writing.

    The format (8 bytes of header length, JSON header padded with blanks, data) is written here because the
    library's own save_file wants the whole tensor in memory.
    """
    kinds = {"float32": "F32", "float16": "F16"}
    header = {
        "__metadata__": {"stratalens": json.dumps(facts)},
        name: {"dtype": kinds[str(array.dtype)], "shape": list(array.shape), "data_offsets": [0, array.nbytes]},
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + array.nbytes)
    return np.memmap(path, dtype=array.dtype, mode="r+", offset=8 + len(raw), shape=array.shape)
