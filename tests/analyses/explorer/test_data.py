"""Data of the explorer: the numbers, and the bytes read for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stratalens.analyses.centroids.entities import choose_half
from stratalens.analyses.explorer.data import ExplorerData, ViewState
from stratalens.store import open_store
from stratalens.store.errors import InputError, NotRecordedError
from stratalens.store.storage.local import ReadHandle
from support.sparse import sparse_store
from support.stores import make_store


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(
        tmp_path_factory.mktemp("s") / "run.zarr", 4, 2, 120, ("first", "last"), 8, planted=2.0, prompts_per_entity=2
    )


@pytest.fixture
def source(path: Path) -> ExplorerData:
    return ExplorerData(open_store(path))


HERE = ViewState("resid_post", "trained_stage", "s3", 1, "last")


def test_a_plane_is_what_a_plain_computation_gives(source: ExplorerData) -> None:
    plane = source.plane(HERE)
    ds = source.ds.sel(stage="s3", layer=1, token="last")
    X, labels = ds.resid_post.values.astype(float), ds.trained_stage.values
    _, units = np.unique(ds.entity_id.values, return_inverse=True)
    axes = choose_half(units, 0)
    assert plane.groups == ("s1", "s2", "s3")
    assert not set(ds.entity_id.values[axes]) & set(ds.entity_id.values[plane.rows.rows])
    means = np.stack([X[axes & (labels == g)].mean(0) for g in plane.groups])
    w1 = (means[-1] - means[0]) / np.linalg.norm(means[-1] - means[0])
    shown = np.flatnonzero(~axes)
    np.testing.assert_array_equal(plane.rows.rows, shown)
    np.testing.assert_allclose(plane.rows.coordinate[:, 0], X[shown] @ w1, atol=1e-5)
    rest = (means - means.mean(0)) @ (np.eye(8) - np.outer(w1, w1))
    values, vectors = np.linalg.eigh(rest.T @ rest)
    assert abs(plane.rows.axes[1] @ vectors[:, -1]) == pytest.approx(1, abs=1e-6)
    assert values[-1] > 0
    want = [X[shown][labels[shown] == g] @ w1 for g in plane.groups]
    np.testing.assert_allclose(plane.rows.centroid[:, 0], [v.mean() for v in want], atol=1e-5)


def test_details_are_those_of_the_rows_asked_for(source: ExplorerData) -> None:
    columns, table = source.row_details(HERE, [5, 80])
    assert columns[:3] == ["row", "trained_stage", "prompt"]
    ds = source.ds.isel(entity=[5, 80])
    assert [row[0] for row in table] == list(ds.entity.values)
    here = ds.sel(stage="s3", layer=1, token="last")
    for name in ("resid_post_l2", "loss"):
        np.testing.assert_allclose([row[columns.index(name)] for row in table], here[name].values, rtol=1e-6)
    answer = [row[columns.index("answer_loss")] for row in table]
    np.testing.assert_allclose(answer, here["answer_loss"].values, rtol=1e-6)


def test_search_finds_rows_by_any_label(source: ExplorerData) -> None:
    rows = source.search("E00007", 100)  # ignores case
    assert set(source.ds.entity_id.values[rows]) == {"e00007"}
    assert list(source.search("R000003", 5)) == [3]
    assert not len(source.search("nowhere", 5))


def test_errors_name_the_reason(source: ExplorerData, tmp_path: Path) -> None:
    many = ExplorerData(open_store(make_store(tmp_path / "many.zarr", 3, 1, 90, d_model=4)))
    with pytest.raises(InputError, match=r"'entity_id' has 90 groups, at most 60"):
        many.plane(ViewState("resid_post", "entity_id", "s2", 0, "last"))
    with pytest.raises(InputError, match="no stage 's9'; Valid: untrained, s1"):
        source.plane(ViewState("resid_post", "trained_stage", "s9", 1, "last"))
    part = make_store(tmp_path / "part.zarr", 3, 2, 40, skip={"s1": range(40)})
    with pytest.raises(NotRecordedError, match="no row is left at stage s1"):
        ExplorerData(open_store(part)).plane(ViewState("resid_post", "trained_stage", "s1", 1, "last"))


def test_rows_without_a_position_are_left_out_and_counted(path: Path, tmp_path: Path) -> None:
    part = make_store(tmp_path / "part.zarr", 3, 2, 60, planted=2.0, skip={"s2": [0, 1, 2, 3]})
    plane = ExplorerData(open_store(part)).plane(ViewState("resid_post", "trained_stage", "s2", 1, "last"))
    assert not {0, 1, 2, 3} & set(plane.rows.rows.tolist())
    incomplete = open_store(path).load()
    incomplete.resid_post.values[-1, -1, :5, -1] = np.nan
    left = ExplorerData(incomplete).plane(HERE)
    assert left.rows.left_out == 5
    assert np.isfinite(left.rows.coordinate).all()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes read from the files of the store, one number a read."""
    counts: list[int] = []
    whole = ReadHandle.read_into

    def counted(self: ReadHandle, buffers: list[np.ndarray], offset: int) -> bool:
        counts.append(sum(b.nbytes for b in buffers))
        return whole(self, buffers, offset)

    monkeypatch.setattr(ReadHandle, "read_into", counted)
    return counts


def test_a_big_store_is_never_read_beyond_what_is_shown(tmp_path: Path, read: list[int]) -> None:
    """The store has 805 MB of activations; the page reads one layer of one stage, once."""
    stages, layers, rows, width = 3, 8, 4096, 2048
    path = sparse_store(tmp_path / "big.zarr", stages, layers, rows, width)
    slab, whole = rows * width * 4, stages * layers * rows * width * 4
    read.clear()
    source = ExplorerData(open_store(path))
    assert sum(read) < 1_000_000  # labels; metadata and commit records are a few kB
    read.clear()
    plane = source.plane(ViewState("resid_post", "trained_stage", "s2", layers - 1, "last"))
    assert slab <= sum(read) < slab * 1.01 < whole / 20
    assert plane.rows.centroid[1, 0] > plane.rows.centroid[0, 0]
    read.clear()
    assert source.plane(plane.view) is plane
    source.row_details(plane.view, range(50))
    assert sum(read) < 1_000_000
