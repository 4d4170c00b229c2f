"""Forecast of a capture: bytes, files, tokens, memory and time before anything is written.

Sizes are exact, from the geometry of the store. Time is measured on one real batch of the first stage's model.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch

from stratalens.plugin.capture.options import CaptureOptions
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.capture.store import store_size
from stratalens.plugin.models.adapters import Adapter, adapt
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.stage import Stage, loaded_model, parse_stages

_SAMPLE = 32  # rows of the timed batch


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

    Args:
        stages: the stages to record, as for `stratalens.capture`.
        table: the prompts, or a sample of them.
        sites: as for `stratalens.capture`.
        layers: as for `stratalens.capture`.
        positions: as for `stratalens.capture`.
        dtype: as for `stratalens.capture`.
        statistics: as for `stratalens.capture`.
        device: as for `stratalens.capture`.
        rows: number of rows to forecast where the table is a sample; None for the rows of the table.

    Returns:
        bytes, files, rows, tokens (of all stages), memory_bytes (of the two block buffers), rows_per_block, and seconds
        (of all forward passes, without loading). The seconds come from one timed batch of at most 32 rows and have two
        digits, so two runs differ.

    Raises:
        InputError: as `stratalens.capture`.
    """
    return forecast_capture(stages, table, CaptureOptions.of_call(locals()), rows=rows)


def forecast_capture(
    stages: Any, table: PromptTable, options: CaptureOptions, *, rows: int | None = None
) -> dict[str, Any]:
    """Forecast a capture with these options; the result is that of `forecast`."""
    parsed = parse_stages(stages)
    with loaded_model(parsed[0], options.tokenizer, options.device) as model:
        adapter = adapt(model, options.forward)
        spec = CaptureSpec.from_model(table, adapter, options)
        return forecast_spec(adapter, spec, len(parsed), rows)


def forecast_spec(adapter: Adapter, spec: CaptureSpec, stages: int, rows: int | None = None) -> dict[str, Any]:
    """Forecast the recording of a specification by the model that it was made from; see `forecast`."""
    lengths = spec.lengths
    timed = lengths.argsort()[len(lengths) // 2 :][:_SAMPLE]  # of median length and above
    width = int(lengths[timed].max())
    ids, mask = (
        torch.from_numpy(array).to(adapter.device)
        for array in spec.tokenized.batch(timed, width, answers=spec.runs_answers)
    )
    output: Literal["none", "logits"] = "logits" if spec.outputs else "none"
    with torch.no_grad(), evaluation_mode(adapter.model):
        start = time.perf_counter()
        adapter.run(ids, mask, output, None)
        seconds = time.perf_counter() - start
    size = store_size(spec, stages, rows)
    tokens = round(int(lengths.sum()) * (1 if rows is None else rows / len(lengths))) * stages
    return {
        "bytes": size.nbytes,
        "files": size.files,
        "rows": size.rows,
        "tokens": tokens,
        "memory_bytes": size.memory,
        "rows_per_block": size.block_size,
        "seconds": two_digits(seconds / (width * len(timed)) * tokens),
    }


def two_digits(seconds: float) -> float:
    """Round a forecast time to two digits, the precision of one timed batch; a short time does not become zero.

    Example:
        >>> two_digits(0.04321), two_digits(12345.6)
        (0.043, 12000.0)
    """
    return float(f"{seconds:.2g}")
