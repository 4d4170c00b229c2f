"""export_array: one site at one layer as a .npy or .safetensors file.

Values are written stage by stage and block by block, so memory stays small for any size of the store.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np
import xarray as xr

from stratalens.store.errors import InputError, NotRecordedError, no_site_error
from stratalens.store.files import user_path
from stratalens.store.format.checksum import extend
from stratalens.store.reading.open import open_store
from stratalens.store.state.missing_rows import reasons_for
from stratalens.store.storage.atomic_files import remove_file, replaced_file

SUFFIXES = (".npy", ".safetensors")

Tables = Mapping[Path, Callable[[BinaryIO], None]]

_ROWS = 4096


def export_array(
    store: str | os.PathLike[str], *, site: str, layer: int | None, target: str | os.PathLike[str]
) -> None:
    """Write one site at one layer, all stages, to a file.

    The array has dims (stage, entity, token, features...). bfloat16 becomes float32; other dtypes stay as stored. A
    .safetensors file has the tensor `site`, with dims, stages, entities, tokens and hook name as JSON in its metadata.
    The same JSON is written next to a .npy file as `<file>.json`, with the bytes and the crc32c of the file.

    Each file is replaced atomically and durably. Two files cannot change at the same moment: the old JSON is removed
    before the array is replaced, and the new one appears last. A JSON file therefore always describes the array next to
    it. After an interruption it may be missing, and the same call writes it again.

    Args:
        store: path of the store.
        site: a recorded site.
        layer: block index; None for sites outside the blocks.
        target: the file; the suffix selects the format. An existing file is replaced only once the new one is complete.

    Raises:
        InputError: unknown site, layer or suffix.
        NotRecordedError: some rows of a stage were never recorded; they are never written as zeros.
    """
    export_files(store, site=site, layer=layer, target=target)


def export_files(
    store: str | os.PathLike[str],
    *,
    site: str,
    layer: int | None,
    target: str | os.PathLike[str],
    tables: Tables = MappingProxyType({}),
) -> None:
    """Write an array as `export_array` does, and tables of its rows next to it.

    All new files are durable under temporary names before an old one changes. Then the old tables and the old JSON are
    removed, the array is replaced, and the new tables and the new JSON appear, in this order. A file next to an array
    therefore always belongs to it, and an export with all its files is complete.

    Args:
        store: path of the store.
        site: a recorded site.
        layer: block index; None for sites outside the blocks.
        target: the array file.
        tables: function that writes each further file, by its path.

    Raises:
        InputError: unknown site, layer or suffix.
        NotRecordedError: some rows of a stage were never recorded.
    """
    target = user_path(target)
    if target.suffix not in SUFFIXES:
        valid = ", ".join(SUFFIXES)
        raise InputError(f"cannot export to {target.name!r}: the suffix selects the format; valid: {valid}")
    if not target.parent.is_dir():
        raise InputError(f"folder {target.parent} does not exist; make it first")
    ds = open_store(store, chunks=None)
    array = _select_layer(ds, site, layer)
    recorded = ds["recorded"].values
    if not recorded.all():
        stages = [str(name) for name, row in zip(ds["stage"].values, recorded, strict=True) if not row.all()]
        raise NotRecordedError(
            f"{store}: rows of stage {', '.join(stages)} were never recorded; "
            "finish the capture (stratalens capture RUN.yaml --resume), then export"
            f"{reasons_for(ds['recorded'].attrs, stages)}"
        )
    description = {
        "dims": list(map(str, array.dims)),
        "site": site,
        "layer": layer,
        "hook": str(array.attrs.get("hook", "")),
        "stage": [str(v) for v in ds["stage"].values],
        "entity": [str(v) for v in ds["entity"].values],
        "token": [v.item() if isinstance(v, np.generic) else str(v) for v in ds["token"].values],
    }
    described = target.suffix == ".npy"
    header = _npy_header(array) if described else _safetensors_header(site, array, description)
    json_file = target.with_name(target.name + ".json")
    with ExitStack() as stack:  # its files are renamed from the last to the first
        next_to = {path: stack.enter_context(replaced_file(path)) for path in ([json_file] * described + [*tables])}
        file = stack.enter_context(replaced_file(target))
        checksum = _write(file, header, array)
        for path, write in tables.items():
            write(next_to[path])
        if described:
            facts = {**description, "bytes": file.tell(), "crc32c": f"{checksum:08x}"}
            next_to[json_file].write(json.dumps(facts).encode())
        for whole in (file, *next_to.values()):
            whole.flush()
            os.fsync(whole.fileno())
        if not _is_file_of(target, file.tell(), checksum):
            for path in next_to:  # they would describe another array
                remove_file(path)


def _select_layer(ds: xr.Dataset, site: str, layer: int | None) -> xr.DataArray:
    sites = [str(name) for name, v in ds.data_vars.items() if v.attrs.get("kind") == "site"]
    if site not in sites:
        raise no_site_error(site, sites)
    array = ds[site]
    if "layer" not in array.dims:
        if layer is not None:
            raise InputError(f"site {site!r} is outside the blocks and has no layers; leave --layer out")
        return array
    layers = [int(v) for v in ds["layer"].values]
    if layer is None:
        raise InputError(f"site {site!r} was recorded at layers {layers}; choose one with --layer")
    if layer not in layers:
        raise InputError(f"layer {layer} was not recorded; valid: {', '.join(map(str, layers))}")
    return array.isel(layer=layers.index(layer))


def _write(file: BinaryIO, header: bytes, array: xr.DataArray) -> int:
    """Write a header and the values of an array in C order; return the crc32c of all bytes."""
    file.write(header)
    checksum = extend(0, np.frombuffer(header, dtype=np.uint8))
    for stage in range(array.shape[0]):
        for start in range(0, array.shape[1], _ROWS):
            values = np.ascontiguousarray(array[stage, start : start + _ROWS].values)
            data = values.reshape(-1).view(np.uint8)
            file.write(data.data)
            checksum = extend(checksum, data)
    return checksum


def _is_file_of(path: Path, size: int, checksum: int) -> bool:
    """Whether a file has this size and crc32c: an export that is repeated keeps the files next to its array."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    read = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            read = extend(read, np.frombuffer(block, dtype=np.uint8))
    return read == checksum


def _npy_header(array: xr.DataArray) -> bytes:
    header = io.BytesIO()
    description = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": tuple(array.shape),
    }
    np.lib.format.write_array_header_1_0(header, description)
    return header.getvalue()


def _safetensors_header(name: str, array: xr.DataArray, description: object) -> bytes:
    """Return the header of a .safetensors file of one tensor.

    `save_file` of the library needs the whole tensor in memory. The format is 8 bytes of header length, a JSON header
    padded with blanks, and the data.
    """
    dtypes = {"float32": "F32", "float16": "F16"}
    header = {
        "__metadata__": {"stratalens": json.dumps(description)},
        name: {"dtype": dtypes[str(array.dtype)], "shape": list(array.shape), "data_offsets": [0, array.nbytes]},
    }
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
