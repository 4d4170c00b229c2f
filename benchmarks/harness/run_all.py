"""Run the benchmarks one after another, each in its own process, and write one JSON document for each.

    python -m benchmarks.harness.run_all [NAME ...] [--quick] [--out FOLDER] [--list]

A benchmark is a script in `benchmarks/*/` that defines TITLE and THEME. Without names all of them run, in the order of
their themes. If one fails, the suite reports it, runs the others, and exits with status 1. The documents of earlier
runs give an estimate of the remaining time. The documents go to benchmarks/results/NAME.json, or with --quick to
benchmarks/results/quick/. `python -m benchmarks.harness.page` writes the page of the documentation from them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness.document import THEMES, constants, name_of
from benchmarks.harness.measure import module_of

BENCHMARKS = Path(__file__).parents[1]
RESULTS = BENCHMARKS / "results"


def benchmarks() -> dict[str, Path]:
    """Return the scripts of the suite by name, in the order of their themes."""
    scripts = []
    for path in sorted(BENCHMARKS.glob("*/*.py")):
        about = constants(path)
        if "TITLE" in about and "THEME" in about:
            if about["THEME"] not in THEMES:
                raise SystemExit(f"{path.name}: THEME is {about['THEME']!r}, must be one of {', '.join(THEMES)}")
            scripts.append((THEMES.index(about["THEME"]), name_of(path), path))
    return {name: path for _, name, path in sorted(scripts)}


def expected(name: str, out: Path) -> float | None:
    """Return the seconds of an earlier run, or None."""
    try:
        return float(json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError):
        return None


def left(names: list[str], out: Path) -> str:
    """Estimate the remaining time of these benchmarks."""
    known = [expected(name, out) for name in names]
    seconds = sum(s for s in known if s is not None)
    unknown = sum(s is None for s in known)
    more = f" and {unknown} without an earlier run" if unknown else ""
    return f"about {seconds / 60:.1f} minutes{more}"


def run(name: str, script: Path, out: Path, quick: bool) -> str | None:
    """Run one benchmark; return None or the problem."""
    target = out / f"{name}.json"
    part = target.with_suffix(".part")  # the earlier document stays until the new one is complete
    command = [sys.executable, "-m", module_of(script), "--json", str(part), *(["--quick"] if quick else [])]
    environment = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    try:
        code = subprocess.run(command, env=environment, check=False).returncode
        if code:
            return f"ended with status {code}"
        if not part.exists():
            return "wrote no document"
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument(
        "--quick", action="store_true", help="run smaller workloads and fewer rounds: the full suite within ten minutes"
    )
    parser.add_argument("--out", type=Path, help="write the documents to this folder")
    parser.add_argument("--list", action="store_true", help="list the benchmarks and run none")
    options = parser.parse_args()
    known = benchmarks()
    if options.list:
        for name, path in known.items():
            about = constants(path)
            print(f"{name:24} {about['THEME']:10} {about['TITLE']}")
        return
    if unknown := [name for name in options.names if name not in known]:
        raise SystemExit(f"unknown benchmark: {', '.join(unknown)}. Available: {', '.join(known)}")
    names = [name for name in known if name in options.names or not options.names]
    out = options.out or (RESULTS / "quick" if options.quick else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    began = time.perf_counter()
    for number, name in enumerate(names):
        print(f"\n=== {number + 1} of {len(names)}: {name}; left: {left(names[number:], out)}", flush=True)
        start = time.perf_counter()
        problem = run(name, known[name], out, options.quick)
        if problem:
            failed[name] = problem
        print(f"--- {name}: {problem or 'done'} after {time.perf_counter() - start:.0f} s", flush=True)
    print(
        f"\n{len(names) - len(failed)} of {len(names)} benchmarks in {(time.perf_counter() - began) / 60:.1f} minutes"
    )
    for name, problem in failed.items():
        print(f"FAILED {name}: {problem}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
