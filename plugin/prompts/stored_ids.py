"""Default prompt ids of a table whose store exists: those that the store recorded."""

from __future__ import annotations

import warnings

import numpy as np

from stratalens.plugin.prompts.prompt_ids import numbered_ids
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import LabelWarning
from stratalens.store.state.manifest import Store
from stratalens.store.writing.label_columns import read_labels


def with_ids_of_store(table: PromptTable, store: Store | None, *, stacklevel: int = 2) -> PromptTable:
    """Return the table with the default ids of a store that exists.

    An older version of the package named the rows of a table without `prompt_id` by their numbers. A store of that
    version keeps its ids, so the table gets them too, with one warning for each table.

    Args:
        table: the prompts.
        store: the store; None where there is none yet.
        stacklevel: frames between this function and the caller that the warning names.
    """
    if store is None or not table.has_default_ids:
        return table
    recorded = read_labels(store, ["entity"])["entity"]
    if not np.array_equal(recorded, numbered_ids(len(recorded))):
        return table
    if not table.warned_about_ids:
        table.warned_about_ids = True
        warnings.warn(
            f"{store.path} names its rows r000000, r000001, ..., as an older version of stratalens did for tables "
            "without prompt_id. The rows of this table get the same names, by their order. A column prompt_id with "
            "these names avoids this warning.",
            LabelWarning,
            stacklevel=stacklevel,
        )
    return table.with_numbered_ids()
