"""Label columns as zarr chunk files, and back.

Strings use zarr's variable-length ``string`` type; numbers and booleans keep their type. Each chunk ends with its
crc32c. A missing string (None or NaN in a column of objects) becomes the empty string.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numcodecs.vlen import VLenUTF8  # type: ignore[import-untyped]
from numcodecs.zstd import Zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from stratalens.store.errors import DamagedError, InputError
from stratalens.store.format.checksum import crc32c

LABEL_CHUNK = 65536


_STRINGS = VLenUTF8()


ZSTD_CODEC = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}


_ZSTD = Zstd(level=1)


def normalise(name: str, values: Any) -> NDArray[Any]:
    """Convert a column to an object array of str, or to a numeric or boolean array with a zarr type."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise InputError(f"label column {name!r} has shape {array.shape}: give one value for each entity row")
    if array.dtype.kind in "biuf":
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if array.dtype.kind in "Mm":
        return np.array([str(v) for v in array], dtype=object)
    if array.dtype.kind in "OUT":
        return np.array([_text(name, row, v) for row, v in enumerate(array.tolist())], dtype=object)
    raise InputError(
        f"label column {name!r} has dtype {array.dtype}: use strings, numbers or booleans (convert it with astype)"
    )


def _text(name: str, row: int, value: Any) -> str:
    if isinstance(value, str):
        check_utf8(value, f"label column {name!r}, row {row}")
        return str(value)
    if value is None or (isinstance(value, float) and np.isnan(value)) or str(value) in ("<NA>", "NaT"):
        return ""
    if isinstance(value, bool | int | float | np.generic):
        return str(value)
    raise InputError(
        f"label column {name!r}, row {row}: {type(value).__name__} cannot be a label; use strings, numbers or booleans"
    )


def check_utf8(text: str, where: str) -> None:
    """Raise InputError unless a text can be encoded as UTF-8; `where` names the table, column and row."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: the character {text[error.start]!r} at {error.start} is half of a surrogate pair and has no "
            "UTF-8 form; decode the text again"
        ) from None


def data_type(values: NDArray[Any]) -> str:
    """Return the name of the zarr data type of a normalised column."""
    return "string" if values.dtype == object else values.dtype.name


def codecs(dtype: str) -> list[dict[str, Any]]:
    """Return the codec chain of a label array, as in zarr.json."""
    if dtype == "string":
        return [{"name": "vlen-utf8", "configuration": {}}, ZSTD_CODEC, {"name": "crc32c"}]
    return [bytes_codec(dtype), {"name": "crc32c"}]


def bytes_codec(dtype: str) -> dict[str, Any]:
    """Return the ``bytes`` codec as zarr-python writes it: without a byte order for items of one byte."""
    if np.dtype(dtype).itemsize == 1:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def fill_value(dtype: str) -> Any:
    """Return the JSON fill value of a label array."""
    if dtype == "string":
        return ""
    return {"b": False, "f": "NaN"}.get(np.dtype(dtype).kind, 0)


def encode_chunks(values: NDArray[Any], chunk: int) -> list[bytes]:
    """Encode a normalised column as chunk files."""
    dtype = data_type(values)
    padding: Any = np.nan if fill_value(dtype) == "NaN" else fill_value(dtype)
    files = []
    for start in range(0, len(values), chunk):
        labels = values[start : start + chunk]
        if len(labels) < chunk:
            labels = np.concatenate([labels, np.full(chunk - len(labels), padding, dtype=labels.dtype)])
        raw = _encode_strings(labels) if dtype == "string" else labels.tobytes()
        files.append(raw + crc32c(raw).to_bytes(4, "little"))
    return files


def _encode_strings(values: NDArray[Any]) -> bytes:
    text = _STRINGS.encode(values)
    raw = bytes(_ZSTD.encode(text))
    if len(text) > _most_bytes(len(raw)):
        raise InputError(
            f"{len(values)} labels of one column have {len(text) / 1e6:.0f} MB of text that repeats itself: shorten "
            "them, or keep the texts in a file of your own"
        )
    return raw


def decode_chunk(raw: bytes | None, dtype: str, where: str, rows: int | None = None) -> NDArray[Any]:
    """Check one chunk file against its crc32c and return its values.

    Args:
        raw: bytes of the file, None if it is missing.
        dtype: zarr data type.
        where: name of the file for messages.
        rows: number of values that the file must have; None if the caller does not know it.

    Raises:
        DamagedError: the file is missing, or differs from its checksum.
    """
    if raw is None:
        raise DamagedError(f"{where} is missing: restore it, or run the capture again with the same prompts")
    if len(raw) < 4 or crc32c(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        raise DamagedError(
            f"{where} differs from its checksum: restore it, or run the capture again with the same prompts"
        )
    try:
        if dtype == "string":
            return _decode_strings(raw[:-4], rows)
        values = np.frombuffer(raw[:-4], dtype=np.dtype(dtype).newbyteorder("<"))
        if rows is not None and len(values) != rows:
            raise ValueError(f"it has {len(values)} values instead of {rows}")
    except (ValueError, RuntimeError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"{where} has a correct checksum, but its content is not that of a label file ({error}): restore it, or "
            "run the capture again with the same prompts"
        ) from error
    return values


def _decode_strings(data: bytes, rows: int | None) -> NDArray[Any]:
    """Decompress and decode strings; sizes and counts are checked before memory is taken.

    Raises:
        ValueError: the sizes or counts are not those of a label file.
        RuntimeError: the bytes are no zstd frame.
    """
    nbytes = frame_content_size(data)
    if nbytes is None or nbytes < 4 or nbytes > _most_bytes(len(data)):
        raise ValueError(f"{len(data)} compressed bytes would become {nbytes}")
    text = bytes(_ZSTD.decode(data))
    count = int.from_bytes(text[:4], "little")
    if count > len(text) // 4 or (rows is not None and count != rows):
        raise ValueError(f"it has {count} values" + ("" if rows is None else f" instead of {rows}"))
    decoded: NDArray[Any] = _STRINGS.decode(text)
    return decoded


def _most_bytes(compressed: int) -> int:
    """Return how many bytes a label file of `compressed` bytes may have before compression."""
    return max(512 << 20, 1024 * compressed)


def frame_content_size(data: bytes) -> int | None:
    """Return the decompressed size that a zstd frame declares; None if it declares none, or is no frame.

    >>> frame_content_size(bytes(_ZSTD.encode(b"a" * 1000)))
    1000
    """
    if len(data) < 6 or data[:4] != b"\x28\xb5\x2f\xfd":
        return None
    single_segment = data[4] >> 5 & 1
    width = (1 if single_segment else 0, 2, 4, 8)[data[4] >> 6]
    start = 5 + (1 - single_segment) + (0, 1, 2, 4)[data[4] & 3]
    if not width or len(data) < start + width:
        return None
    return int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)


def digest(columns: Mapping[str, NDArray[Any]]) -> str:
    """Compute the sha256 of all label columns; two tables are the same if their digests are equal."""
    state = hashlib.sha256()
    for name in sorted(columns):
        values = columns[name]
        state.update(f"{name}\0{data_type(values)}\0{len(values)}\0".encode())
        if values.dtype == object:
            for start in range(0, len(values), LABEL_CHUNK):
                texts = [text.encode() for text in values[start : start + LABEL_CHUNK]]
                sizes = np.fromiter(map(len, texts), dtype="<u8", count=len(texts)).tobytes()
                state.update(b"".join(sizes[8 * i : 8 * i + 8] + text for i, text in enumerate(texts)))
        else:
            state.update(values.tobytes())
    return state.hexdigest()
