"""Where the arithmetic runs: NumPy and scikit-learn on the CPU, CuPy and cuML on a GPU.

`resolve_backend` turns backend="auto" | "cpu" | "gpu" into one of the two and never falls back in silence;
`logistic_estimator` hands out a library's logistic regression behind one small protocol. The solver that
probes use by default is our own (lbfgs.py, logistic.py), written once for both namespaces.

State of the GPU side: the CuPy and cuML paths follow their documentation (cuML 26.x: solver "qn", keyword
arguments, `fit` raises without a GPU although `import cuml` succeeds). The suite runs the solvers on arrays that
refuse what a device's arrays refuse (tests/support/devices.py); the tests marked `gpu` have not been run on a GPU
yet, so take them as unverified until docs/howto/gpu.md says otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from stratalens.store.errors import InputError, suggest

BackendName = Literal["cpu", "gpu"]


CHOICES = ("auto", "cpu", "gpu")


# Threads that share one GPU where nobody says how many: one reads a slab while the fits of another are on the device.
# One a core would each hold matrices there.
THREADS_ON_GPU = 2


@dataclass(frozen=True)
class Backend:
    """A place to compute: its name, and the array namespace that goes with it.

    Attributes:
        name: "cpu" or "gpu".
        xp: numpy or cupy.
    """

    name: BackendName
    xp: ModuleType

    def asarray(self, values: npt.NDArray[Any]) -> Any:
        """The same values on this backend's device (no copy on the CPU)."""
        return self.xp.asarray(values)

    def to_numpy(self, array: Any) -> npt.NDArray[Any]:
        """An array of this backend in the host's memory, as NumPy."""
        return to_numpy(array)


class LinearClassifier(Protocol):
    """What a library's logistic regression must offer; scikit-learn's and cuML's both do."""

    coef_: Any
    intercept_: Any
    n_iter_: Any

    def fit(self, X: Any, y: Any) -> Any:
        """Fit on X [shape: (n, d)] and y [shape: (n,)]."""
        ...


def gpu_problem() -> str | None:
    """Why no GPU can be used here; None where one can.

    `cupy.cuda.is_available()` decides, not whether cuML can be imported (it can, without a GPU).
    """
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed (pip install 'stratalens[gpu-cu12]' or 'stratalens[gpu-cu13]')"
    cupy = importlib.import_module("cupy")
    if not cupy.cuda.is_available():
        return "CuPy sees no CUDA device (cupy.cuda.is_available() is False)"
    return None


def has_cuml() -> bool:
    """Whether cuML is installed (it can be, without a GPU)."""
    return importlib.util.find_spec("cuml") is not None


def resolve_backend(backend: str = "auto") -> Backend:
    """The backend to use.

    Args:
        backend: "auto" (the GPU where CuPy sees one, else the CPU), "cpu" or "gpu".

    Raises:
        InputError: an unknown word; or "gpu" was asked for and there is none (it never falls back).

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
        raise InputError(f"backend='gpu', but {problem}; use backend='cpu', or 'auto' to take what is there")
    return Backend("cpu", np)


def thread_count(backend: str, workers: int | None) -> int | None:
    """Local threads of a sweep: what is asked for, else few that share a GPU, else for `run_slabs` to say (None)."""
    return workers or (THREADS_ON_GPU if backend == "gpu" else None)


def namespace(array: Any) -> ModuleType:
    """The namespace (numpy or cupy) that an array belongs to."""
    if isinstance(array, np.ndarray):
        return np
    return importlib.import_module(type(array).__module__.split(".")[0])


def to_numpy(array: Any) -> npt.NDArray[Any]:
    """The array in the host's memory, as NumPy."""
    return array if isinstance(array, np.ndarray) else cast("npt.NDArray[Any]", array.get())


def logistic_estimator(backend: Backend, *, C: float, tol: float = 1e-6, max_iter: int = 5000) -> LinearClassifier:
    """A library's L2-penalised logistic regression, intercept unpenalised.

    Args:
        backend: where to fit: scikit-learn's lbfgs on the CPU, cuML's qn on the GPU.
        C: inverse strength of the penalty, as both libraries define it.
        tol: on the gradient; both libraries' default of 1e-4 moves directions visibly.
        max_iter: most iterations.

    Raises:
        InputError: the backend is the GPU and cuML is not installed.
    """
    if backend.name == "cpu":
        from sklearn.linear_model import LogisticRegression

        return cast("LinearClassifier", LogisticRegression(C=C, tol=tol, max_iter=max_iter))
    if not has_cuml():
        raise InputError(
            "pairs='multiclass' and solver='library' on a GPU need cuML: pip install 'stratalens[gpu-cu12]' or "
            "'stratalens[gpu-cu13]'; or use backend='cpu'"
        )
    linear_model = importlib.import_module("cuml.linear_model")
    return cast(
        "LinearClassifier",
        linear_model.LogisticRegression(penalty="l2", C=C, tol=tol, max_iter=max_iter, fit_intercept=True),
    )
