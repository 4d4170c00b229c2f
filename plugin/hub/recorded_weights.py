"""The weight files from which the stages of a store were recorded, in the history of the store.

A sweep that resumes compares them with the hashes on the hub, and downloads no checkpoint that is recorded already.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from stratalens.plugin.capture.options import CaptureOptions
from stratalens.plugin.capture.store_defaults import existing_store, recorded_names, recorded_statistics
from stratalens.plugin.hub.weight_files import RevisionFiles
from stratalens.plugin.prompts.ids_of_store import with_ids_of_store
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import MismatchError
from stratalens.store.state.history import append_history, read_events
from stratalens.store.state.manifest import Store
from stratalens.store.storage.resolve import storage_at
from stratalens.store.writing.label_columns import read_labels

_EVENT = "hub weights"


def note_weights(path: str | os.PathLike[str], stage: str, repository: str, files: RevisionFiles) -> None:
    """Note in the history of a store from which files on the hub a complete stage was recorded."""
    storage = storage_at(path)
    with storage.structure_lock():
        append_history(
            storage,
            _EVENT,
            stage=stage,
            repository=repository,
            revision=files.revision.name,
            commit=files.revision.commit,
            weights=dict(files.digests),
        )


def recorded_weights(store: Store, repository: str) -> dict[str, Mapping[str, str]]:
    """Return the hashes of the weight files of every stage that was recorded from a repository."""
    return {
        str(event["stage"]): event["weights"]
        for event in read_events(store.storage)
        if event["event"] == _EVENT and event.get("repository") == repository and isinstance(event.get("weights"), dict)
    }


def complete_stages(
    path: str | os.PathLike[str],
    table: PromptTable,
    options: CaptureOptions,
    repository: str,
    files: Mapping[str, RevisionFiles],
) -> set[str]:
    """Return the stages of a store that need no checkpoint: they are complete, and the hub still has their weights.

    Args:
        path: the store, which need not exist.
        table: the prompts.
        options: options of the capture. Where they ask for more than the store records, no stage is complete.
        repository: name of the repository.
        files: files of the revisions, by name of the stage.

    Raises:
        MismatchError: the hub has other weights for a stage now, or the store has other prompts.
    """
    store = existing_store(path)
    if store is None:
        return set()
    commits, recorded = store.commits(), recorded_weights(store, repository)
    complete = set()
    for index, entry in enumerate(store.stages):
        if entry.name not in files or entry.name not in recorded or not commits.complete(index):
            continue
        if dict(recorded[entry.name]) != files[entry.name].digests:
            raise MismatchError(
                f"revision {files[entry.name].revision.name!r} of {repository} has other weights on the hub than when "
                f"stage {entry.name!r} of {store.path} was recorded. Record the revisions into another store; "
                "sl.preflight compares what the hub has now."
            )
        complete.add(entry.name)
    if not complete or not _records_all(store, options):
        return set()
    _check_prompts(store, table)
    return complete


def _records_all(store: Store, options: CaptureOptions) -> bool:
    """Return whether a store has everything that a capture asks for; where in doubt, it has not."""
    sites = [options.sites] if isinstance(options.sites, str) else list(options.sites)
    names = recorded_names(store)
    if not {names.get(site, site) for site in sites} <= set(names.values()):
        return False
    if options.layers is not None and list(options.layers) != list(store.layers):
        return False
    positions = [options.positions] if isinstance(options.positions, str) else list(options.positions)
    if [str(token) for token in store.tokens] != positions and options.positions != "all":
        return False
    if options.dtype != "auto" and {v.dtype for g in store.groups for v in g if v.attrs.get("kind") == "site"} != {
        options.dtype
    }:
        return False
    statistics = options.statistics
    if isinstance(statistics, bool):
        return statistics or not recorded_statistics(store)
    if statistics == "all":
        return "running_loss" in recorded_statistics(store)
    return set([statistics] if isinstance(statistics, str) else statistics) == recorded_statistics(store)


def _check_prompts(store: Store, table: PromptTable) -> None:
    """Check that a table has the prompts of a store, by their ids."""
    ids: Any = with_ids_of_store(table, store).labels()["entity"]
    recorded = read_labels(store, ["entity"])["entity"]
    if not np.array_equal(np.asarray(ids, dtype=object), np.asarray(recorded, dtype=object)):
        raise MismatchError(
            f"{store.path} has {len(recorded)} prompts, and they are not the {len(ids)} of this table. Pass the table "
            "that the store was recorded with, or record to another store."
        )
