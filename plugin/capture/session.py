"""One model with its hooks on, and the way of its batches into a block of the store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
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
    """A model that fits a store, with the hooks that record it.

    A context manager: the hooks are on the model only inside.

    Attributes:
        adapter: the model.
        spec: what the store records.
        site_hooks: hooks that gather activations.
        outputs: output statistics and their hook.
    """

    def __init__(self, adapter: Adapter, spec: CaptureSpec) -> None:
        self.adapter = adapter
        self.spec = spec
        self.site_hooks = SiteHooks(adapter, spec)
        self.outputs = OutputHooks(adapter, spec.outputs)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.site_hooks.attached())
            stack.callback(self.outputs.detach)
            self.outputs.attach()
            self._hooks = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def abandon(self) -> None:
        """Drop the batch after a forward pass that failed."""
        self.site_hooks.abandon()
        self.outputs.abandon()

    def values(
        self, stage: str, rows: NDArray[np.int64], batch: Sequences, logits: Tensor | None
    ) -> dict[str, NDArray[Any]]:
        """Collect the values of the batch that has just run.

        Args:
            stage: name of the stage, for messages.
            rows: table rows of the batch, int64 array of shape (rows,).
            batch: tokens and positions of the batch.
            logits: the model's logits, needed where the output layer cannot run separately.

        Returns:
            A NumPy array for every variable of the store.

        Raises:
            InputError: a site did not fire as often as expected.
            NonFiniteError: an activation is NaN or infinite.
        """
        tensors = self.site_hooks.collect()
        with torch.no_grad():
            tensors |= self.outputs.statistics(batch, logits)
            values = to_host(tensors)
        check_finite(self.spec, values, stage, rows, batch.index)
        return {name: value for name, value in values.items() if "/" not in name}


def write_batch(
    buffer: BlockBuffer,
    rows: NDArray[np.int64],
    values: Mapping[str, NDArray[Any]],
    spec: CaptureSpec,
    selected: NDArray[np.intp] | None = None,
) -> None:
    """Write the values of one batch into a block buffer.

    Args:
        buffer: the block.
        rows: table rows to write, all of them in the block.
        values: values of the batch by variable, with a layer axis in front where the site has one.
        spec: what the store records.
        selected: positions of `rows` in the batch; None where `rows` is the whole batch.
    """
    columns = len(spec.labels)
    for variable in spec.variables_by_name.values():
        value = values[variable.name]
        axis = 1 if variable.has("layer") else 0
        if selected is not None and len(selected) != value.shape[axis]:
            value = np.take(value, selected, axis=axis)
        # The first columns may be absent: no row of the batch has tokens there.
        first = columns - value.shape[axis + 1] if variable.has("token") else 0
        buffer.write(variable.name, rows, value, first_token=first)
