"""summarize(): statistics of activations while the model runs, without storing the activations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
import xarray as xr

from stratalens.analyses.data.summary import open_summary
from stratalens.plugin.capture.batching import BatchSize, length_buckets
from stratalens.plugin.capture.checks import check_before_recording
from stratalens.plugin.capture.forecast import forecast_spec
from stratalens.plugin.capture.options import CaptureOptions, Positions
from stratalens.plugin.capture.run import ForwardPasses, bytes_per_token, loaded_adapter
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.capture.store import check_stage_model, warn_about_missing_entities
from stratalens.plugin.capture.summary_plan import SummaryPlan, TokenClasses, make_plan
from stratalens.plugin.capture.summary_size import rows_for_one_percent, summary_size
from stratalens.plugin.capture.summary_state import StageSums, SummaryFolder, process_rows, row_blocks
from stratalens.plugin.capture.summary_sums import DeviceModel
from stratalens.plugin.capture.tokens import warn_about_repeated_tokens
from stratalens.plugin.models.adapters import Adapter, ForwardFunction, adapt
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.models.user_hooks import user_hooks
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.plugin.progress import Progress, ProgressFunction
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.checkpoints import Checkpoint, check_checkpoint
from stratalens.plugin.stages.stage import Stage, loaded_model, parse_stages
from stratalens.store.errors import InputError
from stratalens.store.files import user_path


def summarize(
    stages: Any,
    table: PromptTable | Sequence[str],
    path: str | os.PathLike[str],
    *,
    by: str | TokenClasses | None = None,
    sites: Sequence[str] | str = ("resid_post",),
    layers: Sequence[int] | None = None,
    positions: Positions = ("last",),
    order: Sequence[object] | None = None,
    probes: Sequence[str] | None = None,
    sample: int = 256,
    seed: int = 0,
    batch_size: int | Literal["auto"] = "auto",
    tokenizer: Any = None,
    prepend_bos: bool | None = None,
    device: str | torch.device | None = None,
    missing: Literal["raise", "nan"] = "raise",
    check: Literal["raise", "warn", False] = "raise",
    forward: ForwardFunction | None = None,
    progress: bool | ProgressFunction | None = None,
    allow_same_weights: bool = False,
    rank: tuple[int, int] = (0, 1),
    block_size: int | None = None,
    checkpoint_seconds: float = 60.0,
) -> xr.Dataset:
    """Add up statistics of activations while the model runs; the activations are not stored.

    The sums are exact: centroids, and coefficients and intercepts of ridge, LDA and difference-of-means probes are
    those of a store of the same rows, up to the rounding of float64. Everything that needs single rows comes from a
    seeded sample of them. An interrupted call resumes when it is repeated, and new stages are added.

    Args:
        stages: as for `capture`: one hooked model, or {name: model or checkpoint} in training order.
        table: the prompts, or a list of texts.
        path: folder of the summary.
        by: label column, {class: token ids or texts of single tokens}, or None for one group of all rows. Tokens in no
            class are left out.
        sites: as for `capture`.
        layers: as for `capture`.
        positions: as for `capture`. Named positions have sums of their own each; "all" adds up all tokens together.
        order: groups wanted, in order; None = all. Shards of a corpus need it where one may have no row of a group.
        probes: the probes that the sums must allow, among "ridge", "lda" and "diffmeans"; () for means and moments
            alone. None allows all three where `by` groups the rows, and otherwise keeps the scatter of "ridge". LDA
            takes two and a half times the space of ridge.
        sample: most sampled rows of each stage, layer, token and group. An entity is in the sample with all of its
            rows or not at all.
        seed: of the sample.
        batch_size: as for `capture`.
        tokenizer: as for `capture`.
        prepend_bos: as for `capture`.
        device: as for `capture`.
        missing: "raise", or "nan" to leave out positions that a prompt does not have.
        check: as for `capture`.
        forward: as for `capture`.
        progress: as for `capture`.
        allow_same_weights: accept two stages with the same weights.
        rank: (rank, number of processes) where several processes share the table, each with a `path` of its own.
            `merge_summaries` joins them.
        block_size: rows between two points where a run can resume; None chooses.
        checkpoint_seconds: least time between two saved states, on top of twenty times that of saving one.

    Returns:
        The summary, as `open_summary` opens it: means, moments, scatter matrices, quantiles of norms and sampled rows
        for every stage, layer, token and group.

    Raises:
        InputError: an argument is invalid, or the label has a single group.
        MismatchError: the folder summarizes something else, or a stage with other weights.
        NonFiniteError: an activation is NaN or infinite.
        StoreBusyError: another process writes the same summary.

    Example:
        >>> sl.summarize(model, table, "run.summary", by="trained_stage")  # doctest: +SKIP
    """
    parsed = parse_stages(stages)
    for stage in parsed:  # all folders are checked before the first model is loaded
        if isinstance(stage.source, Checkpoint):
            check_checkpoint(user_path(stage.source.folder))
    prompts = _as_table(table)
    options = CaptureOptions.of_call({**locals(), "statistics": False})
    first, *others = parsed
    with ExitStack() as stack:
        with loaded_adapter(first, options) as adapter:
            spec = CaptureSpec.from_model(prompts, adapter, options)
            check_before_recording(adapter, spec, None)
            warn_about_repeated_tokens(prompts, spec.tokenized, spec.tokenizer)
            if prompts is table:
                warn_about_missing_entities(prompts)
            rows, blocks = process_rows(len(prompts), block_size, rank)
            plan = make_plan(prompts, spec, parsed, by, order, probes, sample, seed, rows)
            folder = stack.enter_context(SummaryFolder(path, plan, adapter, sample, seed, (*rank, blocks)))
            orders = folder.stage_orders(parsed, named=not isinstance(stages, list))
            run = _SummaryRun(folder, plan, options, orders, checkpoint_seconds)
            run.add_stage(first, adapter)
            del adapter  # else this model would stay in memory while the next one is loaded
        for stage in others:
            with loaded_adapter(stage, options) as adapter:
                check_stage_model(spec, adapter, stage.name)
                run.add_stage(stage, adapter)
                del adapter
    return open_summary(path)


def _as_table(table: PromptTable | Sequence[str]) -> PromptTable:
    if isinstance(table, PromptTable):
        return table
    if isinstance(table, str) or not all(isinstance(text, str) for text in table):
        raise InputError(
            "the table is neither a PromptTable nor a list of texts. Read it first: stratalens.PromptTable.read("
            "'prompts.csv'), or .from_dataframe(df)."
        )
    import pandas as pd

    return PromptTable.from_dataframe(pd.DataFrame({"prompt": list(table)}))


class _SummaryRun:
    """The stages of one call of `summarize`."""

    def __init__(
        self,
        folder: SummaryFolder,
        plan: SummaryPlan,
        options: CaptureOptions,
        orders: dict[str, int],
        checkpoint_seconds: float,
    ) -> None:
        self.folder, self.plan, self.options, self.orders = folder, plan, options, orders
        self.checkpoint_seconds = checkpoint_seconds

    def add_stage(self, stage: Stage, adapter: Adapter) -> None:
        """Add up the rows of one stage that are not in its sums yet."""
        spec = self.plan.spec
        number = self.folder.begin(
            stage.name,
            self.orders[stage.name],
            weights_fingerprint(adapter),
            user_hooks(adapter),
            self.options.allow_same_weights,
        )
        rows, _ = process_rows(len(spec.entities), self.folder.block_size, self.options.rank)
        blocks = row_blocks(rows, self.folder.block_size)
        if self.folder.is_complete(number):
            with Progress(stage.name, len(rows), len(rows), self.options.progress):
                return
        sums = StageSums(self.plan, adapter.device)
        done = self.folder.restore(number, sums)
        hooked_model = DeviceModel(adapter, spec)
        size = BatchSize(self.options.batch_size, adapter, bytes_per_token(adapter, spec, hooked_model.outputs.split))
        passes = ForwardPasses(hooked_model, stage.name, size)
        counted = sum(map(len, blocks[:done]))
        saver = self.folder.saver(number, sums, self.checkpoint_seconds)
        with (
            Progress(stage.name, counted, len(rows), self.options.progress) as bar,
            hooked_model,
            evaluation_mode(adapter.model),
            torch.no_grad(),
        ):
            for block_number, block in enumerate(blocks[done:], done + 1):
                for bucket in length_buckets(block, spec.lengths):
                    for batch, _ in passes.batches(bucket):
                        assert hooked_model.batch is not None
                        sums.add(*hooked_model.batch)
                        bar.advance(len(batch))
                saver(block_number)
        self.folder.finish(number, sums)


def forecast_summary(
    stages: Any,
    table: PromptTable | Sequence[str],
    *,
    by: str | TokenClasses | None = None,
    sites: Sequence[str] | str = ("resid_post",),
    layers: Sequence[int] | None = None,
    positions: Positions = ("last",),
    order: Sequence[object] | None = None,
    probes: Sequence[str] | None = None,
    sample: int = 256,
    seed: int = 0,
    tokenizer: Any = None,
    prepend_bos: bool | None = None,
    device: str | torch.device | None = None,
    missing: Literal["raise", "nan"] = "raise",
    forward: ForwardFunction | None = None,
    rows: int | None = None,
) -> dict[str, Any]:
    """Forecast the size of a summary and the time of its forward passes; nothing is written.

    Args:
        stages: as for `summarize`; the model of the first stage is loaded.
        table: the prompts, or a sample of them.
        by: as for `summarize`.
        sites: as for `summarize`.
        layers: as for `summarize`.
        positions: as for `summarize`.
        order: as for `summarize`.
        probes: as for `summarize`.
        sample: as for `summarize`.
        seed: as for `summarize`.
        tokenizer: as for `summarize`.
        prepend_bos: as for `summarize`.
        device: as for `summarize`.
        missing: as for `summarize`.
        forward: as for `summarize`.
        rows: number of prompts to forecast where the table is a sample; None for those of the table.

    Returns:
        bytes, working_bytes, device_bytes, stored_bytes, share and rows_for_one_percent as from `summary_size`, over
        all sites, where rows are prompts. Then rows, tokens of all stages, and seconds of the forward passes alone,
        from one timed batch.

    Raises:
        InputError: as `summarize`.

    Example:
        >>> forecast = sl.forecast_summary(model, table, by="trained_stage", rows=10**7)  # doctest: +SKIP
        >>> forecast["bytes"], forecast["rows_for_one_percent"]  # doctest: +SKIP
    """
    parsed, prompts = parse_stages(stages), _as_table(table)
    options = CaptureOptions.of_call({**locals(), "statistics": False})
    with loaded_model(parsed[0], options.tokenizer, options.device) as model:
        adapter = adapt(model, options.forward)
        spec = CaptureSpec.from_model(prompts, adapter, options)
        capture_forecast = forecast_spec(adapter, spec, len(parsed), rows)
    process, _ = process_rows(len(prompts), None, (0, 1))
    count = len(prompts) if rows is None else rows
    plan = make_plan(prompts, spec, parsed, by, order, probes, sample, seed, process)
    per_prompt = float((spec.index >= 0).sum()) / len(prompts) / (1 if plan.pooled else len(plan.tokens))
    total: dict[str, Any] = dict.fromkeys(("bytes", "working_bytes", "device_bytes", "stored_bytes"), 0)
    for site in spec.selection.sites:
        size = summary_size(
            layers=len(spec.selection.layers) if site.in_blocks else 1,
            features=int(torch.Size(site.feature_shape).numel()),
            rows=max(1, round(per_prompt * count)),
            groups=len(plan.names),
            tokens=len(plan.tokens),
            stages=len(parsed),
            order=plan.order,
            sample=sample,
            itemsize=torch.empty(0, dtype=site.dtype).element_size(),
        )
        for name in total:
            total[name] += size[name]
    return {
        **total,
        "share": total["bytes"] / total["stored_bytes"],
        "rows_for_one_percent": rows_for_one_percent(total["bytes"], total["stored_bytes"] / count),
        "rows": count,
        "tokens": capture_forecast["tokens"],
        "seconds": capture_forecast["seconds"],
    }
