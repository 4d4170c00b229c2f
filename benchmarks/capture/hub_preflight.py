"""Measure a preflight of a suite with 154 revisions, and count its requests and bytes, against a hub on this machine.

The stand-in of the tests answers each request after a fixed delay, as a hub far away does. The peer is what a script
without the preflight does to learn the same: it downloads every revision and hashes its weights.

    python -m benchmarks.capture.hub_preflight [--revisions 154] [--megabytes 1] [--delay 0.05] [--rounds 3]
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.document import Report, arguments, parse
from benchmarks.harness.measure import ROOT, Timing, time_once

TITLE, THEME = "Preflight of a checkpoint suite", "Capture"
MODEL = "someone/model"
BASE, OURS = "download and hash all", "preflight"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--revisions", type=int, default=154)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--rounds", type=int, default=3)
    options = parse(parser, quick={"revisions": 8, "megabytes": 0.1, "delay": 0.0, "rounds": 1})
    sys.path.insert(0, str(ROOT / "tests"))
    from huggingface_hub import constants, snapshot_download
    from safetensors.numpy import save_file

    import stratalens as sl
    from support.hub import hub

    constants.HF_HUB_OFFLINE = False

    def delay(method: str, path: str, earlier: int) -> None:
        time.sleep(options.delay)

    with Report(__file__, options, "huggingface-hub") as report, tempfile.TemporaryDirectory() as temporary:
        root, folders = Path(temporary), {}
        for number in range(options.revisions):
            folder = root / f"step{number * 1000}"
            folder.mkdir()
            values = np.random.default_rng(number).random(int(options.megabytes * 125_000))
            save_file({"weight": values}, folder / "model.safetensors")
            (folder / "config.json").write_text("{}")
            folders[folder.name] = folder
        with hub({MODEL: folders}, trouble=delay) as (address, requests):
            place = sl.Hub(endpoint=address, token=False)

            def download() -> None:
                for name in folders:
                    with tempfile.TemporaryDirectory() as copy:
                        snapshot_download(MODEL, revision=name, local_dir=copy, endpoint=address, token=False)
                        hashlib.sha256((Path(copy) / "model.safetensors").read_bytes()).hexdigest()

            methods: dict[str, Any] = {
                BASE: download,
                OURS: lambda: sl.preflight(MODEL, hub=place, progress=False),
            }
            runs: dict[str, list[Timing]] = {name: [] for name in methods}
            counts = {}
            for turn in range(options.rounds):
                for name, method in list(methods.items())[:: 1 if turn % 2 else -1]:
                    before = len(requests)
                    runs[name].append(time_once(method))
                    counts[name] = len(requests) - before
                print(f"  round {turn + 1} of {options.rounds}", file=sys.stderr)
        report.timings("suite", "All revisions", runs, BASE, ours=[OURS], amount=1, unit="suites")
        report.target("requests for one revision", [counts[OURS] / options.revisions], at_most=1.1)


if __name__ == "__main__":
    main()
