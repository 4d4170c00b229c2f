from __future__ import annotations

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier

from stratalens.analyses.data.splits import entity_folds
from stratalens.analyses.data.targets import training_signs
from stratalens.analyses.estimators import gram_gpu as on_device
from stratalens.analyses.estimators import linear_systems as probe_systems
from stratalens.analyses.estimators import probes as estimators
from stratalens.analyses.estimators.backend import Backend
from stratalens.analyses.estimators.closed_form import fit_closed_form
from stratalens.store.errors import InputError
from support.devices import STRICT


def data(d: int = 30, dtype: str = "f8") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Activations, group codes, folds and targets (n, pair, fold + refit) of two overlapping pairs."""
    rng = np.random.default_rng(0)
    codes = np.repeat([0, 1, 2], [70, 50, 60])
    X = rng.normal(size=(180, d)) * np.linspace(0.2, 3, d) + 5 + codes[:, None] * 0.3 * rng.normal(size=d)
    fold = entity_folds(codes, np.arange(180), 4)
    signs = np.stack([(codes == 1) * 1 - (codes == 0) * 1, (codes == 2) * 1 - (codes == 0) * 1], axis=1)
    return X.astype(dtype), codes, fold, training_signs(signs.astype(np.int8), fold, 4)


def close(result: np.ndarray, expected: np.ndarray) -> None:
    cosine = result @ expected / np.linalg.norm(result) / np.linalg.norm(expected)
    assert 1 - cosine < 1e-6
    np.testing.assert_allclose(np.linalg.norm(result), np.linalg.norm(expected), rtol=1e-5)


@pytest.fixture(params=["host", "device"])
def backend(request: pytest.FixtureRequest) -> Backend | None:
    """The host, and a device that supports the array API alone."""
    return STRICT if request.param == "device" else None


@pytest.mark.parametrize("d", [30, 250])
def test_ridge_by_subtraction_equals_refits(d: int, backend: Backend | None) -> None:
    X, codes, _, targets = data(d)
    fit = fit_closed_form(X, targets, codes, "ridge", alpha=3.0, backend=backend)
    coef, intercept = fit.coef.reshape(2, 5, d), fit.intercept.reshape(2, 5)
    for p in range(2):
        for k in range(5):
            rows = targets[:, p, k] != 0
            expected = RidgeClassifier(alpha=3.0).fit(X[rows], targets[rows, p, k])
            close(coef[p, k], expected.coef_.ravel())
            np.testing.assert_allclose(intercept[p, k], np.ravel(expected.intercept_)[0], atol=1e-6)


@pytest.mark.parametrize("d", [30, 250])
def test_lda_equals_scikit_learn_with_shrinkage_auto(d: int, backend: Backend | None) -> None:
    X, codes, _, targets = data(d)
    X[:, 4] = 2.0
    fit = fit_closed_form(X, targets, codes, "lda", backend=backend)
    coef, intercept = fit.coef.reshape(2, 5, d), fit.intercept.reshape(2, 5)
    for p in range(2):
        for k in range(5):
            rows = targets[:, p, k] != 0
            expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(X[rows], targets[rows, p, k])
            close(coef[p, k], expected.coef_[0])
            np.testing.assert_allclose(
                X @ coef[p, k] + intercept[p, k], expected.decision_function(X), rtol=1e-5, atol=1e-4
            )


def test_diffmeans_is_the_difference_with_the_threshold_half_way() -> None:
    X, codes, _, targets = data()
    fit = fit_closed_form(X, targets, codes, "diffmeans")
    rows = targets[:, 0, 2]
    low, high = X[rows < 0].mean(axis=0), X[rows > 0].mean(axis=0)
    close(fit.coef[2], high - low)
    assert abs((low + high) / 2 @ fit.coef[2] + fit.intercept[2]) < 1e-8


def residual_stream(n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Float32 activations with a decaying spectrum, a large mean, two massive features, an outlier and a copy."""
    rng = np.random.default_rng(0)
    codes = np.arange(n) % 3
    X = rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.8 @ np.linalg.qr(rng.normal(size=(d, d)))[0] * 5
    X += rng.normal(size=d) * 3 + codes[:, None] * 0.1 * rng.normal(size=d)
    X[:, 3] = 900 + 40 * rng.normal(size=n)
    X[:, 7] = 2 * X[:, 3] + rng.normal(size=n)
    X[:, 8] = X[:, 9]
    X[5] *= 8
    fold = entity_folds(codes, np.arange(n), 3)
    signs = np.stack([(codes == 1) * 1 - (codes == 0) * 1, (codes == 2) * 1 - (codes != 2) * 1], axis=1)
    return X.astype(np.float32), codes, training_signs(signs.astype(np.int8), fold, 3)


@pytest.mark.parametrize(("n", "d"), [(360, 60), (150, 120), (90, 200)])
@pytest.mark.parametrize("method", ["ridge", "lda"])
def test_float32_is_as_exact_as_scikit_learn_in_float64(method: str, n: int, d: int, backend: Backend | None) -> None:
    X, codes, targets = residual_stream(n, d)
    fit = fit_closed_form(X, targets, codes, method, alpha=0.5, backend=backend)
    coef, intercept = fit.coef.reshape(2, 4, d).astype("f8"), fit.intercept.reshape(2, 4)
    for p in range(2):
        for k in range(4):
            rows = targets[:, p, k] != 0
            theirs = (
                RidgeClassifier(alpha=0.5)
                if method == "ridge"
                else LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
            )
            expected = theirs.fit(X[rows].astype("f8"), targets[rows, p, k])
            w = expected.coef_.ravel()
            assert 1 - coef[p, k] @ w / np.linalg.norm(coef[p, k]) / np.linalg.norm(w) <= 1e-6
            same = (X @ coef[p, k] + intercept[p, k] > 0) == (expected.decision_function(X.astype("f8")) > 0)
            assert same.mean() > 0.999 or (~same).sum() <= 1


