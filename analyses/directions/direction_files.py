"""Directions on disk: a labelled zarr group, or one safetensors file with the labels as JSON in its metadata."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from stratalens.store.errors import InputError
from stratalens.store.files import user_path

SAFETENSORS = ".safetensors"
KIND = "stratalens directions"


def write_directions(data: xr.Dataset, path: str | os.PathLike[str]) -> None:
    """Write the Dataset of `Directions`; the file or group appears only when it is complete.

    Args:
        data: Dataset with `vector` and `scale`.
        path: ends in .safetensors for a file; anything else is a zarr group.

    Raises:
        InputError: the folder does not exist, or `path` holds something else than directions.
    """
    target = user_path(path)
    if not target.parent.is_dir():
        raise InputError(f"folder {target.parent} does not exist; create it first")
    if target.exists() and not _is_directions(target):
        raise InputError(f"{target} exists and does not contain directions; choose another path")
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        if target.suffix == SAFETENSORS:
            _write_safetensors(data, temporary)
        else:
            texts = {
                name: v.astype(np.dtypes.StringDType()) for name, v in data.coords.items() if v.dtype.kind in "OUT"
            }
            attrs = {**data.attrs, "kind": KIND, "dims": list(map(str, data["vector"].dims))}
            data.assign_coords(texts).assign_attrs(attrs).to_zarr(temporary, zarr_format=3, consolidated=False)
            if target.exists():
                shutil.rmtree(target)
        temporary.replace(target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def read_directions(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read what `write_directions` wrote, into memory.

    Raises:
        InputError: `path` does not exist or does not contain directions.
    """
    source = user_path(path)
    if not source.exists():
        raise InputError(f"{source} does not exist; write directions with Directions.save(path)")
    if not _is_directions(source):
        raise InputError(f"{source} does not contain directions; write them with Directions.save(path)")
    if source.is_file():
        return _read_safetensors(source)
    data: xr.Dataset = xr.open_zarr(source, chunks=None, consolidated=False).load()
    texts = {name: v.astype(object) for name, v in data.coords.items() if v.dtype.kind == "T"}
    data = data.assign_coords(texts)
    for variable in data.variables.values():
        variable.encoding = {}
    data.attrs = {k: v for k, v in data.attrs.items() if k not in ("kind", "dims")}
    return data


def _is_directions(path: Path) -> bool:
    if path.is_file():
        header = _metadata(path)
        return header is not None and header.get("kind") == KIND
    try:
        attributes = json.loads((path / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, KeyError):
        return False
    return bool(attributes.get("kind") == KIND)


def _metadata(path: Path) -> dict[str, Any] | None:
    """JSON in the metadata of a safetensors file; None of another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads((file.metadata() or {}).get("stratalens", "null"))  # type: ignore[no-any-return]
    except (SafetensorError, ValueError, OSError):
        return None


def _write_safetensors(data: xr.Dataset, path: Path) -> None:
    from safetensors.numpy import save_file

    coords = {
        str(name): {"dims": list(map(str, v.dims)), "values": v.values.tolist()} for name, v in data.coords.items()
    }
    header = {
        "kind": KIND,
        "dims": list(map(str, data["vector"].dims)),
        "scale_dims": list(map(str, data["scale"].dims)),
        "coords": coords,
        "attrs": data.attrs,
    }
    arrays = {name: np.ascontiguousarray(data[name].values) for name in ("vector", "scale")}
    save_file(arrays, path, metadata={"stratalens": json.dumps(header, default=_json)})


def _json(value: Any) -> Any:
    """Convert NumPy numbers for JSON."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _read_safetensors(path: Path) -> xr.Dataset:
    from safetensors.numpy import load_file

    header = _metadata(path)
    assert header is not None
    arrays = load_file(path)
    coords = {}
    for name, coordinate in header["coords"].items():
        values = coordinate["values"]
        is_text = any(isinstance(v, str) for v in np.ravel(np.array(values, object)))
        coords[name] = (tuple(coordinate["dims"]), np.array(values, object) if is_text else np.array(values))
    return xr.Dataset(
        {"vector": (tuple(header["dims"]), arrays["vector"]), "scale": (tuple(header["scale_dims"]), arrays["scale"])},
        coords=coords,
        attrs=header["attrs"],
    )
