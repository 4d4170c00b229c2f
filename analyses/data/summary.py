"""A summary of activations on disk: sums of every stage in a folder of its own, opened as one labelled Dataset.

A summary is a folder. `summary.json` says what it sums up and which stages were started. The zarr group `stage-<n>`
appears when its stage is complete, with a checksum of every chunk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.norm_sketch import sketch_quantiles
from stratalens.analyses.data.row_moments import RowMoments, unpack
from stratalens.analyses.data.row_sample import RowSample
from stratalens.store.errors import DamagedError, InputError, NotRecordedError, join_names, no_site_error
from stratalens.store.files import user_path, write_text_atomic
from stratalens.store.storage.atomic_files import new_folder

POOLED = "all"  # the token of sums over all tokens
ROOT = "summary.json"
FORMAT = 1
SMALL_BYTES = 2**27
CELL = ("layer", "token", "group")
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
VECTORS = ("mean", "variance", "third_moment", "fourth_moment")
MATRICES = ("scatter", "cross", "squares")
PACKED = {"scatter": "feature_pair", "squares": "feature_pair"}


def stage_folder(path: Path, number: int) -> Path:
    """Folder of the finished sums of a stage."""
    return path / f"stage-{number:03d}"


def read_root(path: Path) -> dict[str, Any] | None:
    """Read what a folder sums up; None if it is not there.

    Raises:
        InputError: the folder is something else, or of a newer version.
        DamagedError: the file is not valid.
    """
    file = path / ROOT
    if not file.is_file():
        unfinished = {".lock", f"{ROOT}.part"}  # of a process that was killed before it wrote anything else
        if path.exists() and (not path.is_dir() or any(p.name not in unfinished for p in path.iterdir())):
            raise InputError(
                f"{path} is not a summary: it has no {ROOT}. Choose a new folder, or open a store with "
                "stratalens.open_store."
            )
        return None
    try:
        root: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        version = root["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{file} is damaged: {error}. Delete the folder and summarize again.") from error
    if version > FORMAT:
        raise InputError(f"{path} has format {version}; this version reads up to {FORMAT}. Update stratalens.")
    return root


def write_root(path: Path, root: Mapping[str, Any]) -> None:
    """Replace the description of a summary atomically."""
    write_text_atomic(path / ROOT, json.dumps(root, indent=1, ensure_ascii=False))


def write_stage(folder: Path, arrays: Mapping[str, tuple[tuple[str, ...], Array]]) -> None:
    """Write the sums of a finished stage; the folder appears complete or not at all.

    Args:
        folder: from `stage_folder`.
        arrays: dims and values by variable.
    """
    from zarr.codecs import Crc32cCodec

    dataset = xr.Dataset({name: (dims, values) for name, (dims, values) in arrays.items()})
    encoding = {
        name: {
            "chunks": tuple(1 if d in CELL else max(1, n) for d, n in zip(dims, values.shape, strict=True)),
            "compressors": (Crc32cCodec(),),
            "_FillValue": None,
        }
        for name, (dims, values) in arrays.items()
    }
    with new_folder(folder) as temporary:
        dataset.to_zarr(temporary, mode="w", zarr_format=3, consolidated=False, encoding=encoding)


def open_summary(path: str | os.PathLike[str]) -> xr.Dataset:
    """Open the statistics that `summarize` or `merge_summaries` wrote, lazily.

    Args:
        path: folder of the summary.

    Returns:
        Dataset of the complete stages. `<site>` is the name of each site, and its feature dims are those of a store:

        - count (stage, token, group): int64, rows.
        - <site>_mean (stage, layer, token, group, features): float64.
        - <site>_variance, <site>_third_moment, <site>_fourth_moment (stage, layer, token, group, features): float64,
          means of powers of the deviation from the mean.
        - <site>_scatter (stage, layer, token, group, row_feature, column_feature): float64, sum of (x - mean)
          (x - mean)^T. The Gram matrix is scatter + count mean mean^T.
        - <site>_cross, <site>_squares, with the same dims: float32, sums of y**2 y^T and y**2 (y**2)^T with
          y = x - mean, for LDA.
        - <site>_norm_mean, <site>_norm_std (stage, layer, token, group): float64, of the L2 norms of the rows.
        - <site>_norm_quantile (stage, layer, token, group, q): float64, within 1 %.
        - <site>_norm_counts (stage, layer, token, group, bucket): int64, the sketch behind the quantiles.
        - <site>_sample (stage, layer, token, group, sample, features): float32, a sample of rows; NaN where a group
          has fewer.
        - sample_entity, sample_prompt, sample_position (stage, token, group, sample): int64, hashes of the entity and
          the prompt of a sampled row, and its token; -1 where a group has fewer.
        - sample_limit (stage, token, group): int64, hash of the first entity that did not fit.

    Raises:
        InputError: there is no summary.
        NotRecordedError: no stage is complete yet.

    Example:
        >>> summary = sl.open_summary("run.summary")  # doctest: +SKIP
        >>> summary.resid_post_mean.sel(group="week1", layer=3)  # doctest: +SKIP
    """
    folder = user_path(path)
    root = read_root(folder)
    if root is None:
        raise InputError(f"there is no summary at {path}. Make one with stratalens.summarize(model, table, path).")
    complete = [(n, s) for n, s in enumerate(root["stages"]) if stage_folder(folder, n).is_dir()]
    if not complete:
        raise NotRecordedError(
            f"{path}: no stage is complete ({join_names(s['name'] for s in root['stages']) or 'none was started'}). "
            "Repeat the call of stratalens.summarize: it resumes."
        )
    parts = [xr.open_zarr(stage_folder(folder, n), chunks={}, consolidated=False) for n, _ in complete]
    joined = xr.concat(parts, dim="stage", data_vars="all", coords="minimal", compat="override", join="exact")
    stages = [stage for _, stage in complete]
    identity = root["identity"]
    names = np.array(root["groups"], dtype=object)
    joined = joined.assign_coords(
        stage=np.array([s["name"] for s in stages], dtype=object),
        stage_order=("stage", [s["order"] for s in stages]),
        weights_fingerprint=("stage", np.array([s["fingerprint"] for s in stages], dtype=object)),
        token=np.array(identity["tokens"], dtype=object),
        group=names if any(isinstance(n, str) for n in root["groups"]) else np.array(root["groups"]),
    )
    if identity["layers"]:
        joined = joined.assign_coords(layer=identity["layers"])
    for site in identity["sites"]:
        joined = _with_matrices(joined, site)
    ordered = root["ordering"] in ("order", "stage_order", "categories")
    attrs = {
        "summary": FORMAT,
        "path": str(folder),
        "by": identity["by"],
        "ordering": root["ordering"],
        "ordered": int(ordered),
        "order_of_sums": identity["order"],
        "sites": [site["name"] for site in identity["sites"]],
        "sample": identity["sample"],
        "seed": identity["seed"],
        "entities_in_several_groups": int(any(part["mixed"] for part in root["parts"])),
        "model": root["model"],
    }
    ordered_stages: xr.Dataset = joined.sortby("stage_order").assign_attrs(attrs)
    return ordered_stages


def _with_matrices(data: xr.Dataset, site: Mapping[str, Any]) -> xr.Dataset:
    """Show packed matrices as matrices, and quantiles of the norms, both lazily."""
    name, size = site["name"], int(np.prod(site["feature_shape"]))
    for matrix, pair in PACKED.items():
        packed = data.get(f"{name}_{matrix}")
        if packed is None or pair not in packed.dims:
            continue
        lead = packed.ndim - 1
        values = da.map_blocks(
            _unpack_blocks,
            packed.data.rechunk({lead: -1}),
            size,
            dtype=packed.dtype,
            chunks=(*packed.data.chunks[:lead], (size,), (size,)),
            drop_axis=lead,
            new_axis=[lead, lead + 1],
            meta=np.empty((0,) * (lead + 2), packed.dtype),
        )
        data = data.drop_vars(str(packed.name))
        data[f"{name}_{matrix}"] = ((*packed.dims[:-1], "row_feature", "column_feature"), values)
    counts = data[f"{name}_norm_counts"]
    data[f"{name}_norm_quantile"] = xr.apply_ufunc(
        sketch_quantiles,
        counts,
        kwargs={"q": QUANTILES},
        input_core_dims=[["bucket"]],
        output_core_dims=[["q"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"q": len(QUANTILES)}},
    )
    return data.assign_coords(q=list(QUANTILES))


def _unpack_blocks(packed: Array, size: int) -> Array:
    out = np.empty((*packed.shape[:-1], size, size), packed.dtype)
    for place in np.ndindex(packed.shape[:-1]):
        out[place] = unpack(packed[place], size)
    return out


def require_summary(data: Any, site: str, function: str, instead: str) -> xr.Dataset:
    """Return a summary that has this site.

    Raises:
        InputError: the data is no summary, or has no such site.
    """
    if not isinstance(data, xr.Dataset) or "summary" not in data.attrs:
        raise InputError(
            f"{function} needs a summary; got {type(data).__name__}. Open one with stratalens.open_summary(path). "
            f"Of a store, use stratalens.{instead}."
        )
    if site not in data.attrs["sites"]:
        raise no_site_error(site, data.attrs["sites"], "this summary")
    return data


def in_memory(data: xr.Dataset) -> xr.Dataset:
    """Read small data at once, because every lazy read of a place costs milliseconds; large data stays lazy."""
    return data.load() if data.nbytes <= SMALL_BYTES else data


def cell_variables(data: xr.Dataset, site: str, matrices: Collection[str] = MATRICES) -> list[str]:
    """Names of the variables that `cell_moments` and `cell_samples` read, with these matrices among those there are."""
    own = [f"{site}_{name}" for name in (*VECTORS, *(m for m in MATRICES if m in matrices), "sample")]
    shared = ["count", *(f"sample_{name}" for name in ("entity", "prompt", "position", "limit"))]
    return [name for name in (*shared, *own) if name in data]


def cell_moments(cell: xr.Dataset, site: str) -> list[RowMoments]:
    """Read the sums of every group of one place into memory.

    Args:
        cell: summary narrowed to one stage, layer and token.
        site: name of the site.
    """

    def read(name: str, group: int) -> Array | None:
        variable = cell.get(f"{site}_{name}")
        if variable is None:
            return None
        values = np.asarray(variable.isel(group=group).values, dtype=np.float64)
        return values if name in MATRICES else values.reshape(-1)

    out = []
    for group, count in enumerate(cell["count"].values.tolist()):
        mean = read("mean", group)
        variance, third, fourth = (read(n, group) for n in VECTORS[1:])
        assert mean is not None
        assert variance is not None
        assert third is not None
        assert fourth is not None
        sums = (count * variance, count * third, count * fourth)
        matrices = (read(n, group) for n in MATRICES)
        out.append(RowMoments(count, mean, np.zeros_like(mean), *sums, *matrices))
    return out


def cell_samples(cell: xr.Dataset, site: str) -> list[RowSample]:
    """Read the sampled rows of every group of one place, float64 values of shape (rows, features)."""
    values = np.asarray(cell[f"{site}_sample"].values, dtype=np.float64)
    values = values.reshape(*values.shape[:2], int(np.prod(values.shape[2:])))
    out = []
    for group in range(len(values)):
        entity, prompt, position = (cell[f"sample_{n}"].values[group] for n in ("entity", "prompt", "position"))
        there = np.flatnonzero(entity >= 0)
        limit = int(cell["sample_limit"].values[group])
        out.append(RowSample(entity[there], prompt[there], position[there], limit, values[group, there]))
    return out
