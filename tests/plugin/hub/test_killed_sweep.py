"""A sweep that is killed repeatedly ends in the same store, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stratalens.store import open_store, verify_store
from support.paths import TESTS
from support.synthetic_writer import content
from support.thorough import THOROUGH

KILLS = 40 if THOROUGH else 4


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "support.killed_sweep", str(tmp_path), str(KILLS)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert content(tmp_path / "run.zarr") == content(tmp_path / "whole.zarr")
    assert not (tmp_path / "run.zarr.checkpoints").exists()
    assert verify_store(tmp_path / "run.zarr").ok
    assert open_store(tmp_path / "run.zarr").recorded.values.all()
