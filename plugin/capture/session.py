"""The store that is being recorded: decided once by `create_store`, held against every stage's model.

Also what is common to `Recorder` and `capture()`: a stage's model with its hooks
(`HookedModel`), and putting a batch's values into a block of the store (`write_batch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.output_hooks import OutputHooks, Sequences
from stratalens.plugin.capture.site_hooks import SiteHooks, check_finite, to_host
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.models.adapters import Adapter
from stratalens.store.writing.buffers import BlockBuffer


class HookedModel:
    """One model, looked at for a recording: its adapter, its sites, its output statistics, its hooks.

    Used as a context manager: hooks are on it only inside.
    """

    def __init__(self, adapter: Adapter, recipe: CaptureSpec) -> None:
        self.adapter = adapter
        self.recipe = recipe
        self.tap = SiteHooks(adapter, recipe)
        self.outputs = OutputHooks(adapter, recipe.outputs)

    def __enter__(self) -> Self:
        try:
            self.tap.attach()
            self.outputs.attach()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.tap.detach()
        self.outputs.detach()

    def values(
        self, stage: str, rows: NDArray[np.int64], batch: Sequences, logits: Tensor | None
    ) -> dict[str, NDArray[Any]]:
        """What the batch that has just run gives for every variable of the store, on the host."""
        caught = self.tap.collect()
        with torch.no_grad():
            caught |= self.outputs.statistics(batch, logits)
            values = to_host(caught)
        check_finite(self.recipe, values, stage, rows, batch.index)
        return {name: value for name, value in values.items() if "/" not in name}


def write_batch(
    buffer: BlockBuffer,
    rows: NDArray[np.int64],
    values: Mapping[str, NDArray[Any]],
    recipe: CaptureSpec,
    inside: NDArray[np.intp] | None = None,
) -> None:
    """Write one batch's values into a block buffer.

    Args:
        buffer: the block.
        rows: table rows, all inside the block.
        values: by variable, with a layer axis in front where the site has one.
        recipe: what is recorded.
        inside: which rows of the batch these are; None for all of them.
    """
    columns = len(recipe.labels)
    for variable in recipe.variables_by_name.values():
        value = values[variable.name]
        axis = 1 if variable.has("layer") else 0
        if inside is not None and len(inside) != value.shape[axis]:
            value = np.take(value, inside, axis=axis)
        # Columns in front that no row of the batch has are not made.
        first = columns - value.shape[axis + 1] if variable.has("token") else 0
        buffer.write(variable.name, rows, value, first_token=first)
