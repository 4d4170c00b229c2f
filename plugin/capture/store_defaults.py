"""Defaults of a capture into a store that exists: they mean what the store records."""

from __future__ import annotations

import os
import warnings

from stratalens.plugin.stages.label_warnings import caller_level
from stratalens.store.errors import LabelWarning, StratalensError, join_names
from stratalens.store.format.metadata import ROOT
from stratalens.store.state.manifest import Store, load
from stratalens.store.storage.resolve import storage_at


def existing_store(path: str | os.PathLike[str]) -> Store | None:
    """Load the store at a path; None where there is none, or none that can be read."""
    try:
        storage = storage_at(path)
        return load(storage) if storage.kind() == "folder" and storage.get(ROOT) is not None else None
    except (StratalensError, OSError):  # creating the store reports it
        return None


def recorded_names(store: Store | None) -> dict[str, str]:
    """Return the variable name of every site that a store records, by TransformerLens name."""
    variables = [variable for group in store.groups for variable in group] if store is not None else []
    return {str(v.attrs["hook"]): v.name for v in variables if v.attrs.get("kind") == "site" and "hook" in v.attrs}


def recorded_statistics(store: Store) -> set[str]:
    """Return the names of the statistics that a store records: of its sites, and of the output."""
    variables = [variable for group in store.groups for variable in group]
    sites = {str(v.attrs["statistic"]) for v in variables if v.attrs.get("kind") == "statistic"}
    return sites | {v.name for v in variables if v.attrs.get("kind") == "output"}


def warn_about_statistics(store: Store, missing: list[str]) -> None:
    """Warn that a store does not record some of the statistics that a new store would record."""
    if missing:
        warnings.warn(
            f"{store.path} does not record {join_names(missing, 30)}. On a store that exists, statistics=True means "
            "the statistics that it records. To add others, name all of them: statistics=('l2', 'loss', ...).",
            LabelWarning,
            stacklevel=caller_level(),
        )
