"""zarr.json documents of arrays and of the root group, with consolidated metadata and a checksum.

The root document is the commit point for stages and variables. Its attribute ``stratalens`` holds all that the
reader needs, and a crc32c of the document. The canonical form of documents reveals every changed byte.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from stratalens.store.errors import DamagedError, InputError
from stratalens.store.format import label_codec as labels
from stratalens.store.format.checksum import crc32c
from stratalens.store.format.layout import ArrayLayout
from stratalens.store.format.schema import Variable

ROOT = "zarr.json"


ROOT_COPY = ".stratalens/root.json"


FORMAT_VERSION = "1.0"


ALTERNATE_KEYS = {"name": "v2", "configuration": {"separator": "."}}  # files 0, 1, ... instead of c.0, c.1, ...


Json = dict[str, Any]


def canonical(document: Any) -> bytes:
    """Encode a JSON document canonically: one line, sorted keys, UTF-8, no NaN literals."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def plain(value: Any, where: str) -> Any:
    """Convert a value to what JSON will return for it.

    Raises:
        InputError: JSON cannot represent the value; the message names its place.
    """
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset | np.ndarray):
        items = sorted(value) if isinstance(value, set | frozenset) else list(value)
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(items)]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(
        f"{where} is a {type(value).__name__}: provenance holds strings, numbers, booleans, lists and dicts of them"
    )


def _fill(variable: Variable) -> Any:
    if variable.dtype != "bfloat16" and np.dtype(variable.dtype).kind == "f":
        return "NaN"
    return variable.fill.item() if hasattr(variable.fill, "item") else variable.fill


def _array(shape: tuple[int, ...], chunk: tuple[int, ...], **rest: Any) -> Json:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "storage_transformers": [],
        **rest,
    }


def variable_metadata(layout: ArrayLayout, stages: int, entities: int) -> Json:
    """Return the zarr.json of a data variable."""
    variable = layout.variable
    dtype = variable.storage_dtype.name
    compression = [labels.ZSTD_CODEC] if layout.compressed else []
    codecs: list[Json] = [labels.bytes_codec(dtype), *compression, {"name": "crc32c"}]
    if layout.sharded:
        configuration = {
            "chunk_shape": list(layout.inner_shape),
            "codecs": codecs,
            "index_codecs": [labels.bytes_codec("uint64"), {"name": "crc32c"}],
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": configuration}]
    attributes = variable.described_attrs
    if variable.dtype == "bfloat16":
        attributes["stored_as"] = "bfloat16 bits in uint16"
    return _array(
        layout.array_shape(stages, entities),
        layout.file_shape,
        data_type=dtype,
        fill_value=_fill(variable),
        codecs=codecs,
        attributes=attributes,
        dimension_names=list(variable.dims),
    )


def label_metadata(dim: str, size: int, chunk: int, dtype: str, attributes: Json) -> Json:
    """Return the zarr.json of a one-dimensional coordinate or label column."""
    return _array(
        (size,),
        (chunk,),
        data_type=dtype,
        fill_value=labels.fill_value(dtype),
        codecs=labels.codecs(dtype),
        attributes=attributes,
        dimension_names=[dim],
    )


def encode_root(attributes: Json, arrays: Mapping[str, Json]) -> bytes:
    """Encode a root zarr.json; its attribute `stratalens` gets the checksum of the document."""
    state = {k: v for k, v in attributes["stratalens"].items() if k != "checksum"}
    document: Json = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {**attributes, "stratalens": state},
        "consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": dict(arrays)},
    }
    state["checksum"] = f"{crc32c(canonical(document)):08x}"
    return canonical(document)


def decode_root(raw: bytes, where: str) -> Json:
    """Decode a root zarr.json.

    Raises:
        DamagedError: a byte differs from those that `encode_root` returned.
    """
    try:
        document = json.loads(raw.decode())
        state = document["attributes"]["stratalens"]
        checksum = state.pop("checksum")
        intact = f"{crc32c(canonical(document)):08x}" == checksum
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if intact:
        state["checksum"] = checksum
        intact = canonical(document) == raw
    if not intact:
        raise DamagedError(
            f"{where} was damaged or edited: it differs from its checksum. "
            "`stratalens verify --repair` restores it from the copy that the store keeps."
        )
    return dict(document)
