"""Files of activations as lazy arrays: npy, npz, safetensors, and Hugging Face datasets on disk."""

from __future__ import annotations

import importlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratalens.plugin.models.sites import SHORT_NAMES
from stratalens.store.errors import InputError, join_names, suggest
from stratalens.store.files import user_path

SUFFIXES = (".npy", ".npz", ".safetensors")

_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BLOCK_OUTPUT = "blocks.{layer}.hook_out"  # the name of resid_post in a TransformerBridge


@dataclass(frozen=True)
class StoredArray:
    """One array of a file, and what the file or the caller says about it.

    Attributes:
        file: where it is, for messages.
        name: name of the tensor in the file; "" in a file with a single array.
        array: anything with shape, dtype and slices.
        site: site; "" where nothing names it.
        stage: stage; "" where nothing names it.
        layer: block index; None where nothing names it.
    """

    file: str
    name: str
    array: Any
    site: str = ""
    stage: str = ""
    layer: int | None = None


def read_arrays(
    files: Sequence[str], *, site: str | None = None, stages: Sequence[str] | None = None
) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Open files of activations as the argument `arrays` of `from_arrays`; no value is read.

    Args:
        files: paths, in training order if there is one for each stage. `SITE=FILE`, `SITE:STAGE=FILE` and
            `SITE:STAGE:LAYER=FILE` say what a file is. Tensors named after a hook of TransformerLens
            (`blocks.3.hook_resid_post`) or `SITE.LAYER` say it themselves.
        site: name of arrays that nothing else names; None: "resid_post".
        stages: names of the files, if each file is one stage; None: their names without suffix.

    Returns:
        The arrays, and the columns of a Hugging Face dataset that are no arrays.

    Raises:
        InputError: a file is missing or unreadable, or two arrays have the same place.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("step0", "step600"):
        ...         np.save(f"{folder}/{name}.npy", np.zeros((4, 8), np.float32))
        ...     arrays, _ = read_arrays([f"{folder}/step0.npy", f"{folder}/step600.npy"])
        >>> list(arrays), list(arrays["resid_post"])
        (['resid_post'], ['step0', 'step600'])
    """
    if not files:
        raise InputError("no files: name at least one .npy, .npz or .safetensors file, or the folder of a dataset")
    opened: list[StoredArray] = []
    labels: pd.DataFrame | None = None
    one_each = _each_is_a_stage(files, stages)
    for number, text in enumerate(files):
        prefix, path = _split_prefix(text)
        arrays, columns = _open(path)
        labels = columns if labels is None else labels
        stage = (list(stages)[number] if stages else path.name.removesuffix(path.suffix)) if one_each else ""
        for name, array in arrays.items():
            opened.append(_place(str(path), name, array, prefix, stage, site))
    return _nested(opened), labels


def _each_is_a_stage(files: Sequence[str], stages: Sequence[str] | None) -> bool:
    """Return whether the files are stages: as many as there are stages, and no prefix names a stage."""
    if any(":" in _split_prefix(text)[0] for text in files):
        return False
    plain = len(files) > 1 and not any(_split_prefix(text)[0] for text in files)
    if stages is None:
        return plain
    if plain and len(files) != len(stages):
        raise InputError(
            f"{len(files)} files, but stages names {len(stages)}: {join_names(stages)}. Give one file for each stage, "
            "or say what each file is with SITE:STAGE=FILE"
        )
    return plain


def _split_prefix(text: str) -> tuple[str, Path]:
    """Split `SITE:STAGE=FILE`; a path that exists is never split.

    >>> _split_prefix("z:step0=acts/z.npy")
    ('z:step0', PosixPath('acts/z.npy'))
    """
    prefix, equals, path = text.partition("=")
    if not equals or "/" in prefix or user_path(text).exists():
        return "", user_path(text)
    return prefix, user_path(path)


def _place(file: str, name: str, array: Any, prefix: str, stage: str, site: str | None) -> StoredArray:
    """Say which site, stage and layer an array is: the prefix of its file, then its own name, then the defaults."""
    parts = prefix.split(":") if prefix else []
    if len(parts) > 3 or not all(parts):
        raise InputError(f"{prefix}={file}: write SITE=FILE, SITE:STAGE=FILE or SITE:STAGE:LAYER=FILE")
    if len(parts) == 3 and not (parts[2].isdecimal() and len(parts[2]) < 10):
        raise InputError(f"{prefix}={file}: layer {parts[2]!r} is no block index")
    own_site, own_layer = site_of_name(name)
    if parts and own_layer is not None and own_site != parts[0]:
        own_layer = None
    return StoredArray(
        file,
        name,
        array,
        site=parts[0] if parts else own_site or site or "resid_post",
        stage=parts[1] if len(parts) > 1 else stage,
        layer=int(parts[2]) if len(parts) > 2 else own_layer,
    )


def site_of_name(name: str) -> tuple[str, int | None]:
    """Return site and layer of a tensor: of a hook of TransformerLens, or of `SITE.LAYER`.

    Example:
        >>> site_of_name("blocks.3.hook_resid_post"), site_of_name("mine.12"), site_of_name("ln_final.hook_out")
        (('resid_post', 3), ('mine', 12), ('ln_final', None))
    """
    templates = {hook: short for short, hooks in SHORT_NAMES.items() for hook in hooks} | {_BLOCK_OUTPUT: "resid_post"}
    for hook, short in templates.items():
        match = re.fullmatch(re.escape(hook).replace(r"\{layer\}", r"(\d{1,9})"), name)
        if match:
            return short, int(match[1]) if match.groups() else None
    match = re.fullmatch(r"(.+)\.(\d{1,9})", name)
    return (match[1], int(match[2])) if match else (name, None)


def _nested(arrays: Sequence[StoredArray]) -> dict[str, Any]:
    """Return {site: array}, {site: {stage: ...}} or {site: {layer: ...}}."""
    sites: dict[str, dict[tuple[str, int | None], StoredArray]] = {}
    for stored in arrays:
        places = sites.setdefault(stored.site, {})
        place = (stored.stage, stored.layer)
        if place in places:
            other = places[place]
            raise InputError(
                f"{_describe(stored)} and {_describe(other)} are both {_where(stored)}; say what each file is with "
                "SITE:STAGE=FILE"
            )
        places[place] = stored
    return {site: _by_stage(site, places) for site, places in sites.items()}


def _by_stage(site: str, places: Mapping[tuple[str, int | None], StoredArray]) -> Any:
    stages = list(dict.fromkeys(stage for stage, _ in places))
    if "" in stages and len(stages) > 1:
        raise InputError(f"{site}: some files name a stage and others do not; write SITE:STAGE=FILE for all of them")
    layered = {layer is not None for _, layer in places}
    if len(layered) > 1:
        raise InputError(f"{site}: some arrays are one layer and others are not; name the layers of all or of none")
    by_stage: dict[str, Any] = {}
    for stage in stages:
        layers = {layer: stored.array for (name, layer), stored in places.items() if name == stage}
        by_stage[stage] = dict(sorted(layers.items())) if layered == {True} else layers[None]
    return by_stage[""] if stages == [""] else by_stage


def _describe(stored: StoredArray) -> str:
    return f"{stored.name!r} of {stored.file}" if stored.name else stored.file


def _where(stored: StoredArray) -> str:
    stage = f", stage {stored.stage!r}" if stored.stage else ""
    return f"{stored.site}{stage}" + ("" if stored.layer is None else f", layer {stored.layer}")


def _open(path: Path) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Open one file or dataset: arrays by name, and the other columns of a dataset."""
    if not path.exists():
        others = sorted(p.name for p in path.parent.iterdir() if p.suffix in SUFFIXES) if path.parent.is_dir() else []
        hint = f"; {suggest(path.name, others)}" if others else f" (in {path.parent.absolute()})"
        raise InputError(f"{path}: no such file{hint}")
    if path.is_dir():
        return _open_dataset(path)
    suffix = path.suffix.lower()
    try:
        if suffix == ".npy":
            return {"": _open_npy(path)}, None
        if suffix == ".npz":
            return dict(_open_npz(path)), None
        if suffix == ".safetensors":
            return _open_safetensors(path), None
    except InputError:
        raise
    except Exception as error:  # each library raises its own classes for a damaged file
        raise InputError(f"{path} is not a readable {suffix} file: {str(error).splitlines()[0]}") from error
    raise InputError(f"{path}: unknown suffix {suffix!r}; valid: {', '.join(SUFFIXES)}, or the folder of a dataset")


