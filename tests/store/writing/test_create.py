"""Stages and sites added to a finished store leave every data file unchanged; a mismatch raises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.store import ActivationWriter, create, open_store, verify_store
from stratalens.store.errors import MismatchError
from stratalens.store.format.schema import site_variable, statistic_variables
from support.stores import fill_randomly, make_labels
from support.synthetic_writer import content, data_files, unchanged

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
    """Record one stage and return the number of written blocks."""
    written = 0
    with (
        ActivationWriter(path) as writer,
        writer.stage(name, order=order, fingerprint=fingerprint, **arguments) as stage,
    ):
        for block in stage.pending():
            stage.submit(fill_randomly(stage.buffer(block), writer.store, order))
            written += 1
    return written


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
        buffer.write("resid_post", block.rows, np.zeros(shape, np.float32))  # recorded already: ignored
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
        (
            {"entities": make_labels(10, ["s0", "s2"])},
            r"'trained_stage' of 'r000000' .row 0. is 's1' in the store, 's2' in the table .and 9 more rows.*To fix.*"
            r"stratalens.relabel\('.*run.zarr', table\).*`stratalens label .*run.zarr TABLE`",
        ),
        ({"entities": make_labels(10, ["s0", "s1"], labels={"x": np.arange(10)})}, "table has a column 'x', the store"),
        (
            {"entities": {k: v for k, v in make_labels(10, ["s0", "s1"]).items() if k != "template"}},
            r"the table has no column 'template', the store.*drop=\['template'\].*--drop template",
        ),
        (
            {"entities": {k: v[::-1] for k, v in make_labels(10, ["s0", "s1"]).items()}},
            "another order: row 0 is 'r000000' in .*'r000009' in the table",
        ),
        (
            {"entities": make_labels(10, ["s0", "s1"], labels={"prompt": ["a"] * 10})},
            r"prompts are not those.*'prompt' of 'r000000' .row 0. is 'Q: Who is e0\?.nA:' in the store, 'a' in",
        ),
        (
            {"entities": make_labels(10, ["s0", "s1"], labels={"template": np.zeros(10)})},
            "'template' of 'r000000' .row 0. is 't0' in the store, 0.0 in the table",
        ),
        (
            {"variables": [site_variable("resid_post", ["d_model"], [5], "float32", "blocks.{layer}.hook_out")]},
            r"shape of resid_post differs.*\[4\].*\[5\]",
        ),
        (
            {"variables": [site_variable("resid_post", ["d_model"], [4], "float16", "blocks.{layer}.hook_out")]},
            "dtype of resid_post differs",
        ),
        (
            {"variables": [site_variable("resid_post", ["d_model"], [4], "float32", "blocks.{layer}.other")]},
            "hook of resid_post differs",
        ),
        (
            {"variables": [site_variable("resid_post", ["d_head"], [4], "float32", "blocks.{layer}.hook_out")]},
            "dims of resid_post differs",
        ),
    ],
)
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
        (("s1", 0, "f1"), "stage_order differs.*its own order"),
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


def test_a_long_prompt_is_shown_where_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    make(path, entities=make_labels(10, ["s0"], labels={"prompt": ["x" * 500 + "one" + "y" * 500] * 10}))
    with pytest.raises(
        MismatchError, match=r"is '[.]{3}x+oney+[.]{3}' in the store, '[.]{3}x+twoy+[.]{3}' in the"
    ) as error:
        make(path, entities=make_labels(10, ["s0"], labels={"prompt": ["x" * 500 + "two" + "y" * 500] * 10}))
    assert len(str(error.value)) < 700
