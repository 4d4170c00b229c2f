"""relabel(): the labels of a prompt table into a store that is recorded already."""

from __future__ import annotations

import os
from collections.abc import Sequence

from stratalens.prompts import PromptTable
from stratalens.stage_names import warn_of_stage_names
from stratalens.store.errors import InputError
from stratalens.store.manifest import load
from stratalens.store.places import storage_at
from stratalens.store.relabelling import relabel as relabel_columns


def relabel(store: str | os.PathLike[str], table: PromptTable, *, drop: Sequence[str] = ()) -> dict[str, int]:
    """Correct or add labels of a store that is recorded, without touching its activations.

    Rows are matched by `prompt_id`, in any order. Label columns of the table replace those of the store or are added
    to it; what the table does not have stays. `entity_id` is replaced where the table gives `entity_id` or `entity`.
    The change is atomic: a crash leaves the old labels or the new ones. It changes the store's content key, so no
    result that was computed before is taken for one of the new labels; datasets that are open must be opened again.

    Args:
        store: folder of the store, or an fsspec URL.
        table: the prompts that were recorded, all of them and no others, with the labels they should have.
        drop: label columns to be taken out of the store.

    Returns:
        For each column that was changed, in how many rows; empty where the labels were the same.

    Raises:
        MismatchError: the table holds other prompts, entity texts or answers than those that were run.
        InputError: there is no store, or a column cannot be a label or be dropped.
        StoreBusyError: the store is being recorded.

    >>> sl.relabel("run.zarr", sl.PromptTable.read("prompts.csv"))  # doctest: +SKIP
    {'trained_stage': 3}
    """
    if not isinstance(table, PromptTable):
        raise InputError(
            f"relabel takes a PromptTable, not {type(table).__name__}: PromptTable.read(file), or "
            "PromptTable.from_dataframe(df)"
        )
    columns = table.labels()
    if not table.names_entities:
        del columns["entity_id"]
    warn_of_stage_names(columns, [stage.name for stage in load(storage_at(store)).stages])
    return relabel_columns(store, columns, drop=drop)
