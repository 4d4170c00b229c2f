"""Join summaries of disjoint rows, such as those of the ranks of a job or of the shards of a corpus."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.data.row_moments import RowMoments, join
from stratalens.analyses.data.row_sample import RowSample, join_samples
from stratalens.analyses.data.summary import (
    MATRICES,
    cell_moments,
    cell_samples,
    cell_variables,
    in_memory,
    open_summary,
    read_root,
    stage_folder,
    write_root,
    write_stage,
)
from stratalens.analyses.data.summary_arrays import Arrays, pad_samples, row_arrays, site_arrays
from stratalens.store.errors import InputError, MismatchError, StoreExistsError, join_names, quote
from stratalens.store.files import user_path
from stratalens.store.storage.atomic_files import new_folder

_Part = tuple[Path, dict[str, Any], xr.Dataset]


def merge_summaries(paths: Sequence[str | os.PathLike[str]], path: str | os.PathLike[str]) -> xr.Dataset:
    """Join summaries of disjoint rows into one.

    The order of `paths` changes nothing. Counts, quantiles of norms and the sample of rows are exactly those of a
    single run over all rows. The other numbers equal them up to the rounding of float64 (fourth order: float32).

    Args:
        paths: the summaries: of all ranks of a job (`summarize(..., rank=)`), or of the shards of a corpus with the
            same arguments. Merged summaries may be merged again.
        path: folder of the new summary; it appears complete or not at all.

    Returns:
        The new summary, as `open_summary` opens it. Its groups are those of all parts.

    Raises:
        InputError: fewer than two paths, a path without a summary, or an incomplete one.
        MismatchError: the summaries differ in model, stages, sites or arguments, or share rows.
        StoreExistsError: `path` is not empty.

    Example:
        >>> sl.merge_summaries(["rank0.summary", "rank1.summary"], "run.summary")  # doctest: +SKIP
    """
    if isinstance(paths, str | os.PathLike) or len(paths) < 2:
        raise InputError("paths: pass a list of at least two summaries.")
    target = user_path(path)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreExistsError(f"{path} exists already. Choose another path for the merged summary.")
    parts = []
    for one in paths:
        root = read_root(user_path(one))
        data = open_summary(one)  # refuses a missing one
        assert root is not None
        if data.sizes["stage"] < len(root["stages"]):
            raise InputError(f"{one} has incomplete stages. Repeat the call of summarize that made it.")
        parts.append((user_path(one), root, data))
    # Always the same order, so that the order of the paths changes no rounding.
    parts.sort(key=lambda part: json.dumps(part[1]["parts"], sort_keys=True))
    _check(parts)
    groups, ordering = _join_groups([root for _, root, _ in parts])
    root = {**parts[0][1], "groups": groups, "ordering": ordering}
    root["parts"] = [one for _, other, _ in parts for one in other["parts"]]
    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with new_folder(target) as temporary:
        for number, stage in enumerate(root["stages"]):
            narrowed = [data.sel(stage=stage["name"]) for _, _, data in parts]
            _write_merged(stage_folder(temporary, number), root, narrowed)
        write_root(temporary, root)
    return open_summary(path)


def _check(parts: Sequence[_Part]) -> None:
    """Refuse summaries that differ in anything but their rows, or that share rows."""
    (first_path, first, _), *others = parts
    for path, root, _ in others:
        for name, value in first["identity"].items():
            if root["identity"].get(name) != value:
                raise MismatchError(
                    f"{path} and {first_path} differ in {name}: {quote(root['identity'].get(name))} and "
                    f"{quote(value)}. Summarize all parts with the same arguments."
                )
        mine, theirs = ([(s["name"], s["fingerprint"]) for s in r["stages"]] for r in (first, root))
        if mine != theirs:
            raise MismatchError(
                f"{path} has other stages or weights than {first_path}: {join_names(n for n, _ in theirs)} and "
                f"{join_names(n for n, _ in mine)}. Summarize the same models in the same order."
            )
    seen: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path, root, _ in parts:
        for part in root["parts"]:
            other = seen.get(f"{part['digest']} {part['rank']}") or next(
                (s for key, s in seen.items() if key.startswith(part["digest"]) and s[1]["rank"][1] != part["rank"][1]),
                None,
            )
            if other is not None:
                raise MismatchError(
                    f"{path} and {other[0]} sum up the same rows, which would count twice. Merge summaries of "
                    "different ranks of one job, or of different prompts."
                )
            seen[f"{part['digest']} {part['rank']}"] = path, part


def _join_groups(roots: Sequence[Mapping[str, Any]]) -> tuple[list[Any], str]:
    """Names of the groups of all parts, and the source of their order."""
    names = list(dict.fromkeys(name for root in roots for name in root["groups"]))
    for root in roots:
        if set(root["groups"]) == set(names):
            return list(root["groups"]), str(root["ordering"])
    if not any(isinstance(name, str) for name in names):
        return sorted(names), "numeric"
    return names, "first appearance"


def _write_merged(folder: Path, root: Mapping[str, Any], parts: Sequence[xr.Dataset]) -> None:
    """Join one stage of all parts."""
    parts = [in_memory(part) for part in parts]
    groups, size = [str(name) for name in root["groups"]], int(root["identity"]["sample"])
    tokens = parts[0].sizes["token"]
    where = [{str(name): i for i, name in enumerate(part.group.values)} for part in parts]
    count = np.zeros((tokens, len(groups)), dtype=np.int64)
    for part, index in zip(parts, where, strict=True):
        for g, name in enumerate(groups):
            if name in index:
                count[:, g] += part["count"].values[:, index[name]]
    samples: dict[tuple[int, int], RowSample] = {}
    arrays: Arrays = {}
    for site in root["identity"]["sites"]:
        layers = len(root["identity"]["layers"]) if site["in_blocks"] else 1
        name, d = site["name"], int(np.prod(site["feature_shape"]))
        wanted = [*cell_variables(parts[0], name), *(f"{name}_norm_{n}" for n in ("mean", "std", "counts"))]
        moments: dict[tuple[int, ...], RowMoments] = {}
        rows: dict[tuple[int, ...], Array] = {}
        norms, buckets = np.zeros((layers, tokens, len(groups), 2)), None
        for layer, token in np.ndindex(layers, tokens):
            places = {"layer": layer, "token": token} if site["in_blocks"] else {"token": token}
            cells = [part[wanted].isel(places).load() for part in parts]
            sums, drawn = [cell_moments(c, name) for c in cells], [cell_samples(c, name) for c in cells]
            for g, group in enumerate(groups):
                own = [(p, index[group]) for p, index in enumerate(where) if group in index]
                place = (layer, token, g)
                # Parts without a row of this group have no mean.
                present = [sums[p][i] for p, i in own if sums[p][i].count] or [_empty(sums[own[0][0]][own[0][1]])]
                moments[place] = join(present).central()
                samples[token, g] = join_samples((drawn[p][i] for p, i in own), size)
                rows[place] = np.asarray(samples[token, g].values)
                for p, i in own:
                    cell = cells[p].isel(group=i)
                    counts = cell[f"{name}_norm_counts"].values
                    if buckets is None:
                        buckets = np.zeros((layers, tokens, len(groups), len(counts)), dtype=np.int64)
                    buckets[place] += counts
                    if n := sums[p][i].count:
                        mean, std = float(cell[f"{name}_norm_mean"]), float(cell[f"{name}_norm_std"])
                        norms[place] += np.array([n * mean, n * (std**2 + mean**2)])
        assert buckets is not None
        sample = pad_samples([rows[place] for place in np.ndindex(layers, tokens, len(groups))], d)
        sample = sample.reshape(layers, tokens, len(groups), -1, d)
        arrays |= site_arrays(site, lambda *place, own=moments: own[place], norms, buckets, sample)
    write_stage(folder, arrays | row_arrays(count, samples))


def _empty(moments: RowMoments) -> RowMoments:
    """Sums of no row, whose mean is not NaN."""
    zero = np.zeros_like(moments.centre)
    matrices = {n: np.zeros_like(m) for n in MATRICES if (m := getattr(moments, n)) is not None}
    return RowMoments(0, zero, zero, zero, zero, zero, **matrices)
