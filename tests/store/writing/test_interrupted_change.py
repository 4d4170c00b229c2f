"""A writer killed while stages, variables or labels change: verify distinguishes unfinished from damaged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import create, open_store, relabel, verify_store
from stratalens.store.format.schema import site_variable
from stratalens.store.integrity import metadata_checks
from stratalens.store.state.manifest import load
from stratalens.store.storage.local import LocalStorage
from stratalens.store.writing.label_columns import read_labels
from stratalens.store.writing.writer import ActivationWriter
from support import synthetic_writer
from support.crashing_storage import CountingDisk, DyingDisk, forked
from support.synthetic_writer import content, stream
from support.thorough import some

Change = Callable[[LocalStorage], object]


def add_stage(storage: LocalStorage) -> None:
    with ActivationWriter(load(storage)) as writer:
        writer.stage("late", order=9, fingerprint="sha256:late")


def add_variable(storage: LocalStorage) -> None:
    extra = site_variable("ln_final", ["d_model"], [16], "float32", "ln_final.hook_out")
    create(
        storage.root,
        entities=read_labels(load(storage)),
        layers=range(3),
        tokens=("last", "-2"),
        variables=[*synthetic_writer.variables(), extra],
        provenance={"model": "synthetic"},
        block_size=6,
        storage=storage,
    )


def change_labels(storage: LocalStorage) -> None:
    """Change two columns, add one and drop one in one call."""
    rows = range(synthetic_writer.ENTITIES)
    ids = [f"r{i:06d}" for i in rows]
    labels = {"trained_stage": [f"new {i}" for i in rows], "entity_id": [f"n{i}" for i in rows], "score": list(rows)}
    relabel(load(storage), {"entity": ids, **labels}, drop=["template"])


CHANGES: dict[str, Change] = {"stage": add_stage, "variable": add_variable, "labels": change_labels}


def seen(path: Path) -> dict[str, Any]:
    """Return names and coordinates; open_store and xr.open_zarr must agree on them."""
    ours, plain = open_store(path), xr.open_zarr(path, chunks=None)
    names = [str(name) for name in ours.coords if name in plain.coords or name in plain.variables]
    values = {name: ours[name].values.tolist() for name in names}
    assert {name: plain[name].values.tolist() for name in names} == values
    np.testing.assert_array_equal(plain.embed.values, ours.embed.values)
    return {"variables": sorted(map(str, ours.data_vars)), **values}


def flip(path: Path, generator: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = generator.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def documents(path: Path) -> list[Path]:
    """Return the metadata, coordinate and label files that the root refers to."""
    store = load(LocalStorage(path))
    files = [path / "zarr.json", path / ".stratalens" / "root.json"]
    files += [path / name / "zarr.json" for name in store.arrays()]
    files += [path / name / f"c.{n}" for name, coord in store.coordinates().items() for n, _ in coord.files()]
    return files + [path / store.label_key(name, 0) for name in store.label_types]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("what", "times"), [("stage", 0), ("variable", 0), ("labels", 0), ("labels", 1)])
def test_killed_at_every_change_of_the_disk(tmp_path: Path, what: str, times: int) -> None:
    """The store is valid, either before or after the change, for both alternate label files."""
    change, generator = CHANGES[what], random.Random(0)
    clean, path, other = tmp_path / "clean.zarr", tmp_path / "run.zarr", tmp_path / "other.zarr"
    stream(clean, stages=synthetic_writer.STAGES[:1])
    for number in range(times):
        ids = [f"r{i:06d}" for i in range(synthetic_writer.ENTITIES)]
        relabel(clean, {"entity": ids, "trained_stage": [f"{number} {i}" for i in range(synthetic_writer.ENTITIES)]})
    shutil.copytree(clean, path)
    counting = CountingDisk()
    change(LocalStorage(path, counting))
    old, new, whole = seen(clean), seen(path), content(path)
    assert old != new
    states, unfinished = [], 0
    for moment in some(range(1, counting.changes + 1), 3):  # odd and even ones
        shutil.rmtree(path)
        shutil.copytree(clean, path)
        assert forked(lambda m=moment: change(LocalStorage(path, DyingDisk(m, half=m % 2 == 0))))
        report = verify_store(path)
        assert report.ok, report.damaged
        state = seen(path)
        assert state in (old, new)
        states.append(state == new)
        if report.unfinished:
            unfinished += 1
            assert state == old
            shutil.copytree(path, other)
            spoilt = generator.choice(documents(other))  # damage next to the unfinished change is still detected
            before = spoilt.read_bytes()
            flip(spoilt, generator)
            assert not verify_store(other).ok, spoilt.relative_to(other)
            spoilt.write_bytes(before)
            repaired = verify_store(other, repair=True)
            assert (repaired.ok, repaired.unfinished, seen(other)) == (True, [], old)
            shutil.rmtree(other)
        with ActivationWriter(path):  # the next writer undoes the unfinished change
            pass
        report = verify_store(path)
        assert (report.ok, report.unfinished, seen(path)) == (True, [], state)
        if state == old:
            change(LocalStorage(path))
        assert (seen(path), content(path)) == (new, whole)
    assert unfinished > 2
    assert states == sorted(states)  # once new, the state stays new
    assert set(states) == {False, True}


def test_verify_during_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer adds and completes a stage after verify has read the root: no document counts as damaged."""
    path = tmp_path / "run.zarr"
    stream(path, stages=synthetic_writer.STAGES[:1])
    look = metadata_checks.open_roots

    def open_then_write(*arguments: Any) -> Any:
        roots = look(*arguments)
        stream(path)
        return roots

    monkeypatch.setattr(metadata_checks, "open_roots", open_then_write)
    report = verify_store(path)
    assert (report.damaged, report.unfinished) == ([], [])


def test_a_root_older_than_what_was_recorded_is_damage(tmp_path: Path) -> None:
    """After an old zarr.json was restored, the copy has a stage that a commit record refers to."""
    path = tmp_path / "run.zarr"
    stream(path, stages=synthetic_writer.STAGES[:1])
    before = (path / "zarr.json").read_bytes()
    stream(path)
    whole = content(path)
    (path / "zarr.json").write_bytes(before)
    report = verify_store(path)
    assert {d.kind for d in report.damaged} == {"commit"}
    assert "zarr.json is older than the record" in str(report.damaged[0])
    assert verify_store(path, repair=True).ok
    assert content(path) == whole


def test_a_copy_that_is_behind_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    stream(path, stages=synthetic_writer.STAGES[:1])
    before = (path / ".stratalens" / "root.json").read_bytes()
    stream(path)
    (path / ".stratalens" / "root.json").write_bytes(before)
    (damage,) = verify_store(path).damaged
    assert damage.name == "copy of the root metadata"
    assert verify_store(path, repair=True).ok
