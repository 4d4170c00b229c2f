"""A reader in another language, zarrita.js, reads the numbers and strings of a store."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from stratalens.store import open_store, relabel
from support.stores import make_store

VERSION = "0.7.5"
SCRIPT = """
import * as zarr from "zarrita";
import { FileSystemStore } from "@zarrita/storage";
const store = new FileSystemStore(process.argv[2]);
const root = zarr.root(store);
const out = {};
for (const name of process.argv.slice(3)) {
  const array = await zarr.open(root.resolve(name), { kind: "array" });
  const { data, shape } = await zarr.get(array);
  out[name] = { shape, dtype: array.dtype, data: Array.from(data, (v) => typeof v === "bigint" ? Number(v)
    : typeof v === "number" && Number.isNaN(v) ? null : v) };
}
console.log(JSON.stringify(out));
"""


@pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="needs node and npm")
def test_javascript_reads_the_same_values(tmp_path: Path) -> None:
    folder = tmp_path / "js"
    folder.mkdir()
    (folder / "package.json").write_text('{"type": "module", "private": true}')
    (folder / "read.js").write_text(SCRIPT)
    install = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", f"zarrita@{VERSION}", "@zarrita/storage@0.2.0"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if install.returncode:
        pytest.skip(f"npm cannot install zarrita here: {install.stderr[-200:]}")
    for dtype in ("float32", "bfloat16"):
        path = make_store(
            tmp_path / f"{dtype}.zarr",
            3,
            2,
            11,
            ("last", "é"),
            6,
            dtype,
            block_size=4,
            skip={"s1": [3]},
            labels={"text": ["日本"] * 11, "count": range(11)},
        )
        ids = open_store(path).entity.values
        relabel(path, {"entity": ids, "text": [f"東京 {i}" for i in ids], "count": range(11, 22)})
        ds = open_store(path, dtype="bits")
        names = [
            "resid_post",
            "resid_post_l2",
            "loss",
            "stage",
            "stage_order",
            "token",
            "layer",
            "text",
            "count",
            "entity",
            "recorded",
        ]
        run = subprocess.run(
            ["node", "read.js", str(path), *names], cwd=folder, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr
        for name, result in json.loads(run.stdout).items():
            expected = ds[name].values
            assert tuple(result["shape"]) == expected.shape
            flat = expected.ravel().tolist()
            if expected.dtype.kind == "f":
                got = np.array([np.nan if v is None else v for v in result["data"]], dtype=expected.dtype)
                np.testing.assert_array_equal(got, expected.ravel())
            else:
                assert [type(e)(g) for e, g in zip(flat, result["data"], strict=True)] == flat, name
