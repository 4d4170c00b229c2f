"""Bad input and bad folders: each gives one clear error and leaves the folder unchanged."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from stratalens.store import ActivationWriter, create, open_store, verify_store
from stratalens.store.errors import DamagedError, InputError, StoreExistsError, StratalensError
from stratalens.store.format import metadata as documents
from stratalens.store.format.schema import Variable, site_variable
from stratalens.store.state.manifest import load
from stratalens.store.storage.local import LocalStorage
from support.stores import make_labels
from support.synthetic_writer import content, make, stream, variables

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def clean(module_path: Path) -> Path:
    stream(module_path / "clean.zarr")
    return module_path / "clean.zarr"


def shard(path: Path, variable: str = "resid_post") -> Path:
    return path / load(LocalStorage(path)).layouts[variable].key(1, 1)


def rewrite_root(path: Path, change: Callable[[dict[str, Any]], object], *, sealed: bool) -> None:
    document = json.loads((path / "zarr.json").read_bytes())
    change(document["attributes"]["stratalens"])
    if sealed:
        raw = documents.encode_root(document["attributes"], document["consolidated_metadata"]["metadata"])
    else:
        raw = documents.canonical(document)
    (path / "zarr.json").write_bytes(raw)


def edit_with_zarr(path: Path) -> None:
    zarr.open_group(path, mode="r+").attrs["note"] = "mine"


def cut(path: Path, size: int) -> None:
    os.truncate(path, size)


def swap_bytes(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


def only_commit(path: Path) -> Path:
    return path / ".stratalens" / "commits" / "0001.0"


@dataclass
class Folder:
    name: str
    spoil: Spoil
    error: type[Exception]
    says: str
    act: Callable[[Path], object] = field(default=lambda path: open_store(path, chunks=None).load())


FOLDERS = [
    Folder("truncated shard", lambda p: cut(shard(p), 100), DamagedError, "'s1', resid_post.* rows 6 to 11.*short"),
    Folder("zero-length shard", lambda p: cut(shard(p), 0), DamagedError, "too short.*repair"),
    Folder("missing shard", lambda p: shard(p).unlink(), DamagedError, "the file is missing.*repair"),
    Folder("shard is a folder", lambda p: (shard(p).unlink(), shard(p).mkdir()), StratalensError, "resid_post"),
    Folder("changed data", lambda p: swap_bytes(shard(p), 9), DamagedError, "layer 0.*differ from their checksum"),
    Folder("changed plain file", lambda p: swap_bytes(shard(p, "embed"), 9), DamagedError, "embed.*differ"),
    Folder("changed checksum", lambda p: swap_bytes(shard(p, "embed"), -1), DamagedError, "embed.*differ"),
    Folder("truncated label", lambda p: cut(p / "prompt/c.0", 3), DamagedError, "label column 'prompt'.*same prompts"),
    Folder("missing label", lambda p: (p / "entity/c.0").unlink(), DamagedError, "'entity'.*is missing"),
    Folder("empty root", lambda p: cut(p / "zarr.json", 0), DamagedError, "not JSON.*repair"),
    Folder("truncated root", lambda p: cut(p / "zarr.json", 500), DamagedError, "not JSON.*repair"),
    Folder("root is not ours", lambda p: (p / "zarr.json").write_text("{}"), DamagedError, "lost its .stratalens."),
    Folder("root is a list", lambda p: (p / "zarr.json").write_text("[]"), DamagedError, "lost its"),
    Folder("root with a byte order mark", lambda p: (p / "zarr.json").write_bytes(b"\xff\xfe{}"), DamagedError, "JSON"),
    Folder("edited with zarr", edit_with_zarr, DamagedError, "damaged or edited.*repair"),
    Folder("edited by hand", lambda p: rewrite_root(p, lambda s: s.update(entities=9), sealed=False), DamagedError,
           "edited"),
    Folder("no checksum", lambda p: rewrite_root(p, lambda s: s.pop("checksum"), sealed=False), DamagedError, "edited"),
    Folder("newer format", lambda p: rewrite_root(p, lambda s: s.update(format_version="2.0"), sealed=True), InputError,
           "format version '2.0'; this stratalens reads 1.x.*pip install"),
    Folder("no format", lambda p: rewrite_root(p, lambda s: s.pop("format_version"), sealed=True), InputError,
           "version"),
    Folder("lost root", lambda p: (p / "zarr.json").unlink(), InputError, "interrupted, or .*removed.*repair"),
    Folder("truncated commit", lambda p: cut(only_commit(p), 20), DamagedError, "commit record.*checksum.*repair"),
    Folder("empty commit", lambda p: cut(only_commit(p), 0), DamagedError, "commit record"),
    Folder("copied commit", lambda p: shutil.copy(only_commit(p), only_commit(p).with_name("0002.0")), DamagedError,
           "refers to 0001.0"),
    Folder("newer format, writing", lambda p: rewrite_root(p, lambda s: s.update(format_version="2.0"), sealed=True),
           InputError, "pip install", ActivationWriter),
    Folder("edited, writing", edit_with_zarr, DamagedError, "edited", ActivationWriter),
    Folder("root lost, capturing", lambda p: (p / "zarr.json").unlink(), DamagedError, "recorded data.*repair", make),
]  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS, ids=lambda case: case.name)
def test_spoiled_stores(tmp_path: Path, clean: Path, case: Folder) -> None:
    path = Path(shutil.copytree(clean, tmp_path / "run ü.zarr"))
    case.spoil(path)
    before = content(path)
    with pytest.raises(case.error, match=f"(?s){case.says}") as caught:
        case.act(path)
    assert isinstance(caught.value, StratalensError)
    assert content(path) == before


def test_missing_commit_records_are_missing_rows(tmp_path: Path, clean: Path) -> None:
    path = Path(shutil.copytree(clean, tmp_path / "run.zarr"))
    only_commit(path).unlink()
    ds = open_store(path)
    assert ds.recorded.values.all(axis=1).tolist() == [True, False, True]
    assert np.isnan(ds.resid_post.sel(stage="s1").values).all()
    stream(path)
    assert content(path) == content(clean)


def test_an_older_minor_version_is_read(tmp_path: Path, clean: Path) -> None:
    path = Path(shutil.copytree(clean, tmp_path / "run.zarr"))
    rewrite_root(path, lambda state: state.update(format_version="1.7"), sealed=True)
    assert open_store(path).recorded.values.all()


def test_foreign_files_are_left_alone(tmp_path: Path, clean: Path) -> None:
    path = Path(shutil.copytree(clean, tmp_path / "run.zarr"))
    (path / "notes.txt").write_text("mine")
    (path / "folder").mkdir()
    (path / "resid_post" / "README").write_text("mine")
    stream(path)
    assert (path / "notes.txt").read_text() == (path / "resid_post" / "README").read_text() == "mine"
    assert verify_store(path).ok
    assert open_store(path).recorded.values.all()


def test_links_and_odd_paths(tmp_path: Path, clean: Path) -> None:
    target = Path(shutil.copytree(clean, tmp_path / "a b é 日本.zarr"))
    link = tmp_path / "link"
    link.symlink_to(target)
    assert open_store(link).recorded.values.all()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for act in (open_store, make, verify_store):
        with pytest.raises(InputError, match="loop"):
            act(loop)


def test_paths_that_hold_no_store(tmp_path: Path, clean: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    foreign = tmp_path / "foreign.zarr"
    zarr.create_group(foreign)
    full = tmp_path / "full"
    full.mkdir()
    (full / "photo.jpg").write_text("x")
    above = tmp_path / "above"
    shutil.copytree(clean, above / "run.zarr")
    for act, path, says in [
        (open_store, tmp_path / "nowhere", "there is no store at"),
        (open_store, file, "is a file"),
        (open_store, foreign, "stratalens did not write"),
        (open_store, full, "holds no store"),
        (open_store, above, r"did you mean .*run\.zarr"),
        (open_store, above / "rnu.zarr", r"no store at .*rnu\.zarr: did you mean .*above/run\.zarr\? Else record one"),
        (open_store, above / "other.zarr", r"its folder contains .*above/run\.zarr\. Else record"),
        (verify_store, tmp_path / "nowhere", "there is no store at"),
        (ActivationWriter, tmp_path / "nowhere", "there is no store at"),
        (make, file, "is a file"),
        (make, file / "run.zarr", "file"),
        (make, foreign, "did not write"),
        (make, full, r"not empty.*photo\.jpg"),
    ]:
        with pytest.raises(InputError, match=says):
            act(path)
    assert sorted(p.name for p in full.iterdir()) == ["photo.jpg"]
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(StoreExistsError, match="holds a store already"):
        create(above / "run.zarr", entities=make_labels(22, ["s0", "s1", "s2"]), layers=range(3),
               tokens=("last", "-2"), variables=variables(), exist_ok=False)  # fmt: skip


SITE = site_variable("resid_post", ["d_model"], [4], "float32", "blocks.{layer}.hook_out")
ROWS = make_labels(4, ["s0", "s1"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"entities": {"entity_id": ["a"]}}, "entities has no 'entity'"),
        ({"entities": {"entity": ["a"]}}, "entities has no 'entity_id'"),
        ({"entities": {"entity": [], "entity_id": []}}, "no rows"),
        ({"entities": {"entity": ["a", "b", "a"], "entity_id": ["x"] * 3}}, r"'a' is listed twice \(rows 0, 2\)"),
        ({"entities": {"entity": ["a", "b"], "entity_id": ["x"]}}, "'entity_id' has 1 values, 'entity' has 2"),
        ({"entities": {**ROWS, "layer": [1] * 4}}, "'layer' has the name of a dim"),
        ({"entities": {**ROWS, "stage_order": [1] * 4}}, "'stage_order' has the name of a dim"),
        ({"entities": {**ROWS, "a/b": [1] * 4}}, "label column 'a/b' cannot name"),
        ({"entities": {**ROWS, "..": [1] * 4}}, "'..' cannot name"),
        ({"entities": {**ROWS, "x\n": [1] * 4}}, "cannot name"),
        ({"entities": {**ROWS, "": [1] * 4}}, "'' cannot name"),
        ({"entities": {**ROWS, "resid_post": [1] * 4}}, "'resid_post' is the name of two arrays"),
        ({"entities": {**ROWS, "z": [1j] * 4}}, "dtype complex"),
        ({"entities": {**ROWS, "z": [["a"], "b", "c", "d"]}}, "list cannot be a label|inhomogeneous"),
        ({"entities": {**ROWS, "z": ["\ud800"] * 4}}, "UTF-8"),
        ({"entities": {**ROWS, "z": np.zeros((4, 2))}}, r"shape \(4, 2\)"),
        ({"layers": []}, "no layers are given"),
        ({"layers": [1, 1]}, "layers must be different"),
        ({"tokens": []}, "one or more different"),
        ({"tokens": ["last", "last"]}, "one or more different"),
        ({"tokens": ["last", -1]}, "all names or all offsets"),
        ({"variables": []}, "nothing to record"),
        ({"variables": [SITE, SITE]}, "two arrays"),
        ({"variables": [Variable("recorded", ("stage", "entity"))]}, "two arrays"),
        ({"provenance": {"x": object()}}, "provenance.x is a object"),
        ({"memory_limit": 10}, "raise memory_limit"),
        ({"block_size": 0}, "block_size is 0"),
    ],
)
def test_bad_arguments_of_create(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"entities": ROWS, "layers": [0, 1], "tokens": ["last"], "variables": [SITE]}
    with pytest.raises((InputError, ValueError), match=says):
        create(tmp_path / "run.zarr", **{**arguments, **changes})
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("name", ["", " ", ".", "..", "a/b", "a\\b", "a\nb", "\x00"])
def test_bad_stage_names(tmp_path: Path, name: str) -> None:
    make(tmp_path / "run.zarr")
    with ActivationWriter(tmp_path / "run.zarr") as writer, pytest.raises(InputError, match="is not usable"):
        writer.stage(name, order=0, fingerprint="f")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a/b", ("stage", "entity")), "cannot name"),
        (("x", ("stage", "token", "entity")), "in that order"),
        (("x", ("stage", "token")), "stage and entity are needed"),
        (("x", ("stage", "entity", "f")), "one positive size"),
        (("x", ("stage", "entity", "f", "f"), (1, 1)), "a dim twice"),
        (("x", ("stage", "entity"), (), "float23"), "did you mean 'float32'"),
    ],
)
def test_bad_variables(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Variable(*arguments)
