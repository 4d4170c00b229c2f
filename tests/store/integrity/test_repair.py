"""Reads during a repair return true values, or raise an error that names the missing data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import open_store, verify_store
from stratalens.store.errors import DamagedError, NotRecordedError, StratalensError
from stratalens.store.state.manifest import load
from stratalens.store.storage.disk import DiskOperations
from stratalens.store.storage.local import LocalStorage
from support.synthetic_writer import ENTITIES, content, stream

SITES = ("resid_post", "embed", "resid_post_l2")
BLOCK = 6
LOST = {("s1", 2), ("s0", 0), ("s2", 3)}


@pytest.fixture(scope="module")
def clean(module_path: Path) -> Path:
    stream(module_path / "clean.zarr")
    return module_path / "clean.zarr"


@pytest.fixture(scope="module")
def known(clean: Path) -> xr.Dataset:
    return open_store(clean, chunks=None).load()


@pytest.fixture
def run(tmp_path: Path, clean: Path) -> Path:
    """Copy a store and damage three blocks, a commit record and a coordinate."""
    path = Path(shutil.copytree(clean, tmp_path / "run.zarr"))
    layouts = load(LocalStorage(path)).layouts
    for key, at in ((layouts["resid_post"].key(1, 2), 9), ("stage/c.1", 20), (".stratalens/commits/0001.0", 30)):
        data = bytearray((path / key).read_bytes())
        data[at] ^= 4
        (path / key).write_bytes(data)
    (path / layouts["embed"].key(0, 0)).unlink()
    (path / layouts["resid_post_l2"].key(2, 3)).write_bytes(b"x")
    return path


def blocks() -> list[slice]:
    return [slice(start, min(start + BLOCK, ENTITIES)) for start in range(0, ENTITIES, BLOCK)]


def compare(ds: xr.Dataset, known: xr.Dataset) -> set[tuple[str, int]]:
    """Compare every block with the known values; return the (stage, block) that raise an error."""
    failed = set()
    for stage in known.stage.values.tolist():
        for number, rows in enumerate(blocks()):
            part, wanted = ds.sel(stage=stage).isel(entity=rows), known.sel(stage=stage).isel(entity=rows)
            for site in SITES:
                text = ""
                try:
                    recorded = part.recorded.values
                    values = part[site].values
                except (DamagedError, NotRecordedError) as error:
                    text = str(error)
                if text:
                    assert f"stage {stage!r}" in text
                    assert f"entity rows {rows.start} to {rows.stop - 1}" in text
                    failed.add((stage, number))
                    continue
                axis = wanted[site].dims.index("entity")
                np.testing.assert_array_equal(
                    np.compress(recorded, values, axis), np.compress(recorded, wanted[site].values, axis)
                )
                assert np.isnan(np.compress(~recorded, values, axis)).all()
    return failed


def at_every_step(monkeypatch: pytest.MonkeyPatch, look: Callable[[], None]) -> list[str]:
    """Call `look` before every change of the disk."""
    steps: list[str] = []
    busy: list[bool] = []
    for name in ("open", "write", "rename", "unlink", "fsync_folder", "mkdir"):
        original = getattr(DiskOperations, name)

        def step(self: DiskOperations, *arguments: Any, original: Any = original, name: str = name) -> Any:
            if not busy:
                busy.append(True)
                look()
                busy.clear()
            result = original(self, *arguments)
            steps.append(name)
            return result

        monkeypatch.setattr(DiskOperations, name, step)
    return steps


def test_readers_during_a_repair(run: Path, clean: Path, known: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """One reader opens the store before the repair, with an intact commit record; others open it at every step."""
    record = run / ".stratalens/commits/0001.0"
    damaged = record.read_bytes()
    record.write_bytes((clean / ".stratalens/commits/0001.0").read_bytes())
    before = open_store(run, chunks=None)
    record.write_bytes(damaged)
    refused, seen = [], []

    def look() -> None:
        assert compare(before, known) <= LOST
        try:
            ds = open_store(run, chunks=None)
        except StratalensError as error:
            refused.append(str(error))
            return
        seen.append(compare(ds, known))
        assert seen[-1] <= LOST
        assert ds.recorded.isel(stage=2).values[: 3 * BLOCK].all()

    with monkeypatch.context() as patch:
        steps = at_every_step(patch, look)
        report = verify_store(run, repair=True)
    assert report.ok
    assert len(report.missing) == 3
    assert {"open", "rename", "unlink"} <= set(steps)
    assert refused, "the damaged commit record stops a reader that opens the store before it is rebuilt"
    assert all("0001.0" in text for text in refused)

    with pytest.raises(DamagedError, match="stage 's1', resid_post, layer 0, entity rows 12 to 17"):
        before.resid_post.isel(
            stage=1, entity=12
        ).load()  # not in the rebuilt record; the repair keeps its intact files
    for stage, block in LOST - {("s1", 2)}:
        rows = blocks()[block]
        with pytest.raises(NotRecordedError, match=r"marked as missing by a repair since .* open it again"):
            before.recorded.sel(stage=stage).isel(entity=rows).load()
    after = open_store(run, chunks=None)
    gone = {
        (s, b)
        for s in after.stage.values.tolist()
        for b, rows in enumerate(blocks())
        if not after.recorded.sel(stage=s).values[rows].any()
    }
    assert gone == LOST
    assert compare(after, known) == set(), "after the repair nothing is damaged: what is gone is missing"

    stream(run)  # recorded again while the first reader is still open
    assert compare(before, known) == set()
    assert content(run) == content(clean)
