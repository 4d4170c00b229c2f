"""Analyses on a device: a simulated one on every machine, and a GPU if there is one (-m gpu)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.estimators import backend as backends
from stratalens.analyses.estimators import probes as estimators
from stratalens.analyses.estimators.backend import Backend
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.devices import NUMPY_LIKE, STRICT
from support.planted import planted

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 50, "cache": False}
CLOSED = [{"method": "ridge"}, {"method": "lda"}, {"method": "ridge", "standardize": True}, {"pairs": "ordinal"}]
CLOSED += [{"method": "ridge", "C": [0.01, 1.0]}, {"method": "lda", "pairs": "rest"}]


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return planted(stages=2, layers=2, groups=3, per_group=40, rows_per_entity=2, effect=2.0, entity_noise=0.5)


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let backend="gpu" mean the device that the test names."""
    monkeypatch.setattr(backends, "gpu_problem", lambda: None)
    usual = backends.resolve_backend

    def resolve(name: str = "auto") -> Backend:
        return request.param if name == "gpu" else usual(name)

    monkeypatch.setattr(estimators, "resolve_backend", resolve)


def same(device: xr.Dataset, host: xr.Dataset, atol: float) -> None:
    np.testing.assert_allclose(device.coef, host.coef, atol=atol * float(abs(host.coef).max()))
    quality = "r2_mean" if "r2_mean" in host else "accuracy_mean"
    assert float(abs(device[quality] - host[quality]).max()) <= 2e-3


@pytest.mark.parametrize("device", [STRICT], indirect=True)
@pytest.mark.parametrize("how", CLOSED, ids=str)
def test_closed_forms_use_operations_of_a_device_alone(ds: xr.Dataset, device: None, how: dict[str, Any]) -> None:
    on_device, host = (probe(ds, backend=b, **how, **QUIET) for b in ("gpu", "cpu"))
    assert on_device.attrs["backend"] == "gpu"
    assert all(isinstance(v.data, np.ndarray) for v in on_device.variables.values())
    same(on_device, host, 1e-4)


@pytest.mark.parametrize("device", [NUMPY_LIKE], indirect=True)
def test_logistic_probes_use_operations_of_a_device_alone(ds: xr.Dataset, device: None) -> None:
    same(*(probe(ds, backend=b, **QUIET) for b in ("gpu", "cpu")), 1e-6)


@pytest.mark.parametrize("device", [STRICT], indirect=True)
def test_a_method_without_a_device_implementation_is_refused(ds: xr.Dataset, device: None) -> None:
    with pytest.raises(InputError, match="diffmeans runs on the CPU alone"):
        probe(ds, method="diffmeans", backend="gpu", **QUIET)


def test_a_gpu_without_cuml_leaves_library_fits_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimators, "resolve_backend", lambda name: Backend("cpu" if name == "cpu" else "gpu", np))
    monkeypatch.setattr(estimators, "has_cuml", lambda: False)
    assert estimators.choose_device("auto", "logistic", "binary") == "gpu"
    assert estimators.choose_device("auto", "logistic", "multiclass") == "cpu"
    assert estimators.choose_device("auto", "logistic", "binary", "library") == "cpu"
    assert estimators.choose_device("gpu", "logistic", "multiclass") == "gpu"
    monkeypatch.setattr(backends, "has_cuml", lambda: False)
    with pytest.raises(InputError, match="pairs='multiclass' and solver='library' on a GPU need cuML"):
        backends.logistic_estimator(Backend("gpu", np), C=1.0)
    monkeypatch.setattr(estimators, "has_cuml", lambda: True)
    assert estimators.choose_device("auto", "logistic", "multiclass") == "gpu"


def test_few_threads_share_a_gpu() -> None:
    assert backends.thread_count("gpu", None) == backends.THREADS_ON_GPU
    assert backends.thread_count("gpu", 5) == 5
    assert backends.thread_count("cpu", None) is None


@pytest.mark.gpu
@pytest.mark.parametrize("how", [{}, {"C": [0.01, 1.0]}, {"standardize": True}, *CLOSED], ids=str)
def test_a_gpu_gives_the_same(ds: xr.Dataset, how: dict[str, Any]) -> None:
    same(*(probe(ds, backend=b, **how, **QUIET) for b in ("gpu", "cpu")), 1e-3)


@pytest.mark.gpu
def test_cuml_gives_the_same(ds: xr.Dataset) -> None:
    small = ds.isel(stage=[1], layer=[1], token=[0])
    same(*(probe(small, solver=s, backend="gpu", **QUIET) for s in ("library", "batched")), 5e-3)
    same(*(probe(small, pairs="multiclass", backend=b, **QUIET) for b in ("gpu", "cpu")), 5e-3)


@pytest.mark.gpu
def test_controls_on_a_gpu_give_the_same(ds: xr.Dataset) -> None:
    gpu, cpu = (residual_probe(ds, statistics=("resid_post_l2",), backend=b, **QUIET) for b in ("gpu", "cpu"))
    same(gpu, cpu, 1e-3)
    options: dict[str, Any] = {"statistics": ("resid_post_l2",), "small": "nan", **QUIET}
    gpu, cpu = (matched_probe(ds, backend=b, **options) for b in ("gpu", "cpu"))
    np.testing.assert_allclose(gpu.accuracy, cpu.accuracy, atol=2e-3)
