"""The batched solver against scikit-learn's second-order solver in float64, on ill-conditioned data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stratalens.analyses.estimators.backend import Backend, resolve_backend
from stratalens.analyses.estimators.logistic import fit_logistic, fit_softmax
from stratalens.store.errors import InputError
from support.devices import NUMPY_LIKE


def activations(n: int = 300, d: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a decaying spectrum, a large mean and one massive feature, like residual streams."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.7 @ np.linalg.qr(rng.normal(size=(d, d)))[0] * 4
    X += rng.normal(size=d) * 2
    X[:, 3] = 50 + 5 * rng.normal(size=n)
    score = X @ rng.normal(size=d) + rng.normal(size=n) * 3
    return X, (score > np.median(score)).astype(int)


def reference(X: np.ndarray, y: np.ndarray, C: float) -> LogisticRegression:
    return LogisticRegression(C=C, tol=1e-11, solver="newton-cholesky", max_iter=1000).fit(X, y)


def one_minus_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.fixture(params=["host", "device"])
def backend(request: pytest.FixtureRequest) -> Backend | None:
    """The host, and a device whose arrays do not mix with the host's."""
    return NUMPY_LIKE if request.param == "device" else None


@pytest.mark.parametrize("C", [0.001, 0.1, 10.0])
@pytest.mark.parametrize("d", [5, 40, 400])
def test_agrees_with_scikit_learn_in_float64(C: float, d: int, backend: Backend | None) -> None:
    X, y = activations(d=d)
    signs = np.where(y, 1, -1).astype(np.int8)[:, None].repeat(3, axis=1)
    signs[:100, 1] = 0
    signs[200:, 2] = 0
    fit = fit_logistic(X, signs, C=C, tol=1e-9, backend=backend)
    assert fit.converged.all()
    for i in range(3):
        rows = signs[:, i] != 0
        expected = reference(X[rows], y[rows], C)
        assert one_minus_cosine(fit.coef[i], expected.coef_[0]) < 1e-6
        np.testing.assert_allclose(
            X @ fit.coef[i] + fit.intercept[i], expected.decision_function(X), atol=2e-4, rtol=1e-4
        )


@pytest.mark.parametrize("d", [40, 400])
def test_float32_finds_the_same_probes(d: int, backend: Backend | None) -> None:
    X, y = activations(d=d)
    signs = np.where(y, 1, -1).astype(np.int8)[:, None]
    fit = fit_logistic(X.astype(np.float32), signs, C=0.1, backend=backend)
    expected = reference(X, y, 0.1)
    assert fit.coef.dtype == np.float32
    assert fit.converged.all()
    assert one_minus_cosine(fit.coef[0], expected.coef_[0]) < 1e-6
    assert ((X @ fit.coef[0] + fit.intercept[0] > 0) == (expected.decision_function(X) > 0)).mean() > 0.999


def test_the_gradient_is_as_small_as_it_says() -> None:
    X, y = activations()
    fit = fit_logistic(X, np.where(y, 1, -1).astype(np.int8)[:, None], C=0.1, tol=1e-7)
    residual = 1 / (1 + np.exp(-(X @ fit.coef[0] + fit.intercept[0]))) - y
    centred = X - X.mean(axis=0)
    gradient = centred.T @ residual / len(y) + fit.coef[0] / (0.1 * len(y))
    assert max(np.abs(gradient).max(), abs(residual.mean())) < 2e-7


def test_too_few_iterations_are_reported_as_not_converged() -> None:
    X, y = activations()
    fit = fit_logistic(X, np.where(y, 1, -1).astype(np.int8)[:, None], C=10.0, tol=1e-10, max_iter=2)
    assert not fit.converged.any()
    assert (fit.n_iter == 2).all()


@pytest.mark.parametrize("d", [40, 400])
def test_standardize_is_scikit_learn_behind_a_scaler_of_the_training_rows(d: int, backend: Backend | None) -> None:
    X, y = activations(d=d)
    X[:, 7] = 3.0
    signs = np.where(y, 1, -1).astype(np.int8)[:, None].repeat(2, axis=1)
    signs[:120, 1] = 0
    fit = fit_logistic(X, signs, C=0.05, standardize=True, tol=1e-9, backend=backend)
    for i in range(2):
        rows = signs[:, i] != 0
        scaler = StandardScaler().fit(X[rows])
        expected = reference(scaler.transform(X[rows]), y[rows], 0.05)
        np.testing.assert_allclose(
            X @ fit.coef[i] + fit.intercept[i], expected.decision_function(scaler.transform(X)), atol=1e-4
        )
        assert fit.coef[i, 7] == 0


