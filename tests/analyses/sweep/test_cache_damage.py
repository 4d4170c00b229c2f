"""Cached results that were damaged or half lost are computed again, with a warning, and never read."""

from __future__ import annotations

import random
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import stratalens as sl
from stratalens.analyses.sweep.cache import results_folder
from stratalens.analyses.sweep.cache_checks import is_results_folder, verify_results
from stratalens.store.errors import CacheWarning
from support.stores import make_store


def function(slab: xr.DataArray) -> xr.Dataset:
    mean = slab.mean("entity").rename(d_model="d")
    text = xr.DataArray(np.array([f"{float(slab[0, 0, 0]):.3f}", "b"], object), dims="name")
    nan = xr.full_like(mean, np.copysign(np.nan, -1))  # as 0 / 0 gives it; the fill value of zarr has no sign
    return xr.Dataset({"mean": mean, "text": text, "nan": nan}).assign_coords(d=np.arange(8))


def sweep(store: Path) -> xr.Dataset:
    return sl.sweep(sl.open_store(store), function, cache="means", scheduler="synchronous")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = make_store(tmp_path_factory.mktemp("whole") / "run.zarr", stages=2, layers=2, entities=8, statistics=False)
    sweep(store)
    return store


@pytest.fixture
def store(tmp_path: Path, whole: Path) -> Path:
    for path in (whole, results_folder(whole)):
        shutil.copytree(path, tmp_path / path.name)
    return tmp_path / "run.zarr"


def files(store: Path) -> list[Path]:
    return [path for path in sorted(results_folder(store).rglob("*")) if path.is_file()]


@pytest.fixture(scope="module")
def expected(whole: Path) -> xr.Dataset:
    return sl.sweep(sl.open_store(whole), function, compute=True, scheduler="synchronous")


def test_whole_results_are_read_without_a_warning(store: Path, expected: xr.Dataset) -> None:
    xr.testing.assert_identical(sweep(store), expected)  # a warning is an error


def test_a_flipped_bit_or_a_lost_file_changes_no_result(store: Path, expected: xr.Dataset) -> None:
    generator, warned = random.Random(0), 0
    for number, path in enumerate(files(store)):
        data = path.read_bytes()
        change = ("flip", "lose", "empty", "cut")[number % 4]
        if change == "flip":
            damaged = bytearray(data)
            damaged[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            path.write_bytes(damaged)
        elif change == "lose":
            path.unlink()
        else:
            path.write_bytes(b"" if change == "empty" else data[: len(data) // 2])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            xr.testing.assert_identical(sweep(store), expected)
        assert {w.category for w in caught} <= {CacheWarning}
        warned += bool(caught)
        path.write_bytes(data)
    assert warned > len(files(store)) // 2
    assert verify_results(results_folder(store)).ok


def test_an_intact_cache_is_used_and_says_nothing(store: Path, expected: xr.Dataset) -> None:
    before = {path: path.stat().st_mtime_ns for path in files(store)}
    xr.testing.assert_identical(sweep(store), expected)
    assert before == {path: path.stat().st_mtime_ns for path in files(store)}


def test_leftovers_of_killed_processes_are_removed_and_harmless(store: Path, expected: xr.Dataset) -> None:
    (group,) = results_folder(store).iterdir()
    (group / "mean/c/0/abc.partial").write_bytes(b"half")
    (group / "stray").write_bytes(b"x")
    leftover = group.with_name(f".{group.name}.0123abcd-1")
    leftover.write_bytes(b"half")
    xr.testing.assert_identical(sweep(store), expected)
    shutil.rmtree(group)
    xr.testing.assert_identical(sweep(store), expected)
    assert not leftover.exists()


def test_verify_names_and_removes_damaged_results(store: Path) -> None:
    folder = results_folder(store)
    assert is_results_folder(folder)
    assert not is_results_folder(store)
    report = verify_results(folder)
    assert (report.ok, report.files, report.blocks) == (True, 1, 4)
    chunk = next(path for path in files(store) if "mean/c/1" in str(path))
    chunk.write_bytes(chunk.read_bytes()[:-3])
    damaged = verify_results(folder).damaged
    assert [d.name.split(", ", 1)[1] for d in damaged] == ["stage 1, layer 0", "stage 1, layer 1"]
    repaired = verify_results(folder, repair=True)
    assert repaired.ok
    assert repaired.files == 0
    assert "computes it again" in repaired.repaired[0]
