"""Adding stages and sites to a finished store leaves every byte of data alone; what does not match is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import ActivationWriter, create, open_store, relabel, verify_store
from stratalens.store.errors import InputError, MismatchError, StoreBusyError
from stratalens.store.format.schema import Variable, site_variable, statistic_variables
from support.stores import add_stage, fill_randomly, make_labels, make_store, to_storage
from support.synthetic_writer import content

SITE = site_variable("resid_post", ["d_model"], [4], "float32", "blocks.{layer}.hook_out")
NEW = site_variable("mlp_out", ["d_model"], [4], "bfloat16", "blocks.{layer}.mlp.hook_out")
PROVENANCE = {"model": "m", "tokenizer_fingerprint": "t", "token_ids_digest": "d", "processing": {"fold_ln": False}}


def make(path: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "entities": make_labels(10, ["s0", "s1"]),
        "layers": [0, 1, 2],
        "tokens": ["last"],
        "variables": [SITE],
        "provenance": PROVENANCE,
        "block_size": 4,
    }
    return create(path, **{**arguments, **changes})


def record(path: Path, name: str = "s0", order: int = 0, fingerprint: str = "f0", **arguments: Any) -> int:
    """Record one stage; returns how many blocks were written."""
    written = 0
    with (
        ActivationWriter(path) as writer,
        writer.stage(name, order=order, fingerprint=fingerprint, **arguments) as stage,
    ):
        for block in stage.pending():
            stage.submit(fill_randomly(stage.buffer(block), writer.store, order))
            written += 1
    return written


def data_files(path: Path) -> dict[str, bytes]:
    return {k: v for k, v in content(path).items() if not k.endswith(".json")}


def unchanged(before: dict[str, bytes], after: dict[str, bytes]) -> None:
    assert {k: after[k] for k in before} == before


def test_stages_added_later(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    make(path)
    record(path)
    before = data_files(path)
    make(path)
    assert record(path) == 0
    unchanged(before, data_files(path))
    assert record(path, "s1", 1, "f1") == 3
    unchanged(before, data_files(path))
    assert open_store(path).recorded.values.all()


def test_sites_added_later(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    make(path)
    record(path)
    record(path, "s1", 1, "f1")
    old = open_store(path).resid_post.load()
    before = data_files(path)
    variables = [SITE, NEW, *statistic_variables(NEW)]
    make(path, variables=variables)
    unchanged(before, data_files(path))
    ds = open_store(path)
    assert not ds.recorded.values.any(), "a row counts where every site has it"
    assert ds[ds.resid_post.attrs["recorded"]].values.all()
    assert not ds[ds.mlp_out.attrs["recorded"]].values.any()
    assert np.isnan(ds.mlp_out.values).all()
    with ActivationWriter(path) as writer, writer.stage("s1", order=1, fingerprint="f1") as stage:
        block = next(stage.pending())
        assert "resid_post" not in block.variables
        buffer = stage.buffer(block)
        shape = (3, len(block), 1, 4)
        buffer.write("resid_post", block.rows, np.zeros(shape, np.float32))  # recorded already: left as it is
        stage.submit(fill_randomly(buffer, writer.store, 5))
    assert record(path, "s1", 1, "f1") == 2
    assert record(path) == 3
    unchanged(before, data_files(path))
    ds = open_store(path)
    assert ds.recorded.values.all()
    xr.testing.assert_equal(ds.resid_post.load(), old)
    assert verify_store(path).ok
    plain = xr.open_zarr(path)
    np.testing.assert_array_equal(plain.recorded_1.values, np.ones((2, 10), bool))
    with pytest.raises(MismatchError, match=r"sites differ.*record mlp_out"):
        make(path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"provenance": {**PROVENANCE, "tokenizer_fingerprint": "u"}}, 'tokenizer_fingerprint d.*"t".*"u".*to'),
        ({"provenance": {**PROVENANCE, "token_ids_digest": "e"}}, 'token_ids_digest differs.*"d".*"e".*same prompts'),
        ({"provenance": {**PROVENANCE, "model": "n"}}, 'model differs.*"m".*"n"'),
        ({"provenance": {**PROVENANCE, "processing": {"fold_ln": True}}}, "processing differs.*false.*true.*flags"),
        ({"provenance": {**PROVENANCE, "hooks": ["x"]}}, "hooks differs.*null"),
        ({"provenance": {}}, "model differs"),
        ({"layers": [0, 1]}, r"layers differs.*\[0, 1, 2\].*\[0, 1\]"),
        ({"tokens": ["-1"]}, "positions differs"),
        ({"entities": make_labels(11, ["s0"])}, "number of prompts differs .'r000010' is new.*10.*11.*open_store"),
        ({"entities": make_labels(10, ["s0", "s2"])},
         r"'trained_stage' of 'r000000' .row 0. is 's1' in the store, 's2' in the table .and 9 more rows.*To mend it.*"
         r"stratalens.relabel\('.*run.zarr', table\).*`stratalens label .*run.zarr TABLE`"),
        ({"entities": make_labels(10, ["s0", "s1"], labels={"x": np.arange(10)})}, "given has 'x', which the store"),
        ({"entities": {k: v for k, v in make_labels(10, ["s0", "s1"]).items() if k != "template"}},
         r"the table given lacks 'template', which.*drop=\['template'\].*--drop template"),
        ({"entities": {k: v[::-1] for k, v in make_labels(10, ["s0", "s1"]).items()}},
         "another order: row 0 is 'r000000' in .*'r000009' in the table given"),
        ({"entities": make_labels(10, ["s0", "s1"], labels={"prompt": ["a"] * 10})},
         r"prompts are not those.*'prompt' of 'r000000' .row 0. is 'Q: Who is e0\?.nA:' in the store, 'a' in"),
        ({"entities": make_labels(10, ["s0", "s1"], labels={"template": np.zeros(10)})},
         "'template' of 'r000000' .row 0. is 't0' in the store, 0.0 in the table"),
        ({"variables": [site_variable("resid_post", ["d_model"], [5], "float32", "blocks.{layer}.hook_out")]},
         r"shape of resid_post differs.*\[4\].*\[5\]"),
        ({"variables": [site_variable("resid_post", ["d_model"], [4], "float16", "blocks.{layer}.hook_out")]},
         "dtype of resid_post differs"),
        ({"variables": [site_variable("resid_post", ["d_model"], [4], "float32", "blocks.{layer}.other")]},
         "hook of resid_post differs"),
        ({"variables": [site_variable("resid_post", ["d_head"], [4], "float32", "blocks.{layer}.hook_out")]},
         "dims of resid_post differs"),
    ],
)  # fmt: skip
def test_store_provenance_refuses(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = tmp_path / "run.zarr"
    make(path)
    record(path)
    before = content(path)
    with pytest.raises(MismatchError, match=says):
        make(path, **changes)
    assert content(path) == before


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        (("s0", 0, "other"), "weights_fingerprint differs for stage 's0'.*f0.*other"),
        (("s0", 3, "f0"), "stage_order differs for stage 's0'.*0.*3"),
        (
            ("s1", 1, "f0"),
            r"^stages 's0' and 's1' have the same weights \(fingerprint f0\): check .*allow_same_weights: true",
        ),
        (("s1", 0, "f1"), "stage_order differs.*order of its own"),
    ],
)
def test_stage_provenance_refuses(tmp_path: Path, stage: tuple[str, int, str], says: str) -> None:
    path = tmp_path / "run.zarr"
    make(path)
    record(path)
    before = content(path)
    with pytest.raises(MismatchError, match=says):
        record(path, *stage)
    assert content(path) == before


def test_stage_facts_refuse_and_the_flag_allows(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    make(path)
    record(path, provenance={"adapter": "a"})
    with pytest.raises(MismatchError, match=r"adapter differs for stage 's0'"):
        record(path, provenance={"adapter": "b"})
    assert record(path, "copy", 1, "f0", allow_same_weights=True) == 3


def test_library_versions_are_recorded_and_not_compared(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    make(path, recorded_with={"torch": "1"})
    make(path, recorded_with={"torch": "2"})
    assert open_store(path).attrs["recorded_with"]["torch"] == "1"


def test_buffers_refuse_what_is_not_whole(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    store = make(path, variables=[SITE, NEW])
    with ActivationWriter(store) as writer, writer.stage("s0", order=0, fingerprint="f0") as stage:
        first, second, third = stage.pending()
        buffer = stage.buffer(first)
        values = np.zeros((3, 4, 1, 4), np.float32)
        buffer.write("resid_post", [3, 1, 0], values[:, :3])
        buffer.write("mlp_out", first.rows, to_storage(values, "bfloat16"), layers=[2, 0, 1])
        with pytest.raises(InputError, match=r"rows 2 of resid_post were neither written nor skipped"):
            stage.submit(buffer)
        with pytest.raises(InputError, match="rows 4 do not belong to this block: it holds rows 0 to 3"):
            buffer.write("resid_post", [4], values[:, :1])
        with pytest.raises(InputError, match=r"shape \(2, 1, 1, 4\), needed is \(3, 1, 1, 4\)"):
            buffer.write("resid_post", [2], values[:2, :1])
        with pytest.raises(InputError, match=r"stored as uint16 .bits of bfloat16., got float32"):
            buffer.write("mlp_out", [2], values[:, :1])
        with pytest.raises(InputError, match="did you mean 'resid_post'"):
            buffer.write("resid_pst", [2], values[:, :1])
        with pytest.raises(InputError, match="positions 0 to 2"):
            buffer.write("resid_post", [2], values[0, :1], layers=3)
        other = stage.buffer(second)
        with pytest.raises(InputError, match="more than 2 blocks are open"):
            stage.buffer(third)
        other.discard()
        buffer.write("resid_post", [2], values[0, :1], layers=0)
        buffer.write("resid_post", [2], values[1:, :1], layers=slice(1, None))
        stage.submit(buffer)
        with pytest.raises(InputError, match="submitted or discarded"):
            buffer.skip([0])
        with pytest.raises(InputError, match="recorded already"):
            stage.buffer(first)
    assert open_store(path).recorded.values[0].tolist() == [True] * 4 + [False] * 6
    assert not open_store(path).attrs["provenance"]["processing"]["fold_ln"]


def test_memory_is_two_buffers_whatever_the_run(tmp_path: Path) -> None:
    sizes: list[int] = []

    def allocate(nbytes: int) -> np.ndarray:
        sizes.append(nbytes)
        return np.empty(nbytes, np.uint8)

    store = make(tmp_path / "run.zarr", block_size=1)
    with ActivationWriter(store, allocate=allocate) as writer:
        for order in range(2):
            with writer.stage(f"s{order}", order=order, fingerprint=f"f{order}") as stage:
                for block in stage.pending():
                    stage.submit(fill_randomly(stage.buffer(block), writer.store, order))
    assert sizes == [store.layouts[n].file_nbytes for n in ("resid_post", "recorded")] * 2


def test_extra_variables_of_every_kind(tmp_path: Path) -> None:
    extra = [
        Variable("count", ("stage", "entity", "token"), dtype="int64"),
        Variable("flag", ("stage", "entity"), dtype="bool"),
    ]
    path = make_store(tmp_path / "run.zarr", 2, entities=7, block_size=3, extra=extra, skip={"s1": [4]})
    ds = open_store(path)
    assert ds["count"].dtype == np.int64
    assert (ds["count"].sel(stage="s1").isel(entity=4) == np.iinfo(np.int64).min).all()
    add_stage(path, "more", 7)
    np.testing.assert_array_equal(xr.open_zarr(path).flag.values, open_store(path).flag.values)


def labels_of(path: Path) -> dict[str, list[Any]]:
    """Label columns as our reader and a plain one see them; both must agree."""
    ours, plain = open_store(path), xr.open_zarr(path)
    found = {}
    for name in map(str, ours.coords):
        if ours[name].dims == ("entity",):
            found[name] = ours[name].values.tolist()
            assert found[name] == plain[name].values.tolist(), name
    return found


def test_labels_are_changed_and_activations_are_not(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 3, entities=10, block_size=4)
    before, labels, key = data_files(path), labels_of(path), open_store(path).attrs["stratalens_key"]
    data = {k: v for k, v in before.items() if k.count(".") > 1}
    ids = labels["entity"][::-1]  # another order of the rows
    keys = {key}
    for value in ("one", "two", "three"):
        given = {"entity": ids, "trained_stage": [f"{value} {i}" for i in ids], "score": np.arange(10.0)[::-1]}
        changed = relabel(path, given)
        assert changed == {"trained_stage": 10} | ({"score": 10} if value == "one" else {})
        now = labels_of(path)
        assert now["trained_stage"] == [f"{value} {i}" for i in labels["entity"]]
        assert now["score"] == list(range(10))
        assert {k: now[k] for k in labels if k != "trained_stage"} == {
            k: v for k, v in labels.items() if k != "trained_stage"
        }
        unchanged(data, data_files(path))
        assert verify_store(path).ok
        keys.add(open_store(path).attrs["stratalens_key"])
    assert len(keys) == 4
    assert relabel(path, {"entity": ids}) == {}
    assert relabel(path, {"entity": ids}, drop=["score"]) == {"score": 10}
    assert "score" not in labels_of(path)
    assert relabel(path, {"entity": labels["entity"], "trained_stage": labels["trained_stage"]}) == {
        "trained_stage": 10
    }
    assert labels_of(path) == labels
    assert not (path / "score").exists()  # what was dropped goes with the change after it
    add_stage(path, "s3", 3)
    assert labels_of(path) == labels
    assert verify_store(path).ok


@pytest.mark.parametrize(
    ("given", "drop", "says"),
    [
        ({"trained_stage": ["x"] * 10}, (), "no 'entity'"),
        ({"entity": ["r000000"] * 10}, (), "must be unique"),
        (
            {"entity": [f"r{i:06d}" for i in range(9)]},
            (),
            "number of prompts differs .the table lacks 'r000009'.*10.*9",
        ),
        ({"entity": [f"r{i:06d}" for i in range(1, 11)]}, (), "prompt ids differs .*lacks 'r000000'; 'r000010' is new"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "prompt": ["a"] * 10}, (), "not those that were run"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "answer": ["a"] * 10}, (), "recorded without answers"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "resid_post": ["a"] * 10}, (), "name of an array"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "stage": ["a"] * 10}, (), "name of a dim"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "x": ["a"] * 9}, (), "'x' has 9 values"),
        ({"entity": [f"r{i:06d}" for i in range(10)]}, ("entity_id",), "cannot be dropped"),
        ({"entity": [f"r{i:06d}" for i in range(10)]}, ("templat",), "did you mean 'template'"),
        ({"entity": [f"r{i:06d}" for i in range(10)], "template": ["a"] * 10}, ("template",), "to be dropped"),
    ],
)
def test_labels_that_are_refused_change_nothing(tmp_path: Path, given: Any, drop: Any, says: str) -> None:
    path = make_store(tmp_path / "run.zarr", 2, entities=10)
    before = content(path)
    with pytest.raises(InputError, match=says):
        relabel(path, given, drop=drop)
    assert content(path) == before


def test_labels_wait_for_writers(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 2, entities=10)
    for shared in (False, True):
        with ActivationWriter(path, shared=shared), pytest.raises(StoreBusyError, match="being written"):
            relabel(path, {"entity": [f"r{i:06d}" for i in range(10)], "x": np.arange(10)})


def test_a_long_prompt_is_shown_where_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    make(path, entities=make_labels(10, ["s0"], labels={"prompt": ["x" * 500 + "one" + "y" * 500] * 10}))
    with pytest.raises(
        MismatchError, match=r"is '[.]{3}x+oney+[.]{3}' in the store, '[.]{3}x+twoy+[.]{3}' in the"
    ) as told:
        make(path, entities=make_labels(10, ["s0"], labels={"prompt": ["x" * 500 + "two" + "y" * 500] * 10}))
    assert len(str(told.value)) < 700
