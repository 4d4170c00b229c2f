"""Comparisons of passes that must give the same values: padding, batch size, repetition, cache, mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stratalens.plugin.check.report import Finding, compare
from stratalens.plugin.check.sample import Sample
from stratalens.plugin.check.traces import Trace, Tracer
from stratalens.plugin.models.adapters import Adapter, BridgeAdapter, Output

#: (site, layer) -> hook
Hooks = Mapping[tuple[str, int | None], str]

LEFT_NOTE = "tokens on the padding change the values where padding is on the left; pad on the right"
STATE_NOTE = "a model without attention carries a state through the padding; pad on the right"


def check_invariance(
    tracer: Tracer, sample: Sample, hooks: Hooks, alone: Trace, *, left: bool = True
) -> Iterator[Finding]:
    """Compare passes over the same tokens.

    The passes leave the output layer out, as a recording does, unless a site needs it. In small models with a large
    vocabulary it takes most of the time.

    Args:
        tracer: the model.
        sample: the tokens.
        hooks: the sites to compare.
        alone: the pass over the row alone, without padding.
        left: whether to check padding on the left too.

    Yields:
        Findings of the checks "padded = unpadded", "batch = single", "twice = once", "cache on = off",
        "mask respected" and "left padding".
    """
    adapter, dtype = tracer.adapter, tracer.adapter.dtype
    run = partial(run_model, adapter, output=_needed_output(hooks))
    single = {hook: value[0] for hook, value in alone.values.items()}
    padded = sample.padded()
    recorded = tracer.trace(padded, hooks.values(), run=run)
    first, second = (recorded.at_tokens(padded, [row]) for row in (0, 1))
    yield from _compare("padded = unpadded", hooks, dtype, first, single)
    yield from _compare("mask respected", hooks, dtype, second, first)
    repeated: list[Finding] = []
    if isinstance(adapter, BridgeAdapter) and adapter.forward is None and adapter.takes_cache:
        cached = tracer.trace(padded, hooks.values(), run=partial(_run_with_cache, adapter))
        repeated = list(_compare("cache on = off", hooks, dtype, cached.at_tokens(padded), recorded.at_tokens(padded)))
        yield from repeated
        del cached
    else:
        yield Finding("cache on = off", "", None, "not checkable", note="this model takes no use_cache")
    del recorded, first, second
    if repeated and all(finding.verdict == "equal" for finding in repeated):
        # The pass with the cache was a second pass over the same tokens.
        yield from (replace(finding, check="twice = once") for finding in repeated)
    else:
        again = tracer.trace(sample.alone(), hooks.values(), run=run)
        yield from _compare("twice = once", hooks, dtype, again.values, alone.values)
        del again
    stacked = tracer.trace(sample.stacked(), hooks.values(), run=run)
    yield from _compare("batch = single", hooks, dtype, {h: v[0] for h, v in stacked.values.items()}, single)
    del stacked
    if left:
        yield from _check_left_padding(tracer, sample, hooks)


def _needed_output(hooks: Hooks) -> Output:
    """Return "logits" if a site is at the output layer."""
    return "logits" if any("unembed" in hook for hook in hooks.values()) else "none"


def _check_left_padding(tracer: Tracer, sample: Sample, hooks: Hooks) -> Iterator[Finding]:
    """Compare two fillings of padding on the left; positions are the same in both, so only the mask matters."""
    adapter = tracer.adapter
    run = partial(run_model, adapter, output=_needed_output(hooks))
    batch = sample.padded("left")
    recorded = tracer.trace(batch, hooks.values(), run=run)
    first, second = (recorded.at_tokens(batch, [row]) for row in (0, 1))
    findings = list(_compare("left padding", hooks, adapter.dtype, second, first, LEFT_NOTE))
    if not _every_block_attends(adapter) and any(finding.verdict == "different" for finding in findings):
        yield Finding("left padding", "", None, "not checkable", note=STATE_NOTE)
    else:
        yield from findings


def _every_block_attends(adapter: Adapter) -> bool:
    """Return whether every block has an attention pattern or an attention output of its own."""
    attending = ("attn.hook_pattern", "attn.hook_attn_scores", "attn.hook_z", "attn.hook_q")
    layers = range(adapter.n_layers or 0)
    return bool(layers) and all(any(f"blocks.{n}.{name}" in adapter.points for name in attending) for n in layers)


def run_model(adapter: Adapter, ids: Tensor, mask: Tensor, output: Output = "logits") -> Any:
    """Run one pass."""
    return adapter.run(ids, mask, output)


def _run_with_cache(adapter: BridgeAdapter, ids: Tensor, mask: Tensor) -> Any:
    return adapter.model(ids, attention_mask=mask, use_cache=True)


def _compare(
    check: str,
    hooks: Hooks,
    dtype: torch.dtype,
    values: Mapping[str, Tensor],
    references: Mapping[str, Tensor],
    note: str = "",
) -> Iterator[Finding]:
    """Compare the sites that both have; `note` is for those that differ."""
    for (site, layer), hook in hooks.items():
        if hook in values and hook in references:
            finding = compare(check, site, layer, values[hook], references[hook], dtype)
            yield replace(finding, note=note) if finding.verdict == "different" else finding
