"""export: one site at one layer with its labels and prompts, for readers without stratalens."""

from __future__ import annotations

import csv
import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import InputError
from stratalens.store.files import user_path
from stratalens.store.interop.export import export_array, export_files
from stratalens.store.state.manifest import load
from stratalens.store.storage.atomic_files import new_folder, remove_tree, replaced_file
from stratalens.store.storage.resolve import storage_at
from stratalens.store.writing.label_columns import read_labels

FORMATS = (".npy", ".safetensors", ".npz", ".parquet")

_ROWS = 4096
_TABLE_NAMES = {"entity": "prompt_id", "entity_text": "entity"}  # names of a prompt table for the store's columns


def export(
    store: str | os.PathLike[str], to: str | os.PathLike[str], *, site: str, layer: int | None = None
) -> list[Path]:
    """Write one site at one layer, all stages, with the labels and prompts of its rows.

    Every file is complete or absent: it is written under a temporary name first. Where an array has files next to it,
    the old ones are removed before the array is replaced, and the new ones appear after it. A file next to an array
    therefore always belongs to it; after an interruption it may be missing, and the same call writes it again.

    Args:
        store: path or URL of the store.
        to: the target; its suffix selects the format:

            - a folder: `<site>.npy`, `rows.csv` and `README.md`.
            - `.npy` or `.safetensors`: the array of dims (stage, entity, token, features...), and next to it a `.csv`
              with a line for each row.
            - `.npz`: the array under the name of the site, and every label column as an array.
            - `.parquet`: one line for each stage, row and token, with the labels and the values as a list.

        site: a recorded site.
        layer: block index; None for sites outside the blocks.

    Returns:
        The files written.

    Raises:
        InputError: unknown site, layer or suffix, or the target cannot be written.
        NotRecordedError: some rows of a stage were never recorded.

    Example:
        >>> sl.export("run.zarr", "layer12", site="resid_post", layer=12)  # doctest: +SKIP
        [PosixPath('layer12/resid_post.npy'), PosixPath('layer12/rows.csv'), PosixPath('layer12/README.md')]
    """
    target = user_path(to)
    suffix = target.suffix.lower()
    if suffix and suffix not in FORMATS and not target.is_dir():
        raise InputError(
            f"cannot export to {target.name!r}: the suffix selects the format; valid: {', '.join(FORMATS)}, or a "
            "folder, whose name has no dot"
        )
    if not target.absolute().parent.is_dir():
        raise InputError(f"folder {target.absolute().parent} does not exist; make it first")
    if target.is_dir() and (suffix in FORMATS or any(target.iterdir())):
        raise InputError(f"{target} is a folder that is not empty; choose another target")
    if suffix in (".npy", ".safetensors"):
        labels = target.with_suffix(".csv")
        columns = label_table(store)
        tables = {labels: lambda file: write_rows(file, columns)}
        export_files(store, site=site, layer=layer, target=target, tables=tables)
        described = [target.with_name(target.name + ".json")] if suffix == ".npy" else []
        return [target, *described, labels]
    if suffix:
        writer = {".npz": _write_npz, ".parquet": _write_parquet}[suffix]
        with replaced_file(target) as file, _array_file(store, target, site, layer) as (array, axes):
            writer(file, array, axes, label_table(store))
        return [target]
    return _export_folder(store, target, site, layer)