def test_systems_that_do_not_converge_are_solved_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    X, codes, _, targets = data()
    expected = fit_closed_form(X, targets, codes, "ridge")
    monkeypatch.setattr(
        probe_systems,
        "conjugate_gradients",
        lambda product, precondition, right, tol: (right * 0, right[:, 0] > np.inf),
    )
    direct = fit_closed_form(X, targets, codes, "ridge")
    np.testing.assert_allclose(direct.coef, expected.coef, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("room", [1, 2**20])
def test_a_grid_of_penalties_over_the_same_moments_equals_fits_one_by_one(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, codes, _, targets = data()
    monkeypatch.setattr(estimators, "GRID_ELEMENTS", room)
    values = (1e-4, 0.1, 0.3, 100.0)
    coef, intercept = estimators._fit_grid(X, codes, targets, values, estimators.Settings("ridge"))
    for value, w, b in zip(values, coef, intercept, strict=True):
        alone = fit_closed_form(X, targets, codes, "ridge", alpha=1 / value)
        np.testing.assert_allclose(w.reshape(alone.coef.shape), alone.coef, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(b.ravel(), alone.intercept, atol=1e-8)


def test_groups_far_apart_are_as_exact_as_groups_close_by(backend: Backend | None) -> None:
    X, codes, targets = residual_stream(360, 60)
    X[:, 20] += 3000 * codes  # Gram matrices about a common shift cancel there
    fit = fit_closed_form(X, targets, codes, "lda", backend=backend)
    coef = fit.coef.reshape(2, 4, 60).astype("f8")
    for k in range(4):
        rows = targets[:, 0, k] != 0
        exact = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(X[rows].astype("f8"), codes[rows])
        w = exact.coef_.ravel()
        assert 1 - coef[0, k] @ w / np.linalg.norm(coef[0, k]) / np.linalg.norm(w) <= 1e-6


def test_one_against_the_rest_takes_classes_of_several_labels(backend: Backend | None) -> None:
    X, codes, fold, _ = data()
    targets = training_signs(np.where(codes == 1, 1, -1).astype(np.int8)[:, None], fold, 4)
    for method in ("ridge", "lda", "diffmeans"):
        joined = fit_closed_form(X, targets, codes, method, backend=backend)
        direct = fit_closed_form(X, targets, (codes == 1).astype(np.int64), method)
        np.testing.assert_allclose(joined.coef, direct.coef, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(joined.intercept, direct.intercept, atol=1e-8)


def test_targets_that_split_a_label_are_fitted_directly(backend: Backend | None) -> None:
    X, codes, _, targets = data()
    rng = np.random.default_rng(1)
    shuffled = targets * rng.choice([-1, 1], size=(len(X), 1, 1)).astype(np.int8)
    fit = fit_closed_form(X, shuffled, codes, "lda", backend=backend)
    rows = shuffled[:, 0, 1] != 0
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(X[rows], shuffled[rows, 0, 1])
    close(fit.coef[1], expected.coef_[0])


@pytest.mark.parametrize("standardize", [False, True])
def test_order_is_ridge_regression_on_the_position(standardize: bool, backend: Backend | None) -> None:
    X, codes, fold, _ = data()
    inside = training_signs(np.ones((len(X), 1), dtype=np.int8), fold, 4)
    value = codes.astype(float)
    options = {"value": value, "alpha": 2.0, "standardize": standardize, "backend": backend}
    fit = fit_closed_form(X, inside, codes, "ridge", **options)
    for k in range(5):
        rows = inside[:, 0, k] != 0
        scale = X[rows].std(axis=0) if standardize else np.ones(X.shape[1])
        expected = Ridge(alpha=2.0).fit(X[rows] / scale, codes[rows])
        close(fit.coef[k] * scale, expected.coef_)
        np.testing.assert_allclose(fit.intercept[k], expected.intercept_, atol=1e-6)


def test_unknown_method() -> None:
    X, codes, _, targets = data()
    with pytest.raises(InputError, match="ridge, lda, diffmeans"):
        fit_closed_form(X, targets, codes, "svm")


def test_singular_systems_have_the_solution_of_least_squares(backend: Backend | None) -> None:
    X, codes, _, targets = data(40)
    X[:, 20:] = X[:, :20]  # copies, without a penalty that would choose between them
    X[:, 0] = 1.0
    fit = fit_closed_form(X, targets, codes, "ridge", alpha=0.0, backend=backend)
    for p, coef in enumerate(fit.coef.reshape(2, 5, 40)[:, 1]):
        rows = targets[:, p, 1] != 0
        centred, y = X[rows] - X[rows].mean(axis=0), targets[rows, p, 1].astype(float)
        expected = np.linalg.lstsq(centred, y - y.mean(), rcond=None)[0]
        np.testing.assert_allclose(centred @ coef, centred @ expected, atol=1e-8)
        if backend is not None:
            np.testing.assert_allclose(coef, expected, atol=1e-10)  # the solution of smallest norm


def test_a_device_reuses_matrices_that_training_sets_share(monkeypatch: pytest.MonkeyPatch) -> None:
    X, codes, _, targets = data()
    computed: list[int] = []
    gram = on_device.DeviceGrams._gram
    monkeypatch.setattr(
        on_device.DeviceGrams, "_gram", lambda self, ranges: computed.append(len(ranges)) or gram(self, ranges)
    )
    fit_closed_form(X, targets, codes, "ridge", backend=STRICT)
    # Three labels once, and the cells that each of four folds leaves out; the refit leaves out no cell.
    assert len(computed) == 3 + 4 * 3
