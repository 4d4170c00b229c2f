"""surprisal(): how unexpected each token of a table is to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.batching import BatchSize, length_buckets, out_of_memory
from stratalens.plugin.capture.options import CaptureOptions
from stratalens.plugin.capture.output_hooks import OutputHooks, Sequences
from stratalens.plugin.capture.run import bytes_per_token, loaded_adapter
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.models.adapters import Adapter, ForwardFunction
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.progress import Progress, ProgressFunction
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.stage import parse_stages
from stratalens.store.errors import InputError


def surprisal(
    model: Any,
    table: PromptTable,
    *,
    tokenizer: Any = None,
    prepend_bos: bool | None = None,
    batch_size: int | Literal["auto"] = "auto",
    device: str | torch.device | None = None,
    forward: ForwardFunction | None = None,
    progress: bool | ProgressFunction | None = None,
) -> list[NDArray[np.float32]]:
    """Compute the surprisal of each token of each prompt: -log P(token given the tokens before it), in nats.

    `PromptTable.at_tokens` makes rows of the tokens above a limit.

    Args:
        model: a hooked model, a checkpoint folder, or what `capture` takes as one stage.
        table: the prompts.
        tokenizer: None takes that of the model's checkpoint.
        prepend_bos: as for `capture`.
        batch_size: as for `capture`.
        device: as for `capture`.
        forward: as for `capture`.
        progress: as for `capture`.

    Returns:
        For each row a float32 array of shape (tokens,) along `table.tokenize(tokenizer).ids[row]`. The first token has
        no tokens before it and is NaN.

    Raises:
        InputError: the model gives no logits of the next token, or a prompt does not fit it.

    Example:
        >>> import stratalens as sl
        >>> values = sl.surprisal(model, table, tokenizer=tokenizer)  # doctest: +SKIP
        >>> rows = table.at_tokens([row > 8 for row in values], tokenizer, name="surprise")  # doctest: +SKIP
    """
    options = CaptureOptions(
        positions="all", statistics=("loss",), tokenizer=tokenizer, prepend_bos=prepend_bos, batch_size=batch_size,
        device=device, forward=forward, progress=progress,
    )  # fmt: skip
    stages = parse_stages(model)
    if len(stages) != 1:
        raise InputError(f"surprisal takes one model, not {len(stages)} stages; pass stages['name'] of one of them")
    with loaded_adapter(stages[0], options) as adapter:
        return _surprisal(adapter, CaptureSpec.from_model(table, adapter, options), options, stages[0].name)


def _surprisal(adapter: Adapter, spec: CaptureSpec, options: CaptureOptions, stage: str) -> list[NDArray[np.float32]]:
    outputs = OutputHooks(adapter, ("loss",))
    size = BatchSize(options.batch_size, adapter, bytes_per_token(adapter, spec, outputs.split))
    lengths = spec.tokenized.lengths
    values: list[NDArray[np.float32]] = [np.empty(0, dtype=np.float32)] * len(lengths)
    outputs.attach()
    try:
        with Progress(stage, 0, len(lengths), options.progress) as bar, evaluation_mode(adapter.model), torch.no_grad():
            for bucket in length_buckets(np.arange(len(lengths)), lengths):
                start = 0
                while start < len(bucket.rows):
                    rows = bucket.rows[start : start + size.rows(bucket.pad_to)]
                    try:
                        losses = _losses(adapter, spec, outputs, rows, bucket.pad_to)
                    except (RuntimeError, MemoryError) as error:
                        outputs.abandon()
                        if not out_of_memory(error) or not size.shrink(len(rows), bucket.pad_to):
                            raise
                        continue
                    for row, line in zip(rows.tolist(), losses, strict=True):
                        values[row] = line[: lengths[row]].copy()
                    start += len(rows)
                    bar.advance(len(rows))
    finally:
        outputs.detach()
    return values


def _losses(
    adapter: Adapter, spec: CaptureSpec, outputs: OutputHooks, rows: NDArray[np.int64], pad_to: int
) -> Sequence[NDArray[np.float32]]:
    """Run one batch; return the loss of every token, float32 arrays of shape (pad_to,)."""
    ids, mask = spec.tokenized.batch(rows, pad_to)
    end = spec.tokenized.lengths[rows]
    places = np.arange(pad_to)
    index = np.where(places < end[:, None], places, -1)
    device = adapter.device
    result = adapter.run(
        torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device), "none" if outputs.split else "logits"
    )
    batch = Sequences(ids, np.zeros_like(end), index, end, end)
    losses = outputs.statistics(batch, result if isinstance(result, Tensor) else None)["loss"]
    return list(losses.float().cpu().numpy())
