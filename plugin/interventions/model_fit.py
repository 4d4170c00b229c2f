"""Whether directions fit a model: its weights, the site, the layers and the width."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from stratalens.analyses.data.array_types import Array
from stratalens.analyses.directions.direction_set import Directions
from stratalens.plugin.models.adapters import Adapter, BridgeAdapter
from stratalens.plugin.models.sites import available_names, has_hook, hook_of
from stratalens.plugin.models.weights import weights_fingerprint
from stratalens.store.errors import InputError, MismatchError, join_names, suggest

_SIZES = ("d_model", "d_mlp", "d_head", "n_heads")
# Attributes of attention layers that drop values with a function, not with a module.
_DROPOUTS = ("attention_dropout", "attn_dropout", "dropout", "hidden_dropout", "resid_dropout")

_DROPOUT_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def site_hooks(adapter: Adapter, site: str, layers: Sequence[int]) -> dict[int | None, str]:
    """Return the TransformerLens name of a site at each layer; the key None where it is outside the blocks.

    Raises:
        InputError: this model does not have the site or a layer.
    """
    template = hook_of(adapter, site) or (site if has_hook(adapter, site) else None)
    if template is None:
        raise InputError(f"this {adapter.kind} has no site {site!r}: {suggest(site, available_names(adapter))}")
    if "{layer}" not in template:
        if layers:
            raise InputError(f"site {site!r} is outside the blocks, but the directions have layers {list(layers)}")
        return {None: template}
    if not layers:
        raise InputError(
            f"site {site!r} is in every block, but the directions have no layer; give the vectors a dim or coordinate "
            "'layer', for example vectors.expand_dims(layer=[5])"
        )
    hooks: dict[int | None, str] = {layer: template.replace("{layer}", str(layer)) for layer in layers}
    for layer, hook in hooks.items():
        if hook not in adapter.points:
            raise InputError(
                f"the directions are of layer {layer}, but site {site!r} of this model has blocks "
                f"0 to {(adapter.n_layers or 1) - 1}; select others: directions.sel(layer=...)"
            )
        if setter := adapter.setter_for(hook):
            raise InputError(f"site {site!r} ({hook}) fires only after model.{setter}(True)")
    return hooks


def check_width(adapter: Adapter, directions: Directions) -> None:
    """Check the sizes of the features against those of the model, as far as its config has them.

    Raises:
        MismatchError: another width.
    """
    for dim, size in zip(directions.features, directions.feature_shape, strict=True):
        own = adapter.size(dim) if dim in _SIZES else None
        if own is not None and own != size:
            raise MismatchError(
                f"the directions have {size} features along {dim}, this model has {own}; use directions of this model"
            )
    if directions.site.startswith(("resid", "embed", "ln_final")) and (own := adapter.size("d_model")):
        size = int(np.prod(directions.feature_shape))
        if size != own:
            raise MismatchError(
                f"the directions have {size} features, site {directions.site!r} of this model has {own}; use "
                "directions of this model"
            )


def stage_of_weights(
    adapter: Adapter, directions: Directions, other_stage: bool, fingerprint: str | None = None
) -> str | None:
    """Find the stage whose directions belong to the weights of a model.

    Args:
        adapter: the model.
        directions: the directions.
        other_stage: accept directions of another stage, if there is only one.
        fingerprint: of the weights; None computes it.

    Returns:
        Name of the stage; None where the directions have none.

    Raises:
        MismatchError: the weights are those of none of the stages.
        InputError: several stages to choose from.
    """
    stages, stored = directions.stage, directions.fingerprints
    if stored and not (other_stage and len(stages) == 1):
        fingerprint = fingerprint or weights_fingerprint(adapter)
        own = [stage for stage, value in stored.items() if value == fingerprint]
        if own:
            return own[0]
        if not other_stage:
            raise MismatchError(
                f"the directions come from stage {join_names(stages)}, and this model has other weights (fingerprint "
                f"{fingerprint[:12]}...). Load the model of a stage, or pass other_stage=True with one stage: "
                f"directions.sel(stage={stages[-1]!r})"
            )
    if len(stages) > 1:
        raise InputError(
            f"the directions have stages {join_names(stages)}; choose one: directions.sel(stage={stages[-1]!r})"
        )
    return stages[0] if stages else None


def check_lengths(vectors: Array, directions: Directions, where: str) -> None:
    """Check that no vector has length zero.

    Raises:
        InputError: names the direction and the place.
    """
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InputError(
            f"direction {directions.names[int(np.argmax(bad))]!r} has length zero at {where}; select others: "
            "directions.sel(layer=..., direction=...)"
        )


def refuse_training(adapter: Adapter) -> None:
    """Refuse a model in training mode whose output is random or depends on the rest of the batch.

    Raises:
        InputError: names the remedy.
    """
    model = adapter.weights_module
    if not any(module.training for module in model.modules()):
        return
    random = isinstance(adapter, BridgeAdapter) and model.training
    for module in model.modules():
        dropout = isinstance(module, _DROPOUT_MODULES) and module.p > 0
        dropout |= any(isinstance(p := getattr(module, name, None), float) and p > 0 for name in _DROPOUTS)
        if module.training and (dropout or isinstance(module, _BATCH_NORMS)):
            random = True
    if random:
        raise InputError(
            "the model is in training mode, where dropout changes its output at random; call model.eval() first"
        )
