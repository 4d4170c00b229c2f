"""Verification of a folder of cached results, `run.zarr.results`."""

from __future__ import annotations

import json
from pathlib import Path

import xarray as xr

from stratalens.analyses.sweep.cache import SlabCache
from stratalens.analyses.sweep.cache_files import ROOT, is_group, read_group, set_aside
from stratalens.store.errors import DamagedError
from stratalens.store.integrity.report import VerifyReport
from stratalens.store.storage.base import PRIVATE
from stratalens.store.storage.local import LocalStorage


def is_results_folder(folder: Path) -> bool:
    """Return whether a folder has cached results: it is no store, and is named so or has a sealed group."""
    if not folder.is_dir() or (folder / PRIVATE).exists() or (folder / ROOT).exists():
        return False
    return folder.name.endswith(".results") or bool(_groups(folder))


def verify_results(folder: Path, *, repair: bool = False) -> VerifyReport:
    """Compare every cached result with its checksums.

    Args:
        folder: folder of cached results, such as run.zarr.results.
        repair: remove damaged results; the analysis computes them again.

    Returns:
        The report: `files` counts results, `blocks` finished slabs. Results of `stratalens analyze` have no
        checksums; they are opened and read, and named as notes.
    """
    report = VerifyReport()
    damaged: list[Path] = []
    for path in _groups(folder):
        try:
            cache = SlabCache(path, json.loads(read_group(path).attrs["identity"]))
            places = cache.damaged_slabs()
            report.blocks += cache.finished
        except Exception as error:  # libraries raise anything when bytes are damaged
            report.add_damage("results", path, str(error), path.name)
            damaged.append(path)
            continue
        report.files += 1
        report.nbytes += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        for stage, layer in places:
            what = "a result differs from its checksum, or cannot be read"
            report.add_damage("results", path, what, f"{path.name}, stage {stage}, layer {layer}")
        damaged += [path] if places else []
    _read_written(folder, report)
    if repair and damaged:
        for path in damaged:
            set_aside(path)
        report = verify_results(folder)
        report.repaired = [f"{path.name} was removed; the analysis computes it again" for path in damaged]
    return report


def _groups(folder: Path) -> list[Path]:
    """List the cached groups of a folder."""
    return [path for path in sorted(folder.iterdir()) if is_group(path) and not path.name.startswith(".")]


def _read_written(folder: Path, report: VerifyReport) -> None:
    """Read the results that `stratalens analyze` wrote."""
    for path in sorted(folder.glob("*/*.zarr")):
        try:
            if LocalStorage(path).get(ROOT) is None:
                raise DamagedError("its zarr.json is missing")
            xr.open_zarr(path, consolidated=False, chunks=None).load()
        except Exception as error:  # as above
            report.add_damage("results", path, str(error), f"{path.parent.name}/{path.name}")
            continue
        report.files += 1
        report.notes.append(f"{path.parent.name}/{path.name} can be read; it has no checksums")