def _open_npy(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return _readable(array, str(path))


def _readable(array: NDArray[Any], where: str) -> NDArray[Any]:
    """Return an array of known dtype; NumPy saves bfloat16 as two bytes without a meaning."""
    if array.dtype.str.endswith("V2"):
        import ml_dtypes

        return array.view(ml_dtypes.bfloat16)
    if array.dtype.hasobject or array.dtype.kind == "V":
        raise InputError(f"{where} has dtype {array.dtype}; save the activations as an array of floats")
    return array


def _open_npz(path: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the members of an npz file; those without compression are mapped, others are read into memory."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED:
                with np.load(path, allow_pickle=False) as arrays:
                    yield name, _readable(arrays[name], f"{name!r} of {path}")
                continue
            raw.seek(member.header_offset + 26)  # lengths of the name and of the extra field in the local header
            lengths = np.frombuffer(raw.read(4), "<u2")
            raw.seek(member.header_offset + 30 + int(lengths.sum()))
            version = np.lib.format.read_magic(raw)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(raw)
            if dtype.hasobject:
                raise InputError(f"{name!r} of {path} has dtype {dtype}; save the activations as an array of floats")
            order: Literal["C", "F"] = "F" if fortran else "C"
            mapped = np.memmap(path, dtype=dtype, mode="r", offset=raw.tell(), shape=shape, order=order)
            yield name, _readable(mapped, f"{name!r} of {path}")


class SafetensorsArray:
    """A tensor of a safetensors file, read by slices.

    Attributes:
        shape: sizes of the axes.
        dtype: NumPy's dtype, or that of ml_dtypes for bfloat16.
    """

    def __init__(self, path: Path, handle: Any, name: str) -> None:
        self._slices = handle.get_slice(name)
        self.shape = tuple(self._slices.get_shape())
        code = self._slices.get_dtype()
        if code not in _SAFETENSORS_DTYPES:
            raise InputError(f"{name!r} of {path} has dtype {code}; activations are {', '.join(_SAFETENSORS_DTYPES)}")
        import ml_dtypes

        bfloat16 = np.dtype(ml_dtypes.bfloat16)
        self.dtype: np.dtype[Any] = bfloat16 if code == "BF16" else np.dtype(_SAFETENSORS_DTYPES[code])

    def __getitem__(self, index: Any) -> Any:
        """Read a part of the tensor as a torch tensor."""
        return self._slices[index]


def _open_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    handle: Any = safe_open(path, framework="pt")  # NumPy has no bfloat16
    return {name: SafetensorsArray(path, handle, name) for name in handle.keys()}  # noqa: SIM118 - not a dict


class DatasetColumn:
    """A column of a Hugging Face dataset with one array for each row, read by rows.

    Attributes:
        shape: rows, then the shape of one value.
        dtype: dtype of the values.
    """

    def __init__(self, dataset: Any, name: str, path: Path) -> None:
        self._dataset, self._name, self._path = dataset.select_columns([name]).with_format("numpy"), name, path
        first = np.asarray(self._dataset[0][name])
        self.shape = (len(self._dataset), *first.shape)
        self.dtype = first.dtype

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read some rows, and a part of each value."""
        rows, *rest = index if isinstance(index, tuple) else (index,)
        values = np.asarray(self._dataset[rows][self._name])
        if values.dtype == object or values.shape[1:] != self.shape[1:]:
            raise InputError(
                f"column {self._name!r} of {self._path}: its values have different shapes in rows {rows.start} to "
                f"{rows.stop - 1}; every row needs the shape {self.shape[1:]}"
            )
        values = values[(slice(None), *rest)]
        return values


def _open_dataset(path: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Open a dataset that `save_to_disk` wrote: columns of floats as arrays, the others as a table."""
    if not (path / "state.json").is_file():
        hint = "it has splits; name one of them" if (path / "dataset_dict.json").is_file() else "no state.json in it"
        raise InputError(
            f"{path} is not the folder of a Hugging Face dataset ({hint}); datasets' save_to_disk makes one"
        )
    try:
        datasets = importlib.import_module("datasets")  # it has no type hints
    except ImportError:
        raise InputError(f"{path}: reading a Hugging Face dataset needs datasets: pip install datasets") from None
    dataset = datasets.load_from_disk(str(path))
    if not len(dataset):
        raise InputError(f"{path}: the dataset has no rows")
    arrays = {name: DatasetColumn(dataset, name, path) for name in dataset.column_names if _is_array(dataset, name)}
    if not arrays:
        raise InputError(f"{path}: no column has arrays of floats; columns: {join_names(dataset.column_names)}")
    labels = dataset.select_columns([n for n in dataset.column_names if n not in arrays]).to_pandas()
    return arrays, labels


def _is_array(dataset: Any, name: str) -> bool:
    column = dataset.features[name]
    value, dtype = column, str(getattr(column, "dtype", ""))
    while dtype in ("", "list") and hasattr(value, "feature"):  # a list, perhaps of lists
        value = value.feature
        dtype = str(getattr(value, "dtype", ""))
    is_nested = value is not column or type(column).__name__.startswith("Array")
    return is_nested and dtype.startswith("float")
