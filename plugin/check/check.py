"""check(): whether hooks give what the model computes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import nn

from stratalens.plugin.check.components import check_components, choose_parts, recorded_calls
from stratalens.plugin.check.hf_modules import HFModules, find_modules
from stratalens.plugin.check.invariance import check_invariance, run_model
from stratalens.plugin.check.modules import check_modules
from stratalens.plugin.check.report import CheckReport, Finding
from stratalens.plugin.check.residual_stream import check_logits, check_residual_stream, last_residual
from stratalens.plugin.check.sample import TEXTS, Sample, choose_sample, random_row
from stratalens.plugin.check.traces import Tracer
from stratalens.plugin.models.adapters import Adapter, BridgeAdapter, ForwardFunction, adapt
from stratalens.plugin.models.hooks import evaluation_mode
from stratalens.plugin.models.sites import SHORT_NAMES, hook_of
from stratalens.plugin.models.tokenizers import own_tokenizer
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.prompts.tokenization import check_token_ids

#: Sites that are checked, where the model has them. `result` needs a flag that changes the computation.
SITES = tuple(name for name in SHORT_NAMES if name != "result")
VERSIONS = ("torch", "transformers", "transformer-lens", "stratalens")


def check(
    model: Any,
    table: PromptTable | None = None,
    *,
    tokenizer: Any = None,
    forward: ForwardFunction | None = None,
    sites: Sequence[str] = (),
) -> CheckReport:
    """Check that the hooks of a model give what the model computes.

    A sequence of at most 12 tokens runs through the model a few times. The checks are:

    - residual sum: resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post, or the form of the
      architecture (parallel blocks, norms behind the sum, scaled residuals).
    - next block: resid_pre of a block is resid_post of the block before.
    - logits: the last residual stream gives the logits through the final norm and the head.
    - Hugging Face module: every site equals the input or output of the module that transformers names, read by a
      plain PyTorch hook (TransformerBridge only).
    - same as transformers: attention, MLP and norms of a block give what the classes of transformers give for the same
      input (TransformerBridge only; the first, the middle and the last block, and the first of each layer type).
    - padded = unpadded, batch = single, twice = once, cache on = off
      (key-value cache), mask respected (tokens on the padding change nothing), left padding (the same on the left).

    Args:
        model: TransformerBridge, HookedTransformer or HookedRootModule.
        table: prompts, of which the longest of the first four is used; None uses an English sentence, or random token
            ids without a tokenizer.
        tokenizer: None takes the model's.
        forward: your own forward function, as in `capture`.
        sites: further sites to check, full TransformerLens names.

    Returns:
        CheckReport: `ok` is False if any value is different. A difference up to 1e-4 of the largest value (float32;
        2e-2 for float16, 8e-2 for bfloat16) counts as rounding.

    Raises:
        InputError: the model has no TransformerLens hooks.

    Example:
        >>> import torch
        >>> from transformer_lens.hook_points import HookPoint
        >>> from transformer_lens.HookedRootModule import HookedRootModule
        >>> class Tiny(HookedRootModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.hook_embed = torch.nn.Embedding(9, 8), HookPoint()
        ...         self.setup()
        ...
        ...     def forward(self, tokens):
        ...         return self.hook_embed(self.embed(tokens))
        >>> check(Tiny()).ok
        True
    """
    start = time.perf_counter()
    adapter = adapt(model, forward)
    sample = _sample(adapter, table, tokenizer)
    findings = tuple(run_checks(adapter, sample, sites))
    return CheckReport(
        findings=findings,
        model=adapter.name,
        versions={name: version(name) for name in VERSIONS},
        rows=1,
        tokens=len(sample.row),
        seconds=time.perf_counter() - start,
    )


def run_checks(adapter: Adapter, sample: Sample, sites: Sequence[str] = (), *, only: bool = False) -> Iterator[Finding]:
    """Run all checks of a model on a sample.

    Args:
        adapter: the model.
        sample: tokens to run.
        sites: further sites to check, full TransformerLens names.
        only: report on `sites` alone, as they are recorded: without padding on the left. The other sites still serve
            the sums that `sites` are parts of.
    """
    hooks = hooks_to_check(adapter, sites)
    wanted = {place: hook for place, hook in hooks.items() if not only or hook in set(sites)}
    has_own_hooks = any(point.fwd_hooks for point in adapter.points.values())  # an intervention breaks every sum
    modules = find_modules(adapter) if isinstance(adapter, BridgeAdapter) else HFModules()
    with evaluation_mode(adapter.model), Tracer(adapter, hooks.values()) as tracer:
        parts = choose_parts(adapter) if isinstance(adapter, BridgeAdapter) and not has_own_hooks else {}
        with recorded_calls(parts) as calls:
            run = partial(run_model, adapter)
            alone = tracer.trace(sample.alone(), hooks.values(), run=run, modules=modules.modules)
        if has_own_hooks:
            yield Finding("sites", "", None, "not checkable", note="hooks of your own are on the model")
        else:
            by_site = [*check_residual_stream(adapter, alone, hooks)]
            if isinstance(adapter, BridgeAdapter):
                by_site += check_modules(adapter, alone, hooks, modules)
                yield from check_components(adapter, calls)
            yield from (finding for finding in by_site if not only or (finding.site, finding.layer) in wanted)
            yield from check_logits(adapter, alone, last_residual(alone, hooks, adapter.n_layers))
        yield from check_invariance(tracer, sample, wanted, alone, left=not only)


def hooks_to_check(adapter: Adapter, sites: Sequence[str] = ()) -> dict[tuple[str, int | None], str]:
    """Return the hooks of the sites that this model has: (site, layer) -> TransformerLens name."""
    hooks: dict[tuple[str, int | None], str] = {}
    for site in SITES:
        template = hook_of(adapter, site)
        if template is None:
            continue
        for layer in range(adapter.n_layers or 0) if "{layer}" in template else (None,):
            hook = template if layer is None else template.replace("{layer}", str(layer))
            if hook in adapter.points:
                hooks[site, layer] = hook
    if type(adapter) is Adapter:  # a model of the user's: all of its hook points
        sites = [*sites, *adapter.points]
    known = set(hooks.values())
    hooks |= {(hook, None): hook for hook in sites if hook in adapter.points and hook not in known}
    return hooks


def _sample(adapter: Adapter, table: PromptTable | None, tokenizer: Any) -> Sample:
    vocabulary = adapter.size("d_vocab") or _embedding_rows(adapter) or 4
    tokenizer = tokenizer if tokenizer is not None else own_tokenizer(adapter)
    if table is not None:
        rows = list(table.tokenize(tokenizer, max_length=adapter.max_length).ids[:4])
    elif tokenizer is not None:
        rows = [np.asarray(tokenizer(TEXTS[0]).input_ids, dtype=np.int64)]
    else:
        rows = [random_row(vocabulary)]
    if adapter.embedding_rows is not None:
        check_token_ids(rows, adapter.embedding_rows)
    return choose_sample(rows, vocabulary, adapter.max_length)


def _embedding_rows(adapter: Adapter) -> int | None:
    sizes = [m.num_embeddings for m in adapter.model.modules() if isinstance(m, nn.Embedding)]
    return max(sizes, default=None)
