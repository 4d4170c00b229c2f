"""An export that is interrupted leaves no file that another one describes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stratalens.store.errors import StoreBusyError, StratalensError
from stratalens.store.format.checksum import crc32c
from stratalens.store.interop.export import export_array
from stratalens.store.storage.local_locks import FileLock
from support.stores import make_store


@pytest.fixture(scope="module")
def store(module_path: Path) -> Path:
    return make_store(module_path / "run.zarr", stages=2, layers=2, entities=6, statistics=False)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_failed_export_leaves_the_old_one(
    store: Path, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / f"x{suffix}"
    export_array(store, site="resid_post", layer=0, target=target)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StratalensError, match=r"no space left for .*x"):
            export_array(store, site="resid_post", layer=1, target=target)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_no_description_exists_while_the_array_is_replaced(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "x.npy"
    export_array(store, site="resid_post", layer=0, target=target)
    replace = Path.replace

    def killed(source: Path, name: Path) -> Path:
        if Path(name) == target:
            raise SystemExit
        return replace(source, name)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(SystemExit):
            export_array(store, site="resid_post", layer=1, target=target)
    assert not target.with_name("x.npy.json").exists()
    export_array(store, site="resid_post", layer=1, target=target)
    facts = json.loads(target.with_name("x.npy.json").read_text())
    assert (facts["layer"], facts["bytes"]) == (1, target.stat().st_size)
    assert facts["crc32c"] == f"{crc32c(target.read_bytes()):08x}"
    assert np.load(target).shape == (2, 6, 1, 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.npy", "x.npy.json"]


def test_two_exports_to_one_file_do_not_mix(store: Path, tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "x.npy.part")
    assert lock.try_acquire()
    with pytest.raises(StoreBusyError, match="written by another process"):
        export_array(store, site="resid_post", layer=1, target=tmp_path / "x.npy")
    lock.release(unlink=True)
    export_array(store, site="resid_post", layer=1, target=tmp_path / "x.npy")
