"""Simulated devices for any machine: their arrays have a GPU's restrictions, which detects a mix-up with the host's.

`STRICT` is array-api-strict's second device: it has the array API alone, no implicit conversion to NumPy, and no mixing
of devices. It is for code that uses the array API. `NUMPY_LIKE` is for code that also uses CuPy's extensions (indexing
by arrays in place, `out=`, einsum): its arrays wrap NumPy's and have the functions of CuPy in `FUNCTIONS`. Neither
simulates the speed or the rounding of a GPU.
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
        """Copy values from the host to the device."""
        assert type(values) is np.ndarray
        return array_api_strict.asarray(values, device=array_api_strict.Device("device1"))

    def to_numpy(self, array: Any) -> np.ndarray:
        """Copy an array of the device to the host."""
        assert array.device == array_api_strict.Device("device1")
        return np.asarray(array.to_device(array_api_strict.Device("CPU_DEVICE")))


STRICT = StrictBackend("gpu", array_api_strict)

# Listed among CuPy's routines (https://docs.cupy.dev/en/stable/reference/comparison.html).
FUNCTIONS = ["abs", "arange", "array", "asfortranarray", "cumsum", "divide", "einsum", "empty_like", "exp", "maximum"]
FUNCTIONS += ["minimum", "negative", "ones", "sqrt", "where", "zeros", "zeros_like"]
METHODS = ["all", "any", "astype", "max", "mean", "reshape", "sum"]


class DeviceArray(NDArrayOperatorsMixin):
    """A NumPy array that combines with its own class and with numbers alone, like CuPy's."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def get(self) -> np.ndarray:
        """Copy the array to the host."""
        return self.values.copy()

    def __getattr__(self, name: str) -> Any:
        if name in ("dtype", "shape", "ndim", "size"):
            return getattr(self.values, name)
        if name == "T":
            return DeviceArray(self.values.T)
        if name not in METHODS:
            raise AttributeError(name)
        return _wrap_function(getattr(self.values, name))

    def __array__(self, *args: Any, **kwargs: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _wrap_function(getattr(ufunc, method))(*inputs, **kwargs)

    def __getitem__(self, index: Any) -> Any:
        return _wrap(self.values[_unwrap(index)])

    def __setitem__(self, index: Any, values: Any) -> None:
        self.values[_unwrap(index)] = _unwrap(values)

    def __len__(self) -> int:
        return len(self.values)

    def __bool__(self) -> bool:
        return bool(self.values)

    def __float__(self) -> float:
        return float(self.values)


def _unwrap(value: Any) -> Any:
    if isinstance(value, DeviceArray):
        return value.values
    if isinstance(value, tuple | list):
        return type(value)(_unwrap(v) for v in value)
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _wrap(value: Any) -> Any:
    return DeviceArray(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value


def _wrap_function(function: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
        return _wrap(function(*_unwrap(args), **{k: _unwrap(v) for k, v in kwargs.items()}))

    return call


def _namespace() -> ModuleType:
    """Module of the array class, where `backend.namespace` looks for its functions."""
    module = ModuleType("device_arrays_for_tests")
    for name in FUNCTIONS:
        setattr(module, name, _wrap_function(getattr(np, name)))
    module.asarray = lambda values: DeviceArray(np.array(values))  # type: ignore[attr-defined]
    module.finfo = np.finfo  # type: ignore[attr-defined]
    module.linalg = ModuleType("linalg")  # type: ignore[attr-defined]
    for name in ("cholesky", "inv"):
        setattr(module.linalg, name, _wrap_function(getattr(np.linalg, name)))
    DeviceArray.__module__ = module.__name__
    sys.modules[module.__name__] = module
    return module


NUMPY_LIKE = Backend("gpu", _namespace())
