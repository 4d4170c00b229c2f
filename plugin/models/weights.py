"""Fingerprint of a model's weights: one hash over the state dict of the model inside.

For a TransformerBridge this is the state dict of the Hugging Face model inside,
under Hugging Face's names. So both TransformerLens lines and the plain Hugging
Face model agree. Names of files and folders have no effect.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from blake3 import blake3
from torch import Tensor, nn

from stratalens.plugin.compat import (
    is_headless,
    is_sharded,
    is_wrapped_name,
    offloaded_weights,
    unwrapped_name,
)
from stratalens.plugin.models.adapters import Adapter
from stratalens.store.errors import InputError, join_names

_PREFIX = b"stratalens weights 2"


_CHUNK_BYTES = 1 << 26  # hashed at a time: limits the host memory for weights on a GPU


def weights_fingerprint(model: Adapter | nn.Module) -> str:
    """Return the BLAKE3 hash (256 bits, hex) of all weights.

    The hash covers names, dtypes, shapes and bytes, sorted by name. It depends on neither
    the order of the state dict nor the device. The same values in another dtype are other
    weights. Buffers that the model saves count; buffers that it does not save (rotary tables)
    do not. Several threads hash the weights, and shared weights are hashed once.

    Sparse autoencoders that are spliced into the model count. Weights that Accelerate keeps on
    disk or in host memory are read from there. Quantised
    tensors are hashed as the tensors that they consist of.

    Raises:
        InputError: the values of some tensors cannot be read: they are on no device, sharded over
            processes, or of a type without bytes.

    >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> b.load_state_dict(a.state_dict())
    <All keys matched successfully>
    >>> weights_fingerprint(a) == weights_fingerprint(b)
    True
    """
    module = model.weights_module if isinstance(model, Adapter) else model
    tensors = _own_state(module)
    if isinstance(model, Adapter):
        tensors |= _spliced_state(model, tensors)
    offloaded = offloaded_weights(module) if any(tensor.is_meta for tensor in tensors.values()) else {}
    sources = {name: offloaded.get(name) if tensor.is_meta else None for name, tensor in tensors.items()}
    if unreadable := sorted(n for n, t in tensors.items() if (t.is_meta and sources[n] is None) or is_sharded(t)):
        raise InputError(
            f"the weights of {len(unreadable)} tensors cannot be read: {join_names(unreadable)}. They are on the meta "
            "device or sharded over processes. Load the whole model, or let Accelerate offload it (device_map=)."
        )
    keys = {name: (name,) if tensor.is_meta else _identity(tensor) for name, tensor in tensors.items()}
    unique = {keys[name]: name for name in tensors}
    with ThreadPoolExecutor() as pool:
        values = pool.map(lambda name: _digest(name, tensors[name], sources[name]), unique.values())
        digests = dict(zip(unique, values, strict=True))
    whole = blake3(_PREFIX)
    for name in sorted(tensors):
        tensor = tensors[name]
        shape = ",".join(map(str, tensor.shape))
        whole.update(f"{name}|{tensor.dtype!s}|{shape}|{digests[keys[name]]}\n".encode())
    return whole.hexdigest()


def describe_quantization(module: nn.Module) -> dict[str, Any]:
    """Return how the weights of a model are quantised: {} if they are not.

    Returns:
        {"weights": types of the quantised tensors, "config": quantization_config of the model, if it has one}.
    """
    tensors = _tensors(module.state_dict()).values()
    kinds = {type(t).__name__ for t in tensors if hasattr(t, "__tensor_flatten__")}
    kinds |= {str(t.dtype) for t in tensors if t.is_quantized}
    config: Any = getattr(getattr(module, "config", None), "quantization_config", None)
    described = config.to_dict() if hasattr(config, "to_dict") else config
    facts: dict[str, Any] = {"weights": sorted(kinds)} if kinds else {}
    if described is not None:
        facts["config"] = json.loads(json.dumps(described, default=str, sort_keys=True))
    return facts


def _own_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict under the names that the model's own class uses.

    A bridge wraps modules in place, renames them and adds split copies of joint
    projections. A model of the same class on the meta device has only its own names.
    """
    state_dict = _tensors(module.state_dict())
    state = {unwrapped_name(name): value for name, value in state_dict.items()}
    kind: Any = type(module)
    config = getattr(module, "config", None)
    if is_headless(module):  # the head is random, and differs each time
        state = {name: value for name, value in state.items() if name.startswith(f"{module.base_model_prefix}.")}
    if config is None or getattr(kind, "config_class", None) is None or not any(map(is_wrapped_name, state_dict)):
        return state
    own = _own_names(kind, _Config(config))
    if getattr(config, "quantization_config", None) is not None:  # its layers may hold `qweight` for `weight`
        layers = tuple(f"{name.rpartition('.')[0]}." for name in own - set(state))
        own |= {name for name in state if layers and name.startswith(layers)}
    return {name: value for name, value in state.items() if name in own}


def _spliced_state(adapter: Adapter, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of the modules in the places of hook points, without those that the model itself has."""
    if not adapter.spliced:
        return {}
    addresses = {tensor.data_ptr() for tensor in own.values() if not tensor.is_meta}
    return {
        f"{name}.{key}": tensor
        for name, module in adapter.spliced.items()
        for key, tensor in _tensors(module.state_dict()).items()
        if tensor.data_ptr() not in addresses
    }


def _tensors(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a state dict, those in the packed parameters of a quantised layer included."""
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, Tensor)}
    for name, value in state_dict.items():
        if isinstance(value, tuple) and any(isinstance(part, Tensor) and part.is_quantized for part in value):
            tensors |= {f"{name}.{i}": part for i, part in enumerate(value) if isinstance(part, Tensor)}
    return tensors


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
    if hasattr(tensor, "__tensor_flatten__") or tensor.is_quantized:  # has no address of its own
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())


def _digest(name: str, tensor: Tensor, read: Callable[[], Tensor] | None = None) -> str:
    """Return the hash of a tensor, or of the value that `read` gives for a tensor on the meta device."""
    digest = blake3()
    if read is not None:
        tensor = read().to(tensor.dtype)
    try:
        for part in _parts(tensor):
            if isinstance(part, str):
                digest.update(part.encode())
                continue
            flat = part.detach().contiguous().reshape(-1).view(torch.uint8) if part.numel() else part
            for start in range(0, flat.numel(), _CHUNK_BYTES):
                digest.update(flat[start : start + _CHUNK_BYTES].cpu().numpy().data)
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise InputError(
            f"the weights of {name!r} cannot be read: a {type(tensor).__name__} of dtype {tensor.dtype} has no bytes "
            f"({' '.join(str(error).split())[:200]}). Load the model without this quantisation."
        ) from error
    return digest.hexdigest()


_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def _parts(tensor: Tensor) -> Iterator[Tensor | str]:
    """Split a tensor into dense tensors and descriptions; a dense tensor is its own only part.

    Tensor subclasses (torchao) name their inner tensors with PyTorch's protocol `__tensor_flatten__`.
    """
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if tensor.is_quantized:
        yield from (f"quantized {tensor.dtype}", tensor.dequantize())
    elif flatten is not None:
        names, context = flatten()
        yield f"{type(tensor).__name__} {_ADDRESS.sub('', repr(context))}"
        for name in names:
            inner = getattr(tensor, name)
            yield f"{name} {inner.dtype} {tuple(inner.shape)}"
            yield from _parts(inner)
    else:
        yield tensor
