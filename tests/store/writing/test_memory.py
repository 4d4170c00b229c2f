"""Peak memory of writing and of reading does not grow with the number of entities."""

from __future__ import annotations

import runpy
from pathlib import Path

from support.paths import ROOT

BENCHMARK = ROOT / "benchmarks" / "store" / "memory.py"


def test_peak_memory_is_the_same_at_one_and_four_times_the_entities(tmp_path: Path) -> None:
    measure = runpy.run_path(str(BENCHMARK))["measure"]
    for job, runs in measure(tmp_path, [1, 4], ("write", "read")).items():
        # 24 more blocks are 96 MiB of values; allocators and commit records need little memory.
        assert runs[4]["rise"] - runs[1]["rise"] < 12, (job, runs)
        assert runs[4]["rise"] < 48, (job, runs)
