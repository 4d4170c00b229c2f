"""Devices that any machine has: arrays that refuse what a GPU's refuse, so that a mix-up with the host's shows.

`STRICT` is array-api-strict's second device: nothing outside the array API, nothing converted to NumPy unasked, no
mixing of devices. It is for code that is written against the array API. `NUMPY_LIKE` is for code that also uses what
CuPy has of NumPy's own ways (indexing by arrays in place, `out=`, einsum): its arrays are NumPy's behind a wall, with
the functions of CuPy that stand in `FUNCTIONS`. Neither says anything of how fast a GPU is, or how it rounds.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import array_api_strict
import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from stratalens.analyses.estimators.backend import Backend


class StrictBackend(Backend):
    """array-api-strict on a device that is not the host."""

    def asarray(self, values: np.ndarray) -> Any:
        """A copy on the device; the values must come from the host."""
        assert type(values) is np.ndarray
        return array_api_strict.asarray(values, device=array_api_strict.Device("device1"))

    def to_numpy(self, array: Any) -> np.ndarray:
        """A copy on the host."""
        assert array.device == array_api_strict.Device("device1")
        return np.asarray(array.to_device(array_api_strict.Device("CPU_DEVICE")))


STRICT = StrictBackend("gpu", array_api_strict)

# Listed among CuPy's routines (https://docs.cupy.dev/en/stable/reference/comparison.html).
FUNCTIONS = ["abs", "arange", "array", "asfortranarray", "cumsum", "divide", "einsum", "empty_like", "exp", "maximum"]
FUNCTIONS += ["minimum", "negative", "ones", "sqrt", "where", "zeros", "zeros_like"]
METHODS = ["all", "any", "astype", "max", "mean", "reshape", "sum"]


class DeviceArray(NDArrayOperatorsMixin):
    """A NumPy array that mixes with its own kind and with numbers alone, as CuPy's do."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def get(self) -> np.ndarray:
        """A copy on the host."""
        return self.values.copy()

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "shape", "ndim", "size"):
            return getattr(self.values, name)
        if name == "T":
            return DeviceArray(self.values.T)
        if name not in METHODS:
            raise AttributeError(name)
        return _behind_the_wall(getattr(self.values, name))

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _behind_the_wall(getattr(ufunc, method))(*inputs, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return _wrapped(self.values[_unwrapped(index)])

    def __setitem__(self, index: Any, values: Any) -> None:
        self.values[_unwrapped(index)] = _unwrapped(values)

    def __len__(self) -> int:
        return len(self.values)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __float__(self) -> float:
        return float(self.values)


def _unwrapped(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.values
    if isinstance(value, tuple | list):
        return type(value)(_unwrapped(v) for v in value)
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _wrapped(value: Any) -> Any:
    return DeviceArray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _behind_the_wall(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return _wrapped(function(*_unwrapped(args), **{k: _unwrapped(v) for k, v in kwargs.items()}))

    return call


def _namespace() -> ModuleType:
    """A module of its own: `backend.namespace` finds an array's functions by the module of its class."""
    module = ModuleType("device_arrays_for_tests")
    for name in FUNCTIONS:
        setattr(module, name, _behind_the_wall(getattr(np, name)))
    module.asarray = lambda values: DeviceArray(np.array(values))  # type: ignore[attr-defined]
    module.finfo = np.finfo  # type: ignore[attr-defined]
    module.linalg = ModuleType("linalg")  # type: ignore[attr-defined]
    for name in ("cholesky", "inv"):
        setattr(module.linalg, name, _behind_the_wall(getattr(np.linalg, name)))
    DeviceArray.__module__ = module.__name__
    sys.modules[module.__name__] = module
    return module


NUMPY_LIKE = Backend("gpu", _namespace())
