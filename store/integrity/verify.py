"""verify_store: compare every byte of a store with its checksums."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from stratalens.store.errors import StratalensError
from stratalens.store.format.layout import ArrayLayout
from stratalens.store.integrity import metadata_checks
from stratalens.store.integrity.data_checks import check_file, chunk_damage
from stratalens.store.integrity.metadata_checks import Roots
from stratalens.store.integrity.repair import repair_store
from stratalens.store.integrity.report import Damage, VerifyReport
from stratalens.store.integrity.unused_files import list_unused_files
from stratalens.store.state import commit_log as commits
from stratalens.store.state.capture_plan import missing_stages
from stratalens.store.state.manifest import Store, load
from stratalens.store.state.store_files import has_private_folder
from stratalens.store.storage.base import Storage
from stratalens.store.storage.resolve import storage_at
from stratalens.store.threads import cores

Progress = Callable[[int, int], None]

_ATTEMPTS = 20  # to check metadata that a writer is replacing

CommittedFile = tuple[int, int, ArrayLayout, int | None]  # stage, block, layout, digest in the commit record


def verify_store(
    path: str | os.PathLike[str], *, repair: bool = False, progress: Progress | None = None, workers: int | None = None
) -> VerifyReport:
    """Check everything in a store.

    Args:
        path: folder of the store.
        repair: also repair the damage if possible: the root metadata from its copy, coordinates and other metadata
            from the root, commit records from the data files. Damaged blocks are marked as missing; a resumed capture
            records only those again.
        progress: function called with (bytes read, bytes in total).
        workers: number of threads; None means one a core.

    Returns:
        The report; with `repair`, the damage that is left and the repairs.

    Raises:
        InputError: there is no store at `path`.
        StoreBusyError: with `repair`, another process writes the store.
    """
    storage = storage_at(path)
    roots, report, damaged_records = check_metadata(storage)
    if roots is not None:
        store = roots.store
        files = _committed_files(store, report, damaged_records)
        _check_files(store, files, report, progress, workers or cores())
        report.missing += [f"stage {name!r}, planned and not started" for name in missing_stages(store)]
    if repair and (report.damaged or report.unfinished or not has_private_folder(storage)):
        repairs = repair_store(storage, report)
        report = verify_store(path, progress=progress, workers=workers)
        report.repaired = repairs
    return report


def check_metadata(storage: Storage) -> tuple[Roots | None, VerifyReport, set[str]]:
    """Check everything but the data files: documents, labels, history, commit records and unused files.

    Args:
        storage: of the store.

    Returns:
        The root documents, or None if none is readable; the report; the keys of the damaged commit records.
    """
    roots, report = _check_documents(storage)
    if roots is None:
        return roots, report, set()
    metadata_checks.check_history(roots, report)
    metadata_checks.check_lost_records(roots.store, report)
    report.notes = list_unused_files(roots)
    return roots, report, metadata_checks.check_records(roots, report)


def _check_documents(storage: Storage) -> tuple[Roots | None, VerifyReport]:
    """Check documents, coordinates and labels against one state of the root.

    Repeat the check if a writer replaced the root meanwhile: what differs may belong to the new state.
    """
    for _ in range(_ATTEMPTS):
        report = VerifyReport()
        roots = metadata_checks.open_roots(storage, report)
        if roots is None:
            return roots, report
        metadata_checks.check_documents(roots, report)
        metadata_checks.check_labels(roots.store, report)
        if report.ok or not _root_changed(storage, roots.store):
            break
    return roots, report


def _root_changed(storage: Storage, store: Store) -> bool:
    try:
        return load(storage).checksum != store.checksum
    except StratalensError:
        return False


def _committed_files(store: Store, report: VerifyReport, damaged_records: set[str]) -> list[CommittedFile]:
    """Return all committed data files.

    Count the blocks, and list the missing rows in the report.
    """
    files: list[CommittedFile] = []
    blocks = store.geometry.blocks
    records = commits.block_records(store.storage)
    for stage, entry in enumerate(store.stages):
        for group, variables in enumerate(store.groups):
            digests = commits.read_stage(
                store.storage, stage, group, blocks, name=entry.name, ignore=damaged_records, singles=records
            )
            for block in range(blocks):
                if all(block in digests.get(v.name, {}) for v in variables):
                    report.blocks += 1
                    files += [(stage, block, store.layouts[v.name], digests[v.name][block]) for v in variables]
                    continue
                low, high = store.geometry.rows(block)
                names = ", ".join(v.name for v in variables if v.attrs.get("kind") == "site") or variables[0].name
                report.missing.append(f"stage {entry.name!r}, {names}, entity rows {low} to {high - 1}")
    return files


def _check_files(
    store: Store, files: list[CommittedFile], report: VerifyReport, progress: Progress | None, workers: int
) -> None:
    """Check data files in parallel and put their damage into the report."""
    compressed_sizes = {name: store.storage.sizes(name) for name, layout in store.layouts.items() if layout.compressed}
    total = 0
    for stage, block, layout, _ in files:
        sizes = compressed_sizes.get(layout.variable.name)
        total += layout.file_nbytes if sizes is None else sizes.get(layout.file_name(stage, block), 0)
    lock = threading.Lock()

    def check(file: CommittedFile) -> list[Damage]:
        stage, block, layout, digest = file
        result = check_file(store.storage, layout, layout.key(stage, block))
        faults = list(result.faults)
        if not faults and result.digest != digest:
            faults.append((None, "the file is intact but not the one that was committed"))
        with lock:
            report.nbytes += result.nbytes
            report.files += 1
            if progress is not None:
                progress(report.nbytes, total)
        return [chunk_damage(store, stage, block, layout, number, what) for number, what in faults]

    with ThreadPoolExecutor(workers, thread_name_prefix="stratalens-verify") as pool:
        for damages in pool.map(check, files):
            report.damaged += damages
