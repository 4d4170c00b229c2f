"""Backends: NumPy and scikit-learn on the CPU, CuPy and cuML on a GPU.

The CuPy and cuML paths follow their documentation (cuML 26.x: solver "qn", keyword arguments; `fit` raises without a
GPU although `import cuml` succeeds). Tests run the solvers on arrays with a device's restrictions; the tests marked
`gpu` have not run on a GPU yet.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, cast

import numpy as np

from stratalens.analyses.data.array_types import Array
from stratalens.store.errors import InputError, suggest

BackendName = Literal["cpu", "gpu"]

CHOICES = ("auto", "cpu", "gpu")
# Most coefficients of a softmax regression that scikit-learn fits with Newton steps, which are 2 to 8 times faster than
# L-BFGS below this size; their Hessian has the square of this size.
MAX_NEWTON = 400
# Default number of threads that share one GPU: one reads a slab while the device fits the other's. With one thread a
# core, each thread would allocate matrices there.
THREADS_ON_GPU = 2


@dataclass(frozen=True)
class Backend:
    """A device and its array namespace.

    Attributes:
        name: "cpu" or "gpu".
        xp: numpy or cupy.
    """

    name: BackendName
    xp: ModuleType

    def asarray(self, values: Array) -> Any:
        """Copy values to this backend's device; on the CPU there is no copy."""
        return self.xp.asarray(values)

    def to_numpy(self, array: Any) -> Array:
        """Copy an array of this backend to the host's memory, as NumPy."""
        return to_numpy(array)


def gpu_problem() -> str | None:
    """Reason why no GPU is usable here; None if one is usable.

    `cupy.cuda.is_available()` decides. cuML can be imported without a GPU.
    """
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'stratalens[gpu-cu12]' or 'stratalens[gpu-cu13]')"
    cupy = importlib.import_module("cupy")
    if not cupy.cuda.is_available():
        return "CuPy sees no CUDA device (cupy.cuda.is_available() is False)"
    return None


def has_cuml() -> bool:
    """Whether cuML is installed, with or without a GPU."""
    return importlib.util.find_spec("cuml") is not None


def resolve_backend(backend: str = "auto") -> Backend:
    """Choose the backend.

    Args:
        backend: "auto" (the GPU if CuPy sees one, else the CPU), "cpu" or "gpu".

    Raises:
        InputError: an unknown word, or "gpu" without a usable GPU.

    Example:
        >>> resolve_backend("cpu").name
        'cpu'
    """
    if backend not in CHOICES:
        raise InputError(f"backend={backend!r}: {suggest(str(backend), CHOICES)}")
    if backend == "cpu":
        return Backend("cpu", np)
    problem = gpu_problem()
    if problem is None:
        return Backend("gpu", importlib.import_module("cupy"))
    if backend == "gpu":
        raise InputError(f"backend='gpu', but {problem}; use backend='cpu', or backend='auto' to choose automatically")
    return Backend("cpu", np)


def thread_count(backend: str, workers: int | None) -> int | None:
    """Local threads of a sweep: `workers`, else THREADS_ON_GPU on a GPU, else None for the default."""
    return workers or (THREADS_ON_GPU if backend == "gpu" else None)


def namespace(array: Any) -> ModuleType:
    """Namespace (numpy or cupy) of an array."""
    if isinstance(array, np.ndarray):
        return np
    return importlib.import_module(type(array).__module__.split(".")[0])


def to_numpy(array: Any) -> Array:
    """Copy an array to the host's memory, as NumPy."""
    return array if isinstance(array, np.ndarray) else cast("Array", array.get())


def logistic_estimator(
    backend: Backend, *, C: float, tol: float = 1e-6, max_iter: int = 5000, coefficients: int | None = None
) -> Any:
    """Create a library's L2-penalised logistic regression, with an unpenalised intercept.

    Args:
        backend: where to fit: scikit-learn's lbfgs or newton-cholesky on the CPU, cuML's qn on the GPU.
        C: inverse strength of the penalty, as both libraries define it.
        tol: on the gradient; both libraries' default of 1e-4 changes directions visibly.
        max_iter: most iterations.
        coefficients: classes x features of a softmax regression, from which the solver of the CPU is chosen.

    Returns:
        An estimator with `fit`, `coef_`, `intercept_` and `n_iter_`.

    Raises:
        InputError: the backend is the GPU and cuML is not installed.
    """
    if backend.name == "cpu":
        from sklearn.linear_model import LogisticRegression

        solver = "newton-cholesky" if coefficients is not None and coefficients <= MAX_NEWTON else "lbfgs"
        return LogisticRegression(C=C, tol=tol, max_iter=max_iter, solver=solver)
    if not has_cuml():
        raise InputError(
            "pairs='multiclass' and solver='library' on a GPU need cuML: pip install 'stratalens[gpu-cu12]' or "
            "'stratalens[gpu-cu13]'; or use backend='cpu'"
        )
    linear_model = importlib.import_module("cuml.linear_model")
    return linear_model.LogisticRegression(penalty="l2", C=C, tol=tol, max_iter=max_iter, fit_intercept=True)
