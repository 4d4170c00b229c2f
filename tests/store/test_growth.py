"""Opening takes the same time for any size of the store, and forecasts of size are exact."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from stratalens.store import ActivationWriter, info
from stratalens.store.errors import InputError
from stratalens.store.format.layout import choose_geometry, forecast
from stratalens.store.format.schema import output_variables, site_variable, statistic_variables
from stratalens.store.state import commit_log as commits
from stratalens.store.state.manifest import StageEntry, load
from stratalens.store.state.publish import add_stage
from stratalens.store.storage.base import Buffer
from stratalens.store.storage.local import LocalStorage
from stratalens.store.writing.create import create
from support.stores import fill_randomly, make_labels, make_store

SITE = site_variable("resid_post", ["d_model"], [8192], "bfloat16", "blocks.{layer}.hook_out")
VARIABLES = [SITE, *statistic_variables(SITE), *output_variables()]
OPEN = """
import json, resource, sys, time
import dask.array, pandas, xarray, zarr
from stratalens.store import open_store
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
ds = open_store(sys.argv[1])
one = ds.resid_post.isel(stage=7, layer=40)
seconds = time.process_time() - start
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "mb": (after - before) / 1024, "sizes": dict(ds.sizes)}))
"""


def test_a_store_of_20_stages_80_layers_and_a_million_entities_opens_at_once(tmp_path: Path) -> None:
    """Metadata and labels are real; the 260 TB of data files do not exist."""
    rows = 1_000_000
    names = np.char.add("row ", np.arange(rows).astype(str)).astype(object)
    path = tmp_path / "run.zarr"
    store = create(
        path, entities={"entity": names, "entity_id": names}, layers=range(80), tokens=["last"], variables=VARIABLES
    )
    for stage in range(20):
        store = add_stage(store, StageEntry(f"s{stage}", stage, f"f{stage}"))
        digests = {name: dict.fromkeys(range(store.geometry.blocks), 7) for name in store.layouts}
        store.storage.put(
            commits.stage_key(stage, 0), commits.stage_record(stage, f"s{stage}", 0, digests, store.geometry.blocks)
        )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(
        [sys.executable, "-c", OPEN, str(path)], env=environment, capture_output=True, text=True, check=True
    )
    facts = json.loads(run.stdout)
    assert facts["sizes"]["entity"] == rows
    assert facts["sizes"]["stage"] == 20
    # Processor seconds and megabytes, not wall-clock time: other programs do not change them.
    assert facts["seconds"] < 1
    assert facts["mb"] < 300


class Noted(LocalStorage):
    """A storage that logs reads, listings and writes with their bytes."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.noted: list[tuple[str, str, int]] = []

    def get(self, key: str) -> bytes | None:
        raw = super().get(key)
        self.noted.append(("get", key, len(raw or b"")))
        return raw

    def list(self, folder: str) -> list[str]:
        names = super().list(folder)
        self.noted.append(("list", folder, len(names)))
        return names

    def put_many(self, objects: Iterable[tuple[str, Iterable[Buffer]]]) -> None:
        known = [(key, tuple(pieces)) for key, pieces in objects]
        self.noted += [("put", key, sum(memoryview(p).nbytes for p in pieces)) for key, pieces in known]
        super().put_many(known)

    def delete(self, keys: Iterable[str]) -> None:
        known = list(keys)
        self.noted += [("delete", key, 0) for key in known]
        super().delete(known)


ROOTS = ("zarr.json", ".stratalens/root.json")


