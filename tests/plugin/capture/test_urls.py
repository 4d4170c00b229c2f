"""Run files with a URL as store: capture, resume, read and verify on memory:// and on an S3 server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import xarray as xr

from stratalens.plugin.cli.capture_jobs import capture_run
from stratalens.plugin.cli.run_file import read_run_file, read_run_file_of, run_file_of
from stratalens.plugin.cli.store_jobs import choose_column, results_folder, verify_job
from stratalens.store import open_store
from stratalens.store.errors import InputError, StoreExistsError
from support import s3
from support.models import save_checkpoint, table

quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    address = f"{request.param}://strata/{uuid.uuid4().hex}/run.zarr"
    if request.param == "memory":
        yield address
        return
    with s3.served():
        yield address


def write_run(folder: Path, store: str) -> Path:
    save_checkpoint(folder / "model")
    rows = table(4).frame
    rows.to_csv(folder / "prompts.csv", index=False)
    path = folder / "run.yaml"
    path.write_text(
        f"model: model\nprompts: prompts.csv\nstore: {store}\nlayers: [0]\nstatistics: false\nby: group\n"
        "stages:\n- name: a\n  path: model\n"
    )
    return path


@quiet
def test_a_run_file_records_to_a_url(tmp_path: Path, url: str) -> None:
    run = read_run_file(write_run(tmp_path, url))
    assert run.store == url
    assert capture_run(run) == url
    assert capture_run(run) == url, "the second capture has nothing to do"
    with pytest.raises(StoreExistsError):
        capture_run(run, resume=False)
    local = read_run_file(write_run(tmp_path, str(tmp_path / "local.zarr")))
    capture_run(local)
    ds, here = open_store(url), open_store(tmp_path / "local.zarr")
    xr.testing.assert_equal(ds, here)
    assert verify_job(url, repair=False)["ok"]
    # The complete run file next to the store names the column to group by.
    assert read_run_file_of(url) == run
    assert choose_column(ds, url, None) == "group"
    assert read_run_file_of(tmp_path / "local.zarr") == local
    assert not list(tmp_path.glob("s3*"))
    assert not list(tmp_path.glob("memory*"))


def test_paths_next_to_a_store() -> None:
    assert run_file_of("s3://b/run.zarr/") == "s3://b/run.zarr.run.yaml"
    assert results_folder("s3://b/run.zarr") == Path("run.zarr.results")
    assert results_folder("runs/run.zarr/") == Path("runs/run.zarr.results")
    assert read_run_file_of(f"memory://{uuid.uuid4().hex}/run.zarr") is None


@pytest.mark.parametrize("store", ["3", "''", "[a]"])
def test_an_invalid_store_is_refused(tmp_path: Path, store: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"model: m\nprompts: p.csv\nstore: {store}\n")
    with pytest.raises(InputError, match=r"store: must be a folder, or a URL such as s3://bucket/run\.zarr"):
        read_run_file(path)
    path.write_text(f"model: m\nprompts: p.csv\nstore: file://{tmp_path}/run.zarr\n")
    assert read_run_file(path).store == tmp_path / "run.zarr"
