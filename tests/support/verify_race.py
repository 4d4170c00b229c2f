"""`verify` and `open_store` next to a process that relabels, and next to one that writes: no run may report damage.

The other process works without a pause: it changes labels back and forth, or makes a store, records two stages, adds a
site, and starts the next store.

    PYTHONPATH=src:tests python -m support.verify_race [--runs N] [relabel] [writer]
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stratalens.store import open_store, relabel, verify_store
from stratalens.store.errors import InputError, StratalensError
from support.crash_scenarios import NEW_STAGES, labels, record, store_of

PARTNERS = ("relabel", "writer")


def relabel_forever(folder: Path) -> None:
    """Change the labels of a store back and forth."""
    while True:
        for stages in (NEW_STAGES, labels()["trained_stage"]):
            relabel(store_of(folder), {"entity": labels()["entity"], "trained_stage": stages})


def write_forever(folder: Path) -> None:
    """Write one store after the other; `current` has the number of the last one."""
    number = 0
    while True:
        number += 1
        path = folder / str(number)
        path.mkdir()
        (folder / "current.part").write_text(str(number))
        (folder / "current.part").replace(folder / "current")
        record(store_of(path))
        record(store_of(path), embed=True)
        if number > 3:
            shutil.rmtree(folder / str(number - 3))


def false_alarms(partner: str, folder: Path, runs: int) -> tuple[int, list[str]]:
    """Verify a store that another process changes.

    Args:
        partner: one of `PARTNERS`.
        folder: an empty folder.
        runs: number of runs of verify on a store that exists.

    Returns:
        Number of runs in which the other process changed the store, and every damage that was reported.
    """
    record(store_of(folder))
    target: Any = relabel_forever if partner == "relabel" else write_forever
    process = multiprocessing.get_context("spawn").Process(target=target, args=(folder,), daemon=True)
    first = _stamp(folder)
    process.start()
    while _stamp(folder) == first and not (folder / "current").exists():
        time.sleep(0.02)
    alarms: list[str] = []
    changed = done = 0
    try:
        while done < runs:
            assert process.is_alive(), "the other process has ended"
            path = folder
            if partner == "writer" and (folder / "current").exists():
                path = folder / (folder / "current").read_text()
            before = _stamp(path)
            try:
                report = verify_store(store_of(path), workers=1)
                open_store(store_of(path))
            except InputError:
                continue  # the store does not exist yet
            except StratalensError as error:
                alarms.append(f"{type(error).__name__}: {error}")
                done += 1
                continue
            done += 1
            changed += _stamp(path) != before
            alarms += [f"{damage.kind}: {damage}" for damage in report.damaged]
    finally:
        process.kill()
        process.join()
    return changed, alarms


def _stamp(path: Path) -> object:
    try:
        return (store_of(path) / "zarr.json").stat().st_mtime_ns, len(list((store_of(path) / ".stratalens").rglob("*")))
    except OSError:
        return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("partners", nargs="*", default=list(PARTNERS))
    parser.add_argument("--runs", type=int, default=2500)
    options = parser.parse_args()
    failed = 0
    shared_memory = Path("/dev/shm")
    for partner in options.partners:
        with tempfile.TemporaryDirectory(
            dir=shared_memory if shared_memory.is_dir() else None, ignore_cleanup_errors=True
        ) as folder:
            changed, alarms = false_alarms(partner, Path(folder), options.runs)
        failed += len(alarms)
        sys.stdout.write(f"next to a {partner}: {options.runs} runs, {changed} with a change, {len(alarms)} alarms\n")
        sys.stdout.writelines(f"    {text}\n" for text in sorted(set(alarms))[:5])
        sys.stdout.flush()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