def test_a_stage_costs_the_same_however_many_there_are(tmp_path: Path) -> None:
    """Adding a stage reads and writes the same files and bytes; only the root, which names all stages, grows."""
    storage = Noted(tmp_path / "run.zarr")
    make_store(storage.root, ["s00"], entities=9, block_size=4)
    operations, others, roots = [], [], []
    with ActivationWriter(load(storage)) as writer:
        for number in range(1, 60):
            storage.noted.clear()
            with writer.stage(f"s{number:02d}", order=number, fingerprint=f"sha256:{number:02d}") as stage:
                for block in stage.pending():
                    stage.submit(fill_randomly(stage.buffer(block), writer.store, number))
            noted = storage.noted
            operations.append(Counter(kind for kind, _, _ in noted))
            others.append(sum(n for kind, key, n in noted if kind in ("get", "put") and key not in ROOTS))
            roots.append(sum(n for kind, key, n in noted if kind in ("get", "put") and key in ROOTS))
    assert operations[20] == operations[-1] != Counter()
    assert others[20] == others[-1]
    # The root is read a few times; each read grows by the entry of one stage.
    entry = len(json.dumps(StageEntry("s00", 10, "sha256:00").to_json()))
    assert roots[-1] - roots[20] < (len(roots) - 21) * 12 * entry


def test_opening_reads_each_record_once(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 5, entities=9, block_size=4)
    storage = Noted(path)
    store = load(storage)
    storage.noted.clear()
    store.commits()
    assert sorted(storage.noted) == sorted(
        [("list", commits.FOLDER, 5)]
        + [("get", f"{commits.FOLDER}/{s:04d}.0", storage.size(f"{commits.FOLDER}/{s:04d}.0")) for s in range(5)]
    )


def test_the_forecast_is_what_is_written(tmp_path: Path) -> None:
    site = site_variable("resid_post", ["d_model"], [8], "float32", "blocks.{layer}.hook_out")
    variables = [site, *statistic_variables(site), *output_variables((10, 50, 90))]
    path = make_store(tmp_path / "run.zarr", 3, 2, 50, statistics=True, block_size=16)
    from stratalens.store.format.schema import answer_variable

    expected = forecast([*variables, answer_variable()], entities=50, layers=2, tokens=1, stages=3, block_size=16)
    facts = info(path)
    assert (facts["bytes"], facts["files"]) == (expected.nbytes, expected.files)
    chunks = [p for p in path.rglob("c.*") if p.parent.name in facts["variables"]]
    assert (sum(p.stat().st_size for p in chunks), len(chunks)) == (expected.nbytes, expected.files)


def test_ten_terabytes_on_paper() -> None:
    site = site_variable("resid_post", ["d_model"], [4096], "bfloat16", "blocks.{layer}.hook_out")
    expected = forecast([site], entities=800_000, layers=80, tokens=1, stages=20)
    assert 10e12 < expected.nbytes < 11e12
    assert expected.files < 70_000
    assert expected.commit_records < 2_000
    assert expected.memory < 2 << 30


@pytest.mark.parametrize("entities", [1, 7, 600, 4801])
@pytest.mark.parametrize("tokens", [1, 2, 300])
def test_geometry(entities: int, tokens: int) -> None:
    for full in (False, True):
        geometry = choose_geometry(
            VARIABLES, entities=entities, layers=4, tokens=tokens, full_sequence=full, memory_limit=1 << 28
        )
        layouts = [geometry.layout(v) for v in VARIABLES]
        assert 2 * sum(layout.file_nbytes for layout in layouts) <= 1 << 28
        assert layouts[0].inner_nbytes <= 4 << 20 or geometry.block_size == 1
        assert geometry.blocks * geometry.block_size - entities < geometry.blocks, "hardly any padding"
        assert layouts[0].token_chunks * layouts[0].token_chunk - tokens < layouts[0].token_chunks


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"two buffers of a single row need .* raise memory_limit"):
        choose_geometry(VARIABLES, entities=5, layers=80, tokens=1, memory_limit=1 << 20)


def test_info_says_what_is_there(tmp_path: Path) -> None:
    path = make_store(tmp_path / "run.zarr", 3, 2, 10, block_size=4, stop_before="s2", labels={"x": range(10)})
    facts = json.loads(json.dumps(info(path)))
    assert facts["complete"]
    assert facts["dims"] == {"stage": 2, "layer": 2, "entity": 10, "token": 1}
    assert facts["completeness"]["s1"]["resid_post"] == 1
    assert facts["sites"] == ["resid_post"]
    assert set(facts["labels"]) == {*make_labels(1, ["a"]), "x"}
