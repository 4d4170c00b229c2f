"""Memory for batches, in the training process or shared with it."""

from __future__ import annotations

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from stratalens.plugin.compat import shared_storage
from stratalens.plugin.interop.torch_reader import as_tensor


class BatchMemory:
    """Memory for batches, reused after all tensors in it are gone.

    New memory costs as much as reading. In a worker the memory is shared with the
    process that trains, so that no batch is copied.

    Args:
        feature_shape: shape of one sample.
        dtype: dtype of the samples.
        size: samples in a batch.
    """

    def __init__(self, feature_shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
        self.shape, self.dtype = (size, *feature_shape), dtype
        self.shared = get_worker_info() is not None
        self._free: deque[NDArray[Any]] = deque()

    def take(self) -> tuple[Tensor, NDArray[Any]]:
        """Return a tensor, and an array in the same memory."""
        is_bfloat16 = self.dtype.name == "bfloat16"
        if self.shared:
            empty: Any = as_tensor(np.empty(0, dtype=self.dtype))
            tensor: Tensor = empty.set_(shared_storage(math.prod(self.shape) * self.dtype.itemsize), 0, self.shape)
            bits = tensor.view(torch.int16) if is_bfloat16 else tensor
            return tensor, bits.numpy().view(self.dtype)
        memory = self._free.popleft() if self._free else np.empty(self.shape, dtype=self.dtype)
        view = memory.view(np.uint16) if is_bfloat16 else memory.view()
        tensor = torch.from_numpy(view)  # this view lives as long as any tensor in the memory
        weakref.finalize(view, self._free.append, memory).atexit = False
        return tensor.view(torch.bfloat16) if is_bfloat16 else tensor, memory
