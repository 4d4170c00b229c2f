"""Verification finds and names every flipped bit; repair marks the block for recording again."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from stratalens.store import ActivationWriter, open_store, verify_store
from stratalens.store.errors import DamagedError, InputError, StoreBusyError
from stratalens.store.state.manifest import load
from stratalens.store.storage.local import LocalStorage
from support.stores import make_store
from support.synthetic_writer import ENTITIES, content, stream

FLIPS = 500


@pytest.fixture(scope="module")
def clean(module_path: Path) -> Path:
    stream(module_path / "clean.zarr")
    return module_path / "clean.zarr"


@pytest.fixture
def run(tmp_path: Path, clean: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "run.zarr"))


def flip(path: Path, bit: int) -> bytes:
    before = path.read_bytes()
    data = bytearray(before)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return before


def test_an_intact_store_is_ok(run: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = verify_store(run, progress=lambda done, total: seen.append((done, total)))
    assert report.ok
    assert not report.missing
    assert seen[-1][0] == seen[-1][1] == report.nbytes > 0
    assert report.files == len(seen)
    assert report.blocks == 12  # 3 stages of 4 blocks
    assert report.to_json()["blocks"] == 12


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    run = make_store(tmp_path / "small.zarr", 2, 2, 7, block_size=4, statistics=False)
    generator = random.Random(0)
    files = [p for p in sorted(run.rglob("*")) if p.is_file() and p.stat().st_size]
    kinds = set()
    for number in range(FLIPS):
        path = files[number % len(files)]
        before = flip(path, generator.randrange(8 * path.stat().st_size))
        report = verify_store(run, workers=1)
        assert not report.ok, f"flip {number} in {path.relative_to(run)} was not found"
        assert any(str(path) in d.path or path.parent.name in d.path for d in report.damaged)
        kinds |= {d.kind for d in report.damaged}
        path.write_bytes(before)
    assert kinds >= {"metadata", "coordinate", "label", "commit", "data", "history"}
    assert verify_store(run).ok


def test_the_damaged_chunk_is_named_and_reading_it_says_the_same(run: Path) -> None:
    store = load(LocalStorage(run))
    layout = store.layouts["resid_post"]
    path = run / layout.key(1, 2)
    flip(path, 8 * (layout.inner_stride * 2 + 5))
    (damage,) = verify_store(run).damaged
    assert (damage.stage, damage.site, damage.layer, damage.rows) == ("s1", "resid_post", 2, (12, 18))
    assert str(damage).startswith("stage 's1', resid_post, layer 2, entity rows 12 to 17: bytes differ")
    for chunks in ("auto", None):
        for dtype in ("float32", "bits"):
            ds = open_store(run, chunks=chunks, dtype=dtype)  # type: ignore[arg-type]
            with pytest.raises(DamagedError, match="stage 's1', resid_post, layer 2, entity rows 12 to 17 is damaged"):
                ds.resid_post.sel(stage="s1", layer=2).load()
            with pytest.raises(DamagedError, match="entity rows 12 to 17"):
                ds.resid_post.isel(stage=1, layer=2, entity=13, token=0).load()
            ds.resid_post.sel(stage="s1", layer=1).load()
            if chunks is None:  # a dask chunk has several blocks and is read completely
                ds.resid_post.sel(stage="s1", layer=2).isel(entity=slice(0, 12)).load()
    open_store(run, verify=False).resid_post.load()


def test_repair_marks_what_is_damaged_and_a_resume_records_just_that(run: Path, clean: Path) -> None:
    store = load(LocalStorage(run))
    flip(run / store.layouts["resid_post"].key(1, 2), 77)
    (run / store.layouts["embed"].key(0, 0)).unlink()
    with (run / store.layouts["resid_post_l2"].key(2, 3)).open("ab") as file:
        file.write(b"x")
    report = verify_store(run, repair=True)
    assert report.ok
    assert len(report.missing) == 3
    assert len(report.repaired) == 3
    ds = open_store(run)
    expected = np.ones((3, ENTITIES), bool)
    expected[1, 12:18] = expected[0, 0:6] = expected[2, 18:] = False
    np.testing.assert_array_equal(ds.recorded.values, expected)
    with ActivationWriter(run) as writer:
        pending = [
            (s, b.index)
            for s, name in enumerate(("s0", "s1", "s2"))
            for b in writer.stage(name, order=s, fingerprint=f"sha256:{name}").pending()
        ]
    assert pending == [(0, 0), (1, 2), (2, 3)]
    stream(run)
    assert content(run) == content(clean)


@pytest.mark.parametrize(
    "name",
    [
        "zarr.json",
        ".stratalens/root.json",
        "resid_post/zarr.json",
        "stage/c.1",
        ".stratalens/commits/0001.0",
        "token/c.0",
        "history",
    ],
)
def test_metadata_and_records_are_rebuilt(run: Path, clean: Path, name: str) -> None:
    path = run / (".stratalens/history.jsonl" if name == "history" else name)
    flip(path, 8 * (path.stat().st_size // 2))
    assert not verify_store(run).ok
    report = verify_store(run, repair=True)
    assert report.ok
    assert report.repaired
    assert content(run) == content(clean)
    assert open_store(run).recorded.values.all()


def test_a_lost_root_comes_back(run: Path, clean: Path) -> None:
    (run / "zarr.json").unlink()
    with pytest.raises(InputError, match="repair"):
        open_store(run)
    assert verify_store(run, repair=True).ok
    assert content(run) == content(clean)


def test_a_whole_file_of_another_block_is_found(run: Path) -> None:
    layout = load(LocalStorage(run)).layouts["resid_post"]
    shutil.copy(run / layout.key(1, 0), run / layout.key(2, 0))
    (damage,) = verify_store(run).damaged
    assert "not the one that was committed" in str(damage)


def test_labels_of_another_store_are_found(run: Path, tmp_path: Path) -> None:
    other = make_store(tmp_path / "o.zarr", ["s0"], entities=ENTITIES, labels={"entity_id": ["x"] * ENTITIES})
    shutil.copy(other / "entity_id" / "c.0", run / "entity_id" / "c.0")
    (damage,) = verify_store(run).damaged
    assert damage.kind == "label"


def test_damaged_labels_are_written_again_by_the_same_capture(run: Path, clean: Path) -> None:
    flip(run / "prompt" / "c.0", 99)
    with pytest.raises(DamagedError, match="label column 'prompt'"):
        open_store(run)
    (damage,) = verify_store(run).damaged
    place = f"label column 'prompt', entity rows 0 to {ENTITIES - 1}: differs from its checksum: "
    assert (str(damage).startswith(place), str(damage).count("label column")) == (True, 1)
    stream(run)
    assert content(run) == content(clean)


def test_repair_raises_while_a_writer_is_open(run: Path) -> None:
    flip(run / "stage" / "c.0", 5)
    with ActivationWriter(run):
        flip(run / "stage" / "c.1", 5)
        with pytest.raises(StoreBusyError, match="being written by process"):
            verify_store(run, repair=True)


def test_missing_rows_are_not_damage(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 3, entities=10, stop_before="s2")
    with ActivationWriter(path) as writer, writer.stage("s2", order=2, fingerprint="f"):
        pass
    report = verify_store(path)
    assert report.ok
    assert report.missing == ["stage 's2', resid_post, entity rows 0 to 9"]
