"""The sums that connect the sites of a block, the steps between blocks, and the logits.

A block adds the outputs of its attention and of its MLP to the residual stream. Blocks differ in where they add them
and in whether a norm follows, so each form is tried and the one that fits most blocks is the model's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from stratalens.plugin.check.hf_modules import plain_module
from stratalens.plugin.check.report import Finding, compare, relative_difference, verdict_of
from stratalens.plugin.check.traces import Trace
from stratalens.plugin.models.adapters import Adapter, BridgeAdapter

_PRE, _MID, _POST = "resid_pre", "resid_mid", "resid_post"
_ATTN, _CROSS, _MLP = "attn_out", "cross_attn_out", "mlp_out"

# Prefixes of the sites of each stack of blocks; an encoder-decoder has two.
_STACKS = ("", "encoder_", "decoder_")
UNKNOWN = "the blocks of this architecture add in a way that this check does not know"

#: Values of one block by site.
Block = Mapping[str, Tensor]


@dataclass(frozen=True)
class Form:
    """One way in which a block may compute a site from others.

    Attributes:
        site: the site that is computed.
        inputs: the sites that it is computed from.
        text: the equation.
        compute: (values of the block, index of the block) -> the site.
    """

    site: str
    inputs: tuple[str, ...]
    text: str
    compute: Callable[[Block, int], Tensor]


def forms(adapter: Adapter) -> list[Form]:
    """List the forms of blocks that this check knows, those that most models have first."""
    scale = _residual_scale(adapter)
    candidates = [
        Form(_MID, (_PRE, _ATTN), "resid_mid = resid_pre + attn_out", lambda b, _: b[_PRE] + b[_ATTN]),
        Form(_POST, (_MID, _MLP), "resid_post = resid_mid + mlp_out", lambda b, _: b[_MID] + b[_MLP]),
        Form(
            _POST,
            (_PRE, _ATTN, _MLP),
            "resid_post = resid_pre + attn_out + mlp_out",
            lambda b, _: b[_PRE] + b[_ATTN] + b[_MLP],
        ),
        Form(
            _POST,
            (_MID, _CROSS, _MLP),
            "resid_post = resid_mid + cross_attn_out + mlp_out",
            lambda b, _: b[_MID] + b[_CROSS] + b[_MLP],
        ),
    ]
    if scale is not None:
        candidates += [
            Form(_MID, (_PRE, _ATTN), f"resid_mid = resid_pre + {scale:g} attn_out", _scaled_sum(_PRE, _ATTN, scale)),
            Form(_POST, (_MID, _MLP), f"resid_post = resid_mid + {scale:g} mlp_out", _scaled_sum(_MID, _MLP, scale)),
        ]
    blocks = getattr(adapter.model, "blocks", None)
    if blocks is not None and len(blocks) and all(hasattr(block, n) for block in blocks for n in ("ln1", "ln2")):
        # BERT and other models with the norm behind the sum.
        candidates += [
            Form(
                _MID,
                (_PRE, _ATTN),
                "resid_mid = norm(resid_pre + attn_out)",
                lambda b, layer: plain_module(blocks[layer].ln1)(b[_PRE] + b[_ATTN]),
            ),
            Form(
                _POST,
                (_MID, _MLP),
                "resid_post = norm(resid_mid + mlp_out)",
                lambda b, layer: plain_module(blocks[layer].ln2)(b[_MID] + b[_MLP]),
            ),
        ]
    return candidates


def _scaled_sum(stream: str, output: str, scale: float) -> Callable[[Block, int], Tensor]:
    return lambda block, _: block[stream] + scale * block[output]


def check_residual_stream(
    adapter: Adapter, single: Trace, hooks: Mapping[tuple[str, int | None], str]
) -> Iterator[Finding]:
    """Check the sums inside every block, and that a block starts with what the block before it left.

    Args:
        adapter: the model.
        single: pass of one row without padding.
        hooks: (site, layer) -> hook.
    """
    known = forms(adapter)
    for stack in _STACKS:
        blocks: dict[int, dict[str, Tensor]] = {}
        sites = {f"{stack}{site}": site for site in (_PRE, _MID, _POST, _ATTN, _CROSS, _MLP)}
        for (name, layer), hook in hooks.items():
            if layer is not None and name in sites and hook in single.values:
                blocks.setdefault(layer, {})[sites[name]] = single.values[hook]
        for site in (_MID, _POST):
            candidates = [form for form in known if form.site == site]
            for finding in _check_sum(adapter, site, blocks, candidates):
                yield replace(finding, site=f"{stack}{site}")
        for layer in sorted(blocks):
            following = blocks.get(layer + 1, {})
            if _POST in blocks[layer] and _PRE in following:
                yield compare(
                    "next block",
                    f"{stack}{_PRE}",
                    layer + 1,
                    following[_PRE],
                    blocks[layer][_POST],
                    adapter.dtype,
                    "resid_pre = resid_post of the block before",
                )


def _check_sum(adapter: Adapter, site: str, blocks: Mapping[int, Block], candidates: list[Form]) -> Iterator[Finding]:
    """Choose the form that fits most blocks, and compare every block with it."""
    best: tuple[float, Form, dict[int, float]] | None = None
    for form in candidates:
        layers = [layer for layer, block in sorted(blocks.items()) if {site, *form.inputs} <= set(block)]
        if not layers:
            continue
        differences = {n: relative_difference(form.compute(blocks[n], n), blocks[n][site]) for n in layers}
        middle = float(np.median(list(differences.values())))
        if best is None or (len(differences), -middle) > (len(best[2]), -best[0]):
            best = middle, form, differences
    if best is None:
        if any(site in block for block in blocks.values()):
            yield Finding("residual sum", site, None, "not checkable", note="attn_out or mlp_out is not a site here")
        return
    _, form, differences = best
    verdicts = {layer: verdict_of(difference, adapter.dtype) for layer, difference in differences.items()}
    if isinstance(adapter, BridgeAdapter) and set(verdicts.values()) == {"different"}:
        # No form fits anywhere: the sites are compared with the modules of the Hugging Face model instead.
        yield Finding("residual sum", site, None, "not checkable", note=UNKNOWN)
        return
    for layer, difference in differences.items():
        yield Finding("residual sum", site, layer, verdicts[layer], difference, form.text)


def check_logits(adapter: Adapter, single: Trace, last: Tensor | None) -> Iterator[Finding]:
    """Check that the last residual stream gives the logits through the final norm and the head.

    Args:
        adapter: the model.
        single: pass of one row without padding, with the modules "final norm" and the last block where known.
        last: resid_post of the last block, tensor of shape (1, position, d_model), or None.
    """

    def not_checkable(note: str) -> Finding:
        return Finding("logits", "logits", None, "not checkable", note=note)

    if last is None or adapter.final_norm is None or single.logits is None:
        yield not_checkable("no final norm, head or logits")
        return
    # What transformers itself passes on, by plain hooks: some models put more between these modules.
    block = single.modules.get((f"block {(adapter.n_layers or 0) - 1}", "output"))
    before, after = single.modules.get(("final norm", "input")), single.modules.get(("final norm", "output"))
    if block is not None and before is not None and not _same(adapter, before, block):
        yield not_checkable("other modules are between the last block and the final norm")
        return
    if after is not None and not _gives_logits(adapter, after, single.logits):
        yield not_checkable("the head does more than a projection")
        return
    hidden = plain_module(adapter.final_norm)(last)
    logits = adapter.head(hidden[0]) if isinstance(hidden, Tensor) else None
    if logits is None or logits.shape != single.logits[0].shape:
        yield not_checkable("the head cannot run on single rows")
        return
    yield compare(
        "logits", "logits", None, logits, single.logits[0], adapter.dtype, "head(norm(resid_post of the last block))"
    )


def _same(adapter: Adapter, value: Tensor, reference: Tensor) -> bool:
    same_shape = value.shape == reference.shape
    return same_shape and verdict_of(relative_difference(value, reference), adapter.dtype) != "different"


def _gives_logits(adapter: Adapter, hidden: Tensor, logits: Tensor) -> bool:
    computed = adapter.head(hidden[0]) if hidden.ndim == 3 else None
    return computed is not None and _same(adapter, computed, logits[0])


def _residual_scale(adapter: Adapter) -> float | None:
    config = getattr(adapter, "text_config", None)
    value = getattr(config, "residual_multiplier", None)
    return float(value) if isinstance(value, int | float) and value != 1 else None


def last_residual(single: Trace, hooks: Mapping[tuple[str, int | None], str], n_layers: int | None) -> Tensor | None:
    """Return resid_post of the last block, or None."""
    hook = hooks.get((_POST, (n_layers or 0) - 1))
    return single.values.get(hook) if hook is not None else None
