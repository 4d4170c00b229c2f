"""What identifies the weights of a stage: one hash over the state dict that lies underneath.

For a TransformerBridge that is the state dict of the Hugging Face model inside,
under Hugging Face's own names, so that both TransformerLens lines and the plain
Hugging Face model agree. Names of files and folders play no part.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from stratalens.plugin.models.adapters import Adapter

_PREFIX = b"stratalens weights 2"


_WRAPPED = "._original_component"  # what the bridge puts into names when it wraps a module in place


_PIECE = 1 << 26  # bytes hashed at a time: bounds the host memory taken for weights that lie on a GPU


def weights_fingerprint(model: Adapter | nn.Module) -> str:
    """BLAKE3 (256 bits, hex) over names, dtypes, shapes and bytes of all weights, in the order of their names.

    Depends on neither the order of the state dict nor the device; the same values in another
    dtype are other weights. Buffers that the model saves count, those that it does not save
    (rotary tables) do not. Weights are hashed on several threads, shared ones once.

    >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> b.load_state_dict(a.state_dict())
    <All keys matched successfully>
    >>> weights_fingerprint(a) == weights_fingerprint(b)
    True
    """
    module = model.weights_module if isinstance(model, Adapter) else model
    tensors = underlying_state(module)
    shared: dict[tuple[Any, ...], str] = {}
    for tensor in tensors.values():
        shared.setdefault(_identity(tensor), "")
    unique = {_identity(tensor): tensor for tensor in tensors.values()}
    with ThreadPoolExecutor() as pool:
        shared.update(zip(unique, pool.map(_digest, unique.values()), strict=True))
    whole = blake3(_PREFIX)
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(map(str, tensor.shape))
        whole.update(f"{name}|{tensor.dtype!s}|{shape}|{shared[_identity(tensor)]}\n".encode())
    return whole.hexdigest()


def underlying_state(module: nn.Module) -> dict[str, Tensor]:
    """State dict under the names that the model's own class gives it.

    A bridge wraps modules in place, renames them and adds split copies of joint
    projections. The class itself, built without memory from its config, says
    which names are its own.
    """
    found = module.state_dict()
    state = {k.replace(_WRAPPED, ""): v for k, v in found.items() if isinstance(v, Tensor)}
    config = getattr(module, "config", None)
    if (
        config is None
        or getattr(type(module), "config_class", None) is None
        or not any(_WRAPPED[1:] in key for key in found)
    ):
        return state
    kind: Any = type(module)
    own = _own_names(kind, config.to_json_string())
    return {k: v for k, v in state.items() if k in own}


@lru_cache(maxsize=8)
def _own_names(kind: Any, config: str) -> frozenset[str]:
    """Names in the state dict of a fresh model of this class and config, which is built without memory."""
    with torch.device("meta"):
        return frozenset(kind(kind.config_class(**json.loads(config))).state_dict())


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _digest(tensor: Tensor) -> str:
    digest = blake3()
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor
    for start in range(0, flat.numel(), _PIECE):
        digest.update(flat[start : start + _PIECE].cpu().numpy().data)
    return digest.hexdigest()
