"""Several processes that capture into one store leave the same bytes as one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stratalens.store import ActivationWriter, open_store, verify_store
from stratalens.store.errors import InputError, StoreBusyError
from support.paths import TESTS
from support.ranks import ROWS, record
from support.synthetic_writer import content


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its ranks")
def test_ranks_leave_the_bytes_of_a_single_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "support.ranks", str(tmp_path), "2", "4"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = content(tmp_path / "1.zarr")
    for size, progress in json.loads((tmp_path / "progress.json").read_text()).items():
        path = tmp_path / f"{size}.zarr"
        assert content(path) == alone
        assert verify_store(path).ok
        assert open_store(path).recorded.values.all()
        assert len(progress) == int(size)
        for stage in ("a", "b"):
            last = [[facts[1:] for facts in rank if facts[0] == stage][-1] for rank in progress]
            assert all(done == total for done, total in last), "every process counts its own rows"
            assert sum(total for _, total in last) == ROWS


def test_what_a_missing_rank_left_is_done_by_anybody(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    record(path, (1, 3))
    assert 0 < open_store(path).recorded.values.sum() < 2 * ROWS
    record(path)
    record(tmp_path / "alone.zarr")
    assert content(path) == content(tmp_path / "alone.zarr")


def test_a_rank_that_there_is_not_and_a_writer_that_does_not_share(tmp_path: Path) -> None:
    path = tmp_path / "run.zarr"
    with pytest.raises(InputError, match="rank 2 of 2"):
        record(path, (2, 2))
    with ActivationWriter(path), pytest.raises(StoreBusyError):
        record(path, (0, 2))
