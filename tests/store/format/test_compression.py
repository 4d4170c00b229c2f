"""Stores with zstd compression: the same values, the same guarantees, fewer bytes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from stratalens.store import info, open_store, verify_store
from stratalens.store.errors import DamagedError, InputError, MismatchError
from stratalens.store.format.schema import Variable, site_variable
from stratalens.store.state.manifest import load
from stratalens.store.storage.local import LocalStorage
from stratalens.store.writing.create import create
from stratalens.store.writing.writer import ActivationWriter
from support.stores import HOOK, add_stage, make_labels, make_store
from support.synthetic_writer import content

EMBED = site_variable("embed", ["d_model"], [6], "float32", "embed.hook_out")
Shape = dict[str, Any]


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def pair(request: pytest.FixtureRequest, module_path: Path) -> tuple[Path, Path]:
    tokens: Any = tuple(range(-5, 0)) if request.param == "float16" else ("last", "-2")
    shape: Shape = {
        "stages": 2, "layers": [0, 2, 5], "entities": 23, "tokens": tokens, "d_model": 6, "dtype": request.param,
        "block_size": 7, "skip": {"s1": [0, 9]}, "extra": [EMBED],
    }  # fmt: skip
    paths = [make_store(module_path / f"{request.param}-{c}.zarr", compression=c, **shape) for c in ("none", "zstd")]
    return paths[0], paths[1]


@pytest.mark.parametrize("verify", [True, False])
def test_reads_the_same_values(pair: tuple[Path, Path], verify: bool) -> None:
    for chunks in ("auto", None):
        plain, packed = (open_store(path, verify=verify, chunks=chunks) for path in pair)  # type: ignore[arg-type]
        xr.testing.assert_equal(plain, packed)
        for _ in range(2):  # the second time, every chunk is verified already
            for key in (
                {"entity": 5},
                {"entity": [22, 1, 8], "layer": 1},
                {"token": 0, "entity": slice(3, 19, 2)},
                {"stage": 1, "layer": [2, 0], "d_model": [4, 1]},
            ):
                present = {d: k for d, k in key.items() if d in packed.embed.dims}
                np.testing.assert_array_equal(packed.resid_post.isel(key).values, plain.resid_post.isel(key).values)
                np.testing.assert_array_equal(packed.embed.isel(present).values, plain.embed.isel(present).values)


def test_plain_readers_see_the_codecs_and_the_values(pair: tuple[Path, Path]) -> None:
    _, path = pair
    array = zarr.open_array(path / "resid_post", mode="r")
    (sharding,) = array.metadata.to_dict()["codecs"]
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "zstd", "crc32c"]
    embed = zarr.open_array(path / "embed", mode="r").metadata.to_dict()
    assert [codec["name"] for codec in embed["codecs"]] == ["bytes", "zstd", "crc32c"]
    np.testing.assert_array_equal(array[...], open_store(path, dtype="bits").resid_post.values)


def write(path: Path, compression: str, blocks: int | None = None, prefix: int = 0) -> Any:
    """A store of four blocks; the first `prefix` of 512 dims are equal in all prompts."""
    site = site_variable("resid_post", ["d_model"], [512], "bfloat16", HOOK)
    store = create(
        path, entities=make_labels(64, ["s"]), layers=range(3), tokens=["last"], variables=[site], block_size=16,
        compression=compression,
    )  # fmt: skip
    values = np.random.default_rng(0).integers(0, 2**15, (3, 64, 1, 512), dtype=np.uint16)
    values[..., :prefix] = 7
    with ActivationWriter(store) as writer, writer.stage("s", order=0, fingerprint="f") as stage:
        for block in list(stage.pending())[:blocks]:
            buffer = stage.buffer(block)
            buffer.write("resid_post", block.rows, values[:, block.rows])
            stage.submit(buffer)
    return store


def test_info_shows_the_size_on_disk(tmp_path: Path) -> None:
    write(tmp_path / "plain.zarr", "none", prefix=384)
    write(tmp_path / "packed.zarr", "zstd", prefix=384)
    plain, packed = (info(tmp_path / f"{n}.zarr") for n in ("plain", "packed"))
    on_disk = sum(p.stat().st_size for p in (tmp_path / "packed.zarr/resid_post").glob("c.*"))
    assert packed["variables"]["resid_post"]["bytes"] == on_disk < plain["variables"]["resid_post"]["bytes"] / 2
    assert packed["variables"]["resid_post"]["bytes_uncompressed"] == plain["variables"]["resid_post"]["bytes"]
    assert packed["bytes"] == on_disk + packed["variables"]["recorded"]["bytes"]
    assert packed["variables"]["resid_post"]["compression"] == "zstd"
    seen: list[tuple[int, int]] = []
    assert verify_store(tmp_path / "packed.zarr", progress=lambda done, total: seen.append((done, total))).ok
    assert seen[-1] == (packed["bytes"], packed["bytes"])


def test_resumes_to_the_same_bytes_and_never_rewrites(tmp_path: Path) -> None:
    write(tmp_path / "whole.zarr", "zstd")
    write(tmp_path / "halved.zarr", "zstd", blocks=2)
    before = content(tmp_path / "halved.zarr")
    write(tmp_path / "halved.zarr", "zstd")
    whole = content(tmp_path / "whole.zarr")
    assert content(tmp_path / "halved.zarr") == whole
    committed = [name for name in before if name.startswith("resid_post/c.")]
    assert len(committed) == 2
    add_stage(tmp_path / "halved.zarr", "t", 1)
    after = content(tmp_path / "halved.zarr")
    assert all(after[name] == whole[name] == data for name, data in before.items() if name in committed)


def test_another_compression_refuses(tmp_path: Path) -> None:
    write(tmp_path / "run.zarr", "zstd")
    with pytest.raises(MismatchError, match=r"compression of resid_post differs.*\"zstd\", got \"none\".*same com"):
        write(tmp_path / "run.zarr", "none")
    with pytest.raises(InputError, match="compression is 'zst': did you mean 'zstd'"):
        write(tmp_path / "new.zarr", "zst")
    assert not (tmp_path / "new.zarr").exists()
    old = load(LocalStorage(tmp_path / "run.zarr")).layouts["recorded"].variable
    assert "compression" not in old.to_json()
    assert Variable.from_json(old.to_json()).compression == "none"


def test_damage_is_found_named_and_recorded_again(tmp_path: Path) -> None:
    write(tmp_path / "whole.zarr", "zstd")
    path = tmp_path / "run.zarr"
    write(path, "zstd")
    file = path / "resid_post" / "c.0.0.2.0.0"
    good = file.read_bytes()
    generator = random.Random(0)
    index = 3 * 16 + 4
    cases = [good[:9], b"", good + b"x", good[:-index] + good[16 - index :] + good[-index : 16 - index]]
    for number in range(60):
        data = bytearray(good)
        bit = generator.randrange(8 * len(good)) if number % 2 else 8 * (len(good) - index) + generator.randrange(400)
        data[bit // 8] ^= 1 << bit % 8
        cases.append(bytes(data))
    for bad in cases:
        file.write_bytes(bad)
        (damage, *_) = verify_store(path).damaged
        assert (damage.stage, damage.site, damage.rows) == ("s", "resid_post", (32, 48))
        with pytest.raises(DamagedError, match=r"stage 's', resid_post.* entity rows 32 to 47 is damaged"):
            open_store(path).resid_post.load()
        open_store(path).resid_post[:, :, :32].load()
    assert verify_store(path, repair=True).ok
    assert open_store(path).recorded.values.sum() == 48
    write(path, "zstd")
    assert content(path) == content(tmp_path / "whole.zarr")
