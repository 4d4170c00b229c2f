"""What TransformerLens did to a model's weights when it loaded them, read off the weights themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def measured_processing(model: Any) -> dict[str, bool]:
    """Whether norms are folded and weights centred, read off the weights themselves.

    TransformerLens keeps no record of the flags that a model was loaded with. Folding
    leaves no weight (HookedTransformer) or a weight of ones (bridge) in the first norm;
    centring leaves columns with a mean of zero.
    """
    found: dict[str, bool] = {}
    blocks = getattr(model, "blocks", None)
    first = blocks[0] if blocks is not None and len(blocks) else None
    norm = getattr(first, "ln1", None)
    if norm is not None:
        weight = getattr(norm, "w", None) if hasattr(norm, "w") else getattr(norm, "weight", None)
        found["norms_folded"] = weight is None or bool((weight == weight.new_ones(())).all())
    with torch.no_grad():
        for key, module in (("writing_centred", getattr(first, "mlp", None)), ("unembed_centred", model)):
            try:
                matrix = module.W_out if key == "writing_centred" else module.W_U  # type: ignore[union-attr]
            except (AttributeError, NotImplementedError):
                continue  # mixtures of experts, models without a head
            if isinstance(matrix, Tensor) and matrix.ndim == 2:
                few = matrix[:64].float()  # each row centred or not: a few of them tell
                mean, spread = few.mean(-1).abs().max(), few.std()
                found[key] = bool(mean <= 1e-4 * spread)
    return found