def label_table(store: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Return the labels of a store by the names of a prompt table, so that `PromptTable.read` takes them.

    Returns:
        Arrays of shape (rows,): `prompt_id` first, then the other columns in the order of the store.
    """
    columns = read_labels(load(storage_at(store)))
    return {_TABLE_NAMES.get(name, name): values for name, values in columns.items()}


def write_rows(file: BinaryIO, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write label columns as csv, one line for each row; a missing number is an empty field."""
    lists = [values.tolist() for values in columns.values()]
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(columns)
    for values in zip(*lists, strict=True):
        lines.writerow(["" if value is None or value != value else value for value in values])
    text.detach()  # flushes, and leaves the file open


@contextmanager
def _array_file(
    store: str | os.PathLike[str], target: Path, site: str, layer: int | None
) -> Iterator[tuple[NDArray[Any], dict[str, Any]]]:
    """Yield the exported array, mapped from a temporary file next to the target, and its axes.

    Only the process that holds the lock of the target calls this.
    """
    folder = target.with_name(f".{target.name}.array")
    remove_tree(folder)
    try:
        folder.mkdir()
        file = folder / "array.npy"
        export_array(store, site=site, layer=layer, target=file)
        axes = json.loads(file.with_name("array.npy.json").read_text(encoding="utf-8"))
        yield np.load(file, mmap_mode="r"), axes
    finally:
        remove_tree(folder)


def _export_folder(store: str | os.PathLike[str], target: Path, site: str, layer: int | None) -> list[Path]:
    names = [f"{site}.npy", "rows.csv", "README.md"]
    columns = label_table(store)
    with new_folder(target) as temporary:
        array = temporary / names[0]
        export_array(store, site=site, layer=layer, target=array)
        description = array.with_name(array.name + ".json")
        axes = json.loads(description.read_text(encoding="utf-8"))
        description.unlink()  # README.md has the same
        with (temporary / names[1]).open("wb") as file:
            write_rows(file, columns)
        shape = np.load(array, mmap_mode="r").shape
        (temporary / names[2]).write_text(_readme(store, axes, shape, list(columns)), encoding="utf-8")
    return [target / name for name in names]


def _readme(
    store: str | os.PathLike[str], axes: Mapping[str, Any], shape: Sequence[int], columns: Sequence[str]
) -> str:
    site, layer = axes["site"], axes["layer"]
    place = "" if layer is None else f" at layer {layer}"
    sizes = ", ".join(f"{dim} {size}" for dim, size in zip(axes["dims"], shape, strict=True))
    return f"""# {site}{place}

Exported from {Path(str(store)).name} by stratalens. Hook: `{axes["hook"]}`.

- `{site}.npy`: array of dims ({sizes}).
- `rows.csv`: one line for each entry of the dim `entity`, in the same order. Columns: {", ".join(columns)}.
- stage: {", ".join(axes["stage"])}
- token: {", ".join(map(str, axes["token"]))}

```python
import numpy as np
import pandas as pd

x = np.load("{site}.npy", mmap_mode="r")
rows = pd.read_csv("rows.csv")
```
"""


def _write_npz(
    file: BinaryIO, array: NDArray[Any], axes: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]
) -> None:
    """Write an npz file; the array is copied a few rows at a time."""
    members = {"stage": np.array(axes["stage"]), "token": np.array(axes["token"])}
    members |= {name: values.astype(str) if values.dtype.hasobject else values for name, values in columns.items()}
    if axes["site"] in members:
        raise InputError(f"a label column has the name of the site, {axes['site']!r}; export to .npy instead")
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open(f"{axes['site']}.npy", "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_2_0(member, header)
            for _, _, values in _row_blocks(array):
                member.write(np.ascontiguousarray(values).data)
        for name, values in members.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)


def _row_blocks(array: NDArray[Any]) -> Iterator[tuple[int, slice, NDArray[Any]]]:
    """Yield stage number, rows and values (rows, token, features...) of an exported array."""
    for stage in range(array.shape[0]):
        for start in range(0, array.shape[1], _ROWS):
            rows = slice(start, min(start + _ROWS, array.shape[1]))
            yield stage, rows, array[stage, rows]


def _write_parquet(
    file: BinaryIO, array: NDArray[Any], axes: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]
) -> None:
    """Write one line for each stage, row and token; features of heads are flattened, in C order."""
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "writing parquet needs pyarrow: pip install 'stratalens[parquet]'; or export to .npz"
        ) from None
    names = ("stage", "token", axes["site"])
    if repeated := [name for name in names if name in columns]:
        raise InputError(f"a label column is called {repeated[0]!r}, as a column of the file; export to .npy instead")
    tokens = array.shape[2]
    width = int(np.prod(array.shape[3:]))

    def text_or_numbers(values: NDArray[Any]) -> Any:
        return arrow.array(values, type=arrow.string() if values.dtype.hasobject else None)

    writer: Any = None
    try:
        for stage, rows, values in _row_blocks(array):
            count = rows.stop - rows.start
            data = {"stage": arrow.array([axes["stage"][stage]] * (count * tokens))}
            for name, labels in columns.items():
                data[name] = text_or_numbers(np.repeat(labels[rows], tokens))
            data["token"] = arrow.array([str(token) for token in axes["token"]] * count)
            flat = arrow.array(np.ascontiguousarray(values).reshape(-1))
            data[axes["site"]] = arrow.FixedSizeListArray.from_arrays(flat, width)
            batch = arrow.table(data)
            if writer is None:
                described = {"stratalens": json.dumps({**{k: axes[k] for k in ("site", "layer", "hook", "dims")}})}
                schema = batch.schema.with_metadata(described)
                writer = parquet.ParquetWriter(file, schema)
            writer.write_table(batch.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
