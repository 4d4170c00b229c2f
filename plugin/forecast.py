"""What a capture will cost, before anything is written: bytes, files, tokens, memory, time.

Sizes are exact (the geometry of the store decides them); time is measured on
one real batch of the first stage's model.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from stratalens.choices import make_recipe
from stratalens.models import adapt
from stratalens.modes import evaluation_mode
from stratalens.recipe import Recipe
from stratalens.stages import Stage, loaded
from stratalens.store.errors import InputError
from stratalens.store.info import info
from stratalens.store.layout import MEMORY_LIMIT, Forecast
from stratalens.store.layout import forecast as store_forecast
from stratalens.store.places import is_url

if TYPE_CHECKING:
    from stratalens.prompts import PromptTable

_SAMPLE = 32  # rows of the timed batch
_SPARE = 64 * 2**20  # bytes left for labels, metadata and whatever else writes to this disk


def store_size(
    recipe: Recipe,
    *,
    stages: int,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
    rows: int | None = None,
) -> Forecast:
    """Size of the store that a recipe makes, or would make of a table of so many rows."""
    return store_forecast(
        recipe.variables(),
        entities=len(recipe.entities) if rows is None else rows,
        layers=len(recipe.selection.layers),
        tokens=len(recipe.labels),
        stages=stages,
        full_sequence=recipe.positions.is_all,
        memory_limit=memory_limit,
        block_size=block_size,
    )


def check_room(
    path: str | os.PathLike[str],
    recipe: Recipe,
    *,
    stages: int,
    memory_limit: int = MEMORY_LIMIT,
    block_size: int | None = None,
) -> None:
    """Refuse a capture that the disk cannot hold.

    Raises:
        InputError: what is still to be written needs more bytes than are free.
    """
    if is_url(path):  # nobody knows how much room an object store has
        return
    size = store_size(recipe, stages=stages, memory_limit=memory_limit, block_size=block_size)
    held = info(path)["bytes"] if (Path(path) / "zarr.json").is_file() else 0
    needed = size.nbytes - held
    folder = next(parent for parent in (Path(path).absolute(), *Path(path).absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if needed + _SPARE > free:
        raise InputError(
            f"{path}: {needed / 2**30:.2f} GiB are still to be written, the disk has {free / 2**30:.2f} GiB free. "
            "Free some space, record fewer sites, layers or positions, or pass force=True (--force) to go on anyway."
        )


def forecast(
    stages: Sequence[Stage],
    table: PromptTable,
    *,
    sites: Sequence[str] | str = ("resid_post",),
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | str = ("last",),
    dtype: str = "auto",
    statistics: bool | Sequence[str] = True,
    device: str | None = None,
    rows: int | None = None,
) -> dict[str, Any]:
    """Forecast a capture from its first stage's model; nothing is written.

    With `rows`, the table is a sample: the forecast is of a table of so many rows like these.

    Returns:
        bytes, files, rows, tokens (of all stages), memory_bytes (of the two block buffers), rows_per_block,
        seconds (of all forward passes, without loading; from one timed batch of at most 32 rows, so two runs
        differ; to two digits).

    Raises:
        InputError: as `capture`.
    """
    with loaded(stages[0], None, device) as model:
        adapter = adapt(model, None)
        recipe = make_recipe(
            table, adapter, sites=sites, layers=layers, positions=positions, dtype=dtype, statistics=statistics
        )
        lengths = recipe.lengths
        timed = lengths.argsort()[len(lengths) // 2 :][:_SAMPLE]  # of median length and above
        width = int(lengths[timed].max())
        ids, mask = recipe.tokenized.batch(timed, width, answers=recipe.runs_answers)
        wanted: Literal["none", "logits"] = "logits" if recipe.outputs else "none"
        with torch.no_grad(), evaluation_mode(adapter.model):
            start = time.perf_counter()
            adapter.run(
                torch.from_numpy(ids).to(adapter.device), torch.from_numpy(mask).to(adapter.device), wanted, None
            )
            seconds = time.perf_counter() - start
    size = store_size(recipe, stages=len(stages), rows=rows)
    tokens = round(int(lengths.sum()) * (1 if rows is None else rows / len(lengths)))
    return {
        "bytes": size.nbytes,
        "files": size.files,
        "rows": size.rows,
        "tokens": tokens * len(stages),
        "memory_bytes": size.memory,
        "rows_per_block": size.block_size,
        "seconds": two_digits(seconds / (width * len(timed)) * tokens * len(stages)),
    }


def two_digits(seconds: float) -> float:
    """A forecast time as far as one timed batch tells it; a short one does not become none at all.

    >>> two_digits(0.04321), two_digits(12345.6)
    (0.043, 12000.0)
    """
    return float(f"{seconds:.2g}")
