"""Fingerprint of a model's weights: one hash over the state dict of the model inside.

For a TransformerBridge this is the state dict of the Hugging Face model inside,
under Hugging Face's names. So both TransformerLens lines and the plain Hugging
Face model agree. Names of files and folders have no effect.
"""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from stratalens.plugin.compat import is_headless, is_wrapped_name, unwrapped_name
from stratalens.plugin.models.adapters import Adapter

_PREFIX = b"stratalens weights 2"


_CHUNK_BYTES = 1 << 26  # hashed at a time: limits the host memory for weights on a GPU


def weights_fingerprint(model: Adapter | nn.Module) -> str:
    """Return the BLAKE3 hash (256 bits, hex) of all weights.

    The hash covers names, dtypes, shapes and bytes, sorted by name. It depends on neither
    the order of the state dict nor the device. The same values in another dtype are other
    weights. Buffers that the model saves count; buffers that it does not save (rotary tables)
    do not. Several threads hash the weights, and shared weights are hashed once.

    >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> b.load_state_dict(a.state_dict())
    <All keys matched successfully>
    >>> weights_fingerprint(a) == weights_fingerprint(b)
    True
    """
    tensors = _own_state(model.weights_module if isinstance(model, Adapter) else model)
    unique = {_identity(tensor): tensor for tensor in tensors.values()}
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(unique, pool.map(_digest, unique.values()), strict=True))
    whole = blake3(_PREFIX)
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(map(str, tensor.shape))
        whole.update(f"{name}|{tensor.dtype!s}|{shape}|{digests[_identity(tensor)]}\n".encode())
    return whole.hexdigest()


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict under the names that the model's own class uses.

    A bridge wraps modules in place, renames them and adds split copies of joint
    projections. A model of the same class on the meta device has only its own names.
    """
    state_dict = module.state_dict()
    state = {unwrapped_name(name): value for name, value in state_dict.items() if isinstance(value, Tensor)}
    kind: Any = type(module)
    config = getattr(module, "config", None)
    if is_headless(module):  # the head is random, and differs each time
        state = {name: value for name, value in state.items() if name.startswith(f"{module.base_model_prefix}.")}
    if config is None or getattr(kind, "config_class", None) is None or not any(map(is_wrapped_name, state_dict)):
        return state
    own = _own_names(kind, _Config(config))
    return {name: value for name, value in state.items() if name in own}


class _Config:
    """A config as a key of a cache; JSON compares it, but cannot rebuild one with infinities."""

    def __init__(self, config: Any) -> None:
        self.config, self.text = config, config.to_json_string()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@lru_cache(maxsize=8)
def _own_names(kind: Any, config: _Config) -> frozenset[str]:
    """Return the names in the state dict of a new model of this class and config.

    The model is on the meta device and takes no memory.
    """
    with torch.device("meta"):
        return frozenset(kind(copy.deepcopy(config.config)).state_dict())


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _digest(tensor: Tensor) -> str:
    digest = blake3()
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else tensor
    for start in range(0, flat.numel(), _CHUNK_BYTES):
        digest.update(flat[start : start + _CHUNK_BYTES].cpu().numpy().data)
    return digest.hexdigest()
