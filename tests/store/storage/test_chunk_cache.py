"""The local cache of chunks: its limit, the order of removal, several processes, a disk that refuses."""

from __future__ import annotations

import multiprocessing
import os
import random
from pathlib import Path

import crc32c
import pytest

from stratalens.store.storage.chunk_cache import ChunkCache, entry_name, is_intact
from stratalens.store.storage.remote_handle import read_through_cache


def chunk(number: int, nbytes: int = 1000) -> bytes:
    body = random.Random(number).randbytes(nbytes - 4)
    return body + crc32c.crc32c(body).to_bytes(4, "little")


def name(number: int) -> str:
    return entry_name("store", "resid_post/c.0", number * 1000, 1000)


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_the_least_recently_used_are_removed_first(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, 20_000)
    for number in range(60):
        assert cache.put(name(number), chunk(number))
        os.utime(cache._path(name(number)), (number, number))
        assert cache.get(name(0)) == chunk(0)  # in use
        assert size(tmp_path) <= 21_000
    assert cache.trim() <= 20_000
    present = [number for number in range(60) if cache.get(name(number)) is not None]
    assert present[0] == 0
    assert present[1:] == list(range(60 - len(present) + 1, 60))


def test_only_intact_chunks_are_stored(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path / "cache", 20_000)
    for data in (b"", b"1234", chunk(1)[:-1], b"x" + chunk(1), chunk(2, 30_000)):
        assert not cache.put(name(1), data)
    assert not (tmp_path / "cache").exists()
    assert is_intact(chunk(1))


def test_a_disk_that_refuses_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = ChunkCache(tmp_path / "file" / "cache", 20_000)
    assert not cache.put(name(1), chunk(1))
    assert cache.get(name(1)) is None
    assert cache.trim() == 0


def use(folder: Path, seed: int, errors: list[str]) -> None:
    cache, choose = ChunkCache(folder, 15_000), random.Random(seed)
    for _ in range(150):
        number = choose.randrange(40)
        data = cache.get(name(number))
        if data is None:
            cache.put(name(number), chunk(number))
        elif data != chunk(number):
            os._exit(3)
        if choose.random() < 0.05:  # as a bad disk would
            path = cache._path(name(choose.randrange(40)))
            if path.exists():
                path.write_bytes(chunk(1)[:500])


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    users = [fork.Process(target=use, args=(tmp_path, seed, [])) for seed in range(4)]
    for process in users:
        process.start()
    for process in users:
        process.join(60)
        assert process.exitcode == 0
    assert ChunkCache(tmp_path, 15_000).trim() <= 15_000
    assert list(tmp_path.rglob("*.tmp")) == []


@pytest.mark.parametrize("warm", [(), (1,), (0, 2), (0, 1, 2, 3)])
def test_ranges_are_cut_from_chunks_and_missing_ones_asked_together(tmp_path: Path, warm: tuple[int, ...]) -> None:
    content = b"".join(map(chunk, range(4))) + b"the index at the end"
    cache = ChunkCache(tmp_path, 10**6)
    asked: list[tuple[int, int]] = []

    def read(key: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        asked.extend(ranges)
        return [content[offset : offset + nbytes] for offset, nbytes in ranges]

    def ask(*ranges: tuple[int, int]) -> None:
        asked.clear()
        parts = read_through_cache(cache, "v", "k", ranges, 1000, read)  # type: ignore[arg-type]
        assert list(parts) == [content[offset : offset + nbytes] for offset, nbytes in ranges]

    for number in warm:
        ask((number * 1000, 1000))
        assert asked == [(number * 1000, 1000)]
    ask((1300, 200), (1990, 20))  # rows of one chunk; over the border of two
    assert asked == ([] if 1 in warm else [(1300, 200)]) + [(1990, 20)]
    ask((0, 4000))
    runs = {(): [(0, 4000)], (1,): [(0, 1000), (2000, 2000)], (0, 2): [(1000, 1000), (3000, 1000)]}
    assert asked == runs.get(warm, [])
    ask((0, 4000), (4000, 20), (2500, 100))
    assert asked == [(4000, 20)]  # not a chunk: it does not end with its crc32c
    ask((3000, 5500))  # beyond the end
    assert asked == [(3000, 5500)]
