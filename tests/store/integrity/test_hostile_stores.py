"""A store from a stranger writes nothing outside its folder, takes no memory and ends in one clear error."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratalens.store import info, open_store, relabel, verify_store
from stratalens.store.errors import StratalensError
from stratalens.store.format import label_codec, metadata
from stratalens.store.format.checksum import crc32c
from stratalens.store.state import commit_log
from support.crash_scenarios import labels, record

ROOTS = ("zarr.json", ".stratalens/root.json")


@pytest.fixture(scope="module")
def whole(module_path: Path) -> Path:
    path = module_path / "whole.zarr"
    record(path, dtype="bfloat16", compression="zstd")
    return path


@pytest.fixture
def store(tmp_path: Path, whole: Path) -> Path:
    (tmp_path / "in").mkdir()
    return Path(shutil.copytree(whole, tmp_path / "in" / "run.zarr"))


def reseal(store: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the root and its copy, and give them a correct checksum."""
    document = json.loads((store / "zarr.json").read_bytes())
    state = document["attributes"]["stratalens"]
    change(state)
    state.pop("checksum", None)
    state["checksum"] = f"{crc32c(metadata.canonical(document)):08x}"
    for name in ROOTS:
        (store / name).write_bytes(metadata.canonical(document))


def use(store: Path) -> list[str]:
    """Do everything with a store; return the messages of errors, all of which are ours."""
    calls: list[Callable[[], object]] = [
        lambda: open_store(store).load(),
        lambda: info(store),
        lambda: verify_store(store),
        lambda: verify_store(store, repair=True),
        lambda: relabel(store, {"entity": labels()["entity"], "split": ["a"] * 10}),
        lambda: record(store, dtype="bfloat16", compression="zstd"),
    ]
    messages = []
    for call in calls:
        try:
            call()
        except StratalensError as error:
            messages.append(str(error))
    return messages


def outside(store: Path) -> list[Path]:
    folder = store.parent.parent
    return sorted(p for p in folder.rglob("*") if store not in (p, *p.parents))


OUTSIDE = ["../../pwned", "..", ".", "a/b", "a\\b", "", "zarr.json"]


@pytest.mark.parametrize("name", [*OUTSIDE, "stage", "layer", "recorded"])
@pytest.mark.parametrize("where", ["label", "dim", "coordinate", "variable"])
def test_names_stay_in_the_folder(store: Path, name: str, where: str) -> None:
    def change(state: dict[str, Any]) -> None:
        variable = state["groups"][0][0]
        if where == "label":
            state["labels"][name] = "string"
        elif where == "dim":
            variable["dims"][-1] = name
        elif where == "coordinate":
            variable["coords"] = {name: [1, 2, 3, 4]}
        else:
            variable["name"] = name

    reseal(store, change)
    before = outside(store)
    use(store)
    assert outside(store) == before
    if name in OUTSIDE:
        with pytest.raises(StratalensError, match="content is not that of a store"):
            open_store(store)


NUMBERS = [10**12, -1, 0, 1 << 70, True, 1.5, None, "x", [], {}]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_every_field_of_another_type_or_size_is_an_error(store: Path, value: Any) -> None:
    original = {name: (store / name).read_bytes() for name in ROOTS}
    state = json.loads(original["zarr.json"])["attributes"]["stratalens"]
    fields = [name for name in state if name != "checksum"]
    for field in fields:
        reseal(store, lambda state, field=field: state.update({field: value}))  # type: ignore[misc]
        for call in (open_store, info, verify_store):
            with contextlib.suppress(StratalensError):
                call(store)
        for name, data in original.items():
            (store / name).write_bytes(data)


def test_rows_that_the_files_do_not_have_cost_nothing(store: Path) -> None:
    reseal(store, lambda state: state.update(entities=10**12, block_size=1))
    for call in (open_store, info):
        with pytest.raises(StratalensError, match="1000000000000 rows"):
            call(store)  # type: ignore[operator]
    assert not verify_store(store).ok


def test_a_shape_that_the_files_do_not_have_costs_nothing(store: Path) -> None:
    reseal(store, lambda state: state["groups"][0][0].update(shape=[10**9]))
    assert not verify_store(store).ok
    reseal(store, lambda state: state["groups"][0][0].update(shape=[10**15]))
    with pytest.raises(StratalensError, match="shape is"):
        open_store(store)


