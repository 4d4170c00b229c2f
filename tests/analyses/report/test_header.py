"""Header of the report."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from stratalens.analyses.report.report import report
from support.results import store_info


def write(path: Path, results: dict[str, Any], **options: Any) -> str:
    return report(results, path / "report.html", store_info=options.pop("info", store_info()), **options).read_text()


def test_a_page_to_be_passed_on_names_no_folders_and_nothing_twice(tmp_path: Path) -> None:
    info = {
        **store_info(),
        "path": "/home/ann/runs/run.zarr",
        "lacking_stages": ["s3", "s4"],
        "stages": ["base", "s1"],
        "provenance": {"tokenizer_fingerprint": "t0"},
        "complete": False,
        "completeness": {"base": {"z": 1.0}, "s1": {"z": 0.999}},
        "recorded_with": {"model": "/home/ann/checkpoints/base", "torch": "2.13.0", "zarr": "3.1.6"},
    }
    for key in ("model", "versions"):
        info.pop(key, None)
    page = write(tmp_path, {}, info=info)
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "/home/ann" not in outside
    assert "<dt>Model</dt><dd>base</dd>" in outside
    assert outside.count("2.13.0") == 1
    assert "The store is not complete: 1 of 4 stages complete; s1 at 99%; not started: s3, s4." in outside
    assert "not complete" not in re.sub(r"<script.*?</script>", "", write(tmp_path, {}), flags=re.S)