def test_blocks_do_not_change_the_coefficients(backend: Backend | None) -> None:
    X, _ = activations(n=400)
    group = np.repeat(np.arange(4), 100)
    signs = np.zeros((400, 2), dtype=np.int8)
    signs[group == 0, 0], signs[group == 1, 0] = -1, 1
    signs[group == 2, 1], signs[group == 3, 1] = -1, 1
    blockwise = fit_logistic(X, signs, C=0.1, blocks=group, tol=1e-9, backend=backend)
    whole = fit_logistic(X, signs, C=0.1, tol=1e-9)
    np.testing.assert_allclose(blockwise.coef, whole.coef, atol=1e-5)


def test_each_problem_may_have_its_own_penalty(backend: Backend | None) -> None:
    X, y = activations()
    signs = np.where(y, 1, -1).astype(np.int8)[:, None].repeat(2, axis=1)
    fit = fit_logistic(X, signs, C=np.array([0.01, 1.0]), tol=1e-9, backend=backend)
    for i, C in enumerate((0.01, 1.0)):
        assert one_minus_cosine(fit.coef[i], reference(X, y, C).coef_[0]) < 1e-6


def test_separable_classes_have_finite_coefficients() -> None:
    X = np.concatenate([np.full((20, 3), -50.0), np.full((20, 3), 50.0)]).astype(np.float32)
    fit = fit_logistic(X, np.repeat([-1, 1], 20).astype(np.int8)[:, None], C=1e4)
    assert fit.converged.all()
    assert np.isfinite(fit.coef).all()
    assert ((X @ fit.coef[0] + fit.intercept[0] > 0) == np.repeat([False, True], 20)).all()


def test_features_of_very_different_sizes_are_finished_in_float64(backend: Backend | None) -> None:
    X, y = activations()
    X[:, 3] *= 1e4
    signs = np.where(y, 1, -1).astype(np.int8)[:, None]
    fit = fit_logistic(X.astype(np.float32), signs, C=0.1, backend=backend)
    exact = reference(X.astype(np.float32).astype(np.float64), y, 0.1)
    assert fit.converged.all()
    agree = (X.astype(np.float32) @ fit.coef[0] + fit.intercept[0] > 0) == (exact.decision_function(X) > 0)
    assert agree.mean() > 0.99


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2, 1e3])
def test_small_activations_are_fitted_as_well_as_large_ones(scale: float) -> None:
    X, y = activations()
    X = (X - X.mean(axis=0)) * scale
    signs = np.where(y, 1, -1).astype(np.int8)[:, None]
    fit = fit_logistic(X.astype(np.float32), signs, C=0.1)
    exact = reference(X, y, 0.1)
    assert fit.converged.all()
    assert one_minus_cosine(fit.coef[0], exact.coef_[0]) < 1e-6
    assert ((X @ fit.coef[0] + fit.intercept[0] > 0) == (exact.decision_function(X) > 0)).mean() > 0.99


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="one class only"):
        fit_logistic(np.ones((4, 2)), np.ones((4, 1), dtype=np.int8))


@pytest.mark.parametrize("d", [12, 150])  # each is fitted by another solver
def test_softmax_agrees_with_scikit_learn(d: int) -> None:
    X, _ = activations(n=240, d=d)
    codes = np.arange(240) % 3
    X[:, :3] += np.eye(3)[codes] * 2
    inside = np.ones((240, 2), dtype=bool)
    inside[:60, 1] = False
    fit = fit_softmax(X, codes, inside, C=np.array([0.1, 0.1]), backend=resolve_backend("cpu"))
    coef, intercept = fit.coef.reshape(3, 2, d), fit.intercept.reshape(3, 2)
    for k in range(2):
        expected = LogisticRegression(C=0.1, tol=1e-10, max_iter=5000, solver="newton-cg").fit(
            X[inside[:, k]] - 5, codes[inside[:, k]]
        )
        probability = np.exp(X @ coef[:, k].T + intercept[:, k])
        probability /= probability.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(probability, expected.predict_proba(X - 5), atol=1e-3)