def bomb(size: int) -> bytes:
    from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

    return bytes(Zstd(level=1).encode(bytes(size)))


@pytest.mark.parametrize(
    "content",
    [
        (2**31 - 1).to_bytes(4, "little"),
        b"\x0a\0\0\0" + b"\xff\xff\xff\x7f" * 10,
        b"no zstd frame at all",
        b"\x28\xb5\x2f\xfd\xa0\xff\xff\xff\xff\0\0\0",  # declares 4 GB
        b"",
    ],
    ids=["count", "lengths", "no frame", "declared size", "empty"],
)
def test_label_files_that_would_take_all_memory(store: Path, content: bytes) -> None:
    from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

    raw = content if content[:1] in (b"n", b"\x28", b"") else bytes(Zstd(level=1).encode(content))
    (store / "prompt/c.0").write_bytes(raw + crc32c(raw).to_bytes(4, "little"))
    with pytest.raises(StratalensError, match="prompt"):
        open_store(store).load()
    assert [d.kind for d in verify_store(store).damaged] == ["label"]


def test_a_declared_size_is_read_from_the_frame() -> None:
    for size in (1, 255, 256, 65535, 70000, 1 << 20):
        assert label_codec.frame_content_size(bomb(size)) == size
    assert label_codec.frame_content_size(b"abcdefgh") is None


def test_labels_that_could_not_be_read_again_are_refused_when_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_codec, "_most_bytes", lambda compressed: 1000)
    with pytest.raises(StratalensError, match="repeats itself"):
        label_codec.encode_chunks(np.array(["x" * 2000], dtype=object), 1)


def test_a_compressed_chunk_that_declares_another_size_is_damage(store: Path) -> None:
    path = next((store / "resid_post").glob("c.0.*"))
    data = bytearray(path.read_bytes())
    start = data.index(b"\x28\xb5\x2f\xfd")
    data[start + 5] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(StratalensError, match="resid_post"):
        open_store(store, verify=False).resid_post.load()


@pytest.mark.parametrize(
    "key", ["zarr.json", "prompt/c.0", "resid_post/c.0.0.0.0.0", ".stratalens/commits/0000.0", ".stratalens/root.json"]
)
def test_a_named_pipe_or_a_device_hangs_nothing(store: Path, key: str) -> None:
    (store / key).unlink()
    os.mkfifo(store / key)
    assert use(store) or verify_store(store).ok
    (store / key).unlink(missing_ok=True)
    (store / key).symlink_to("/dev/zero")
    use(store)


def test_a_sparse_document_is_not_read(store: Path) -> None:
    os.truncate(store / "zarr.json", 1 << 40)
    with pytest.raises(StratalensError, match="has 1099511627776 bytes"):
        open_store(store)


@pytest.mark.parametrize("text", ['{"attributes":null}', "[]", "[" * 100_000, "1" * 5000, "null", '{"attributes":[]}'])
def test_a_root_that_is_other_json_is_an_error(store: Path, text: str) -> None:
    for name in ROOTS:
        (store / name).write_text(text)
    assert len(use(store)) >= 4  # verify reports the damage


def test_records_with_a_correct_checksum_and_other_content(store: Path) -> None:
    path = store / ".stratalens/commits/0000.0"
    record_of_stage = commit_log.decode(path.read_bytes(), "record")
    for field in record_of_stage:
        for value in (None, -1, 1 << 80, "x", [], {}, {"resid_post": 1}, {"resid_post": "zz"}, {"a": "é" * 8}):
            path.write_bytes(commit_log.encode({**record_of_stage, field: value}))
            with_error = 0
            for call in (open_store, info):
                try:
                    call(store)
                except StratalensError:
                    with_error += 1
            assert with_error in (0, 2)
            verify_store(store)


def test_a_backup_beside_a_coordinate_is_a_note(store: Path) -> None:
    shutil.copy(store / "stage/c.0", store / "stage/c.0.bak")
    record(store, dtype="bfloat16", compression="zstd")
    assert any("'c.0.bak'" in note for note in verify_store(store).notes)


def test_digits_of_other_scripts_in_file_names(store: Path) -> None:
    """ "²".isdigit() is true, and int("²") is an error."""
    for name in ("²", "0.²", "².0.0000000"):
        (store / ".stratalens" / "commits" / name).write_bytes(b"{}")
    assert [message for message in use(store) if "split" not in message] == []  # a column that the new table has not
