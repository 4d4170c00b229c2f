"""Verification: every byte of a store against its checksums, in parallel, damage named.

`check_file` looks at one data file; `verify_store` at everything: every committed
file here, the root zarr.json and its copy, coordinates, labels, commit records and the
history in `verify_metadata`. What can be put right is put right in `repair_store`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from stratalens.store.format.layout import ArrayLayout
from stratalens.store.integrity.data_checks import check_file, damage
from stratalens.store.integrity.metadata_checks import (
    check_documents,
    check_history,
    check_labels,
    check_records,
    open_roots,
)
from stratalens.store.integrity.repair import repair_store
from stratalens.store.integrity.report import Damage, VerifyReport
from stratalens.store.state import commit_log as commits
from stratalens.store.state.capture_plan import missing_stages
from stratalens.store.state.manifest import Store
from stratalens.store.storage.resolve import storage_at
from stratalens.store.threads import cores

Progress = Callable[[int, int], None]


def verify_store(
    path: str | os.PathLike[str], *, repair: bool = False, progress: Progress | None = None, workers: int | None = None
) -> VerifyReport:
    """Check everything in a store.

    Parameters
    ----------
    path
        Folder of the store.
    repair
        Also mend what can be mended: metadata from its copy, coordinates and
        commit records from what they speak of; damaged blocks are marked as
        missing, so that a resume records just those again.
    progress
        Called with (bytes read, bytes in all).
    workers
        Threads; default one for each core.

    Returns
    -------
    VerifyReport
        With `repair`, what is still damaged afterwards, and what was mended.

    Raises
    ------
    InputError
        There is no store at `path`.
    StoreBusyError
        With `repair`, while another process writes.
    """
    storage = storage_at(path)
    report = VerifyReport()
    roots = open_roots(storage, report)
    if roots is not None:
        store = roots.store
        check_documents(roots, report)
        check_labels(store, report)
        check_history(storage, report)
        damaged_records = check_records(roots, report)
        _check_data(store, report, damaged_records, progress, workers or cores())
        report.missing += [f"stage {name!r}, planned and not begun" for name in missing_stages(store)]
    if repair and (report.damaged or report.unfinished):
        done = repair_store(storage, report)
        report = verify_store(path, progress=progress, workers=workers)
        report.repaired = done
    return report


def _check_data(store: Store, report: VerifyReport, bad: set[str], progress: Progress | None, workers: int) -> None:
    geometry = store.geometry
    singles = commits.block_records(store.storage)
    jobs: list[tuple[int, int, ArrayLayout, int | None]] = []
    for stage, entry in enumerate(store.stages):
        for group, variables in enumerate(store.groups):
            digests = commits.read_stage(store.storage, stage, group, geometry.blocks, ignore=bad, singles=singles)
            absent_blocks = 0
            for block in range(geometry.blocks):
                if all(block in digests.get(v.name, {}) for v in variables):
                    report.blocks += 1
                    jobs += [(stage, block, store.layouts[v.name], digests[v.name][block]) for v in variables]
                    continue
                absent_blocks += 1
                low, high = geometry.rows(block)
                names = ", ".join(v.name for v in variables if v.attrs.get("kind") == "site") or variables[0].name
                report.missing.append(f"stage {entry.name!r}, {names}, entity rows {low} to {high - 1}")
    sizes = {name: store.storage.sizes(name) for name, layout in store.layouts.items() if layout.compressed}
    total = 0
    for stage, block, layout, _ in jobs:
        held = sizes.get(layout.variable.name)
        total += layout.file_nbytes if held is None else held.get(layout.file_name(stage, block), 0)
    lock = threading.Lock()

    def look(job: tuple[int, int, ArrayLayout, int | None]) -> list[Damage]:
        stage, block, layout, digest = job
        key = layout.key(stage, block)
        found = check_file(store.storage, layout, key)
        faults = list(found.faults)
        if not faults and found.digest != digest:
            faults.append((None, "the file is whole but not the one that was committed"))
        with lock:
            report.nbytes += found.nbytes
            report.files += 1
            if progress is not None:
                progress(report.nbytes, total)
        return [damage(store, stage, block, layout, number, what) for number, what in faults]

    with ThreadPoolExecutor(workers, thread_name_prefix="stratalens-verify") as pool:
        for faults in pool.map(look, jobs):
            report.damaged += faults
