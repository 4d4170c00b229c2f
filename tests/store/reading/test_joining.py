"""Joined stores: prefixes of ids, and messages about stores that do not belong together."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratalens.store.errors import InputError, MismatchError
from stratalens.store.format.schema import site_variable
from stratalens.store.reading.joining import store_prefixes
from stratalens.store.reading.open import open_store
from support.stores import HOOK, add_stage, make_store


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("stores")
    paths = folder / "one" / "run.zarr", folder / "two" / "run.zarr"
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        make_store(path, entities=6, seed=seed, statistics=False, prompts_per_entity=2)
    return paths


@pytest.mark.parametrize("chunks", ["auto", None])
def test_equal_ids_get_the_name_of_their_store(pair: tuple[Path, Path], chunks: Any) -> None:
    with pytest.raises(MismatchError, match=r"'r000000' is in more than one .*one/run.zarr and .*pass ids='prefix'"):
        open_store(pair, chunks=chunks)
    both = open_store(pair, chunks=chunks, ids="prefix")
    assert both.entity.values[[0, 5, 6, 11]].tolist() == [
        "run/r000000",
        "run/r000005",
        "run-2/r000000",
        "run-2/r000005",
    ]
    assert both.entity_id.values.tolist() == [f"e{i // 2:05d}" for i in range(6)] * 2  # one entity in both stores
    one, two = (open_store(path) for path in pair)
    np.testing.assert_array_equal(both.resid_post.values, np.concatenate([one.resid_post, two.resid_post], axis=2))
    np.testing.assert_array_equal(both.resid_post.sel(entity="run-2/r000003"), two.resid_post.sel(entity="r000003"))
    assert both.attrs["stratalens_key"] != one.attrs["stratalens_key"]
    assert pickle.loads(pickle.dumps(both)).identical(both)


def test_three_stores_and_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    third = make_store(tmp_path / "run-2.zarr", entities=6, seed=5, statistics=False, prompts_per_entity=2)
    names = open_store([*pair, third], ids="prefix").entity.values
    assert len(set(names.tolist())) == 18
    assert open_store([pair[0]], ids="prefix").entity.values[0] == "r000000"  # a single store is not joined
    with pytest.raises(InputError, match=r"ids is 'prefx'.*did you mean 'prefix'"):
        open_store(pair, ids="prefx")  # type: ignore[arg-type]


def test_row_numbers_are_no_entities_of_another_store(tmp_path: Path) -> None:
    numbers = {"entity_id": [f"r{i:06d}" for i in range(4)]}
    paths = [make_store(tmp_path / f"{name}.zarr", entities=4, labels=numbers, statistics=False) for name in "ab"]
    both = open_store(paths, ids="prefix")
    assert both.entity_id.values.tolist() == both.entity.values.tolist()
    assert len(set(both.entity_id.values.tolist())) == 8


@given(st.lists(st.sampled_from(["a.zarr", "x/a.zarr", "a-2.zarr", "s3://b/a", "/", "a-2-2.zarr/"]), max_size=7))
def test_prefixes_are_different(paths: list[str]) -> None:
    assert len(set(store_prefixes(paths))) == len(paths)


EMBED = site_variable("embed", ["d_model"], [8], "float32", "embed.hook_out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"layers": [0, 2]}, r"layers differs in .*b.zarr: .*a.zarr has \[0, 1\], got \[0, 2\]"),
        ({"extra": [EMBED]}, r"variables differs in .*b.zarr: only .*b.zarr has embed\. To fix it: record the same"),
        ({"d_model": 5}, r"shape of resid_post is \(8,\) in .*a.zarr, \(5,\) in .*b.zarr"),
        ({"dtype": "float16"}, r"dtype of resid_post is float32 in .*a.zarr, float16 in"),
        ({"stages": ["untrained", "s1"]}, r"stages differs in .*b.zarr: only .*a.zarr has s2\."),
        ({"provenance": {"architecture": {"n_layers": 9}}}, r"architecture differs in .*b.zarr"),
        ({"labels": {"colour": ["red"] * 6}}, r"label columns differs in .*: only .*b.zarr has colour.*relabel"),
        ({"labels": {"template": list(range(6))}}, r"template is string in .*a.zarr, int64 in .*b.zarr"),
    ],
)
def test_the_message_names_the_difference(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    a = make_store(tmp_path / "a.zarr", entities=6, statistics=False)
    labels = {"entity": [f"other{i}" for i in range(6)], **change.pop("labels", {})}
    b = make_store(tmp_path / "b.zarr", entities=6, labels=labels, statistics=False, **change)
    with pytest.raises(MismatchError, match=says) as failed:
        open_store([a, b], ids="prefix")
    assert len(str(failed.value)) < 500


def test_other_weights_are_named(tmp_path: Path) -> None:
    a = make_store(tmp_path / "a.zarr", ["s0"], entities=6, statistics=False)
    b = make_store(tmp_path / "b.zarr", ["s0"], entities=6, statistics=False)
    add_stage(a, "s1", 1)
    add_stage(b, "s1", 2)
    with pytest.raises(MismatchError, match=r"stage 's1' has order 1 in .*a.zarr, 2 in .*b.zarr"):
        open_store([a, b], ids="prefix")


def test_the_sequence_of_recording_does_not_matter(tmp_path: Path) -> None:
    a = make_store(tmp_path / "a.zarr", ["s0", "s1"], entities=6, statistics=False)
    b = make_store(tmp_path / "b.zarr", ["s0"], entities=6, statistics=False, stop_before="s0")
    add_stage(b, "s1", 1, seed=3)
    add_stage(b, "s0", 0, seed=4)
    both, alone = open_store([a, b], ids="prefix"), open_store(b)
    assert both.stage.values.tolist() == alone.stage.values.tolist() == ["s0", "s1"]
    np.testing.assert_array_equal(both.resid_post.values[:, :, 6:], alone.resid_post.values)
    assert HOOK in str(both.resid_post.attrs["hook"])
