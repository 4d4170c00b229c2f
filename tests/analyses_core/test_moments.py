"""Moments against scikit-learn in float64: directions, accuracies, folds by subtraction, penalties, components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf, ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge, RidgeClassifier

from stratalens.analyses.engine.slabs import SiteData
from stratalens.analyses.fitting.linear import difference_of_means, lda, pair_directions, pca, ridge
from stratalens.analyses.moments import Moments, combine, moments
from stratalens.store.errors import InputError, NonFiniteError
from support.planted import planted


def cosine_gap(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b) / float(np.linalg.norm(a) * np.linalg.norm(b))


def data(n: int = 700, d: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated features far from zero, one of them huge, as residual streams have; two classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = rng.standard_normal((n, d)) @ (rng.standard_normal((d, d)) / np.sqrt(d)) + 5 * rng.standard_normal(d)
    x[:, 3] = 300 + 20 * rng.standard_normal(n)
    x += 0.4 * y[:, None] * rng.standard_normal(d)
    return x.astype(np.float32), y


def test_lda_equals_scikit_learn_with_and_without_shrinkage() -> None:
    x, y = data()
    m = Moments.of(x, y)
    for shrinkage, model in (
        ("ledoit_wolf", LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=LedoitWolf())),
        (0.0, LinearDiscriminantAnalysis(solver="lsqr")),
        (0.3, LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3)),
    ):
        found = lda(m.take([0]), m.take([1]), shrinkage)
        model.fit(x.astype(np.float64), y)
        assert cosine_gap(found.coef, model.coef_[0]) <= 1e-6
        predicted = x @ found.coef + found.intercept > 0
        assert abs(predicted.mean() - model.predict(x).mean()) <= 1e-3
        np.testing.assert_allclose(found.coef, model.coef_[0], rtol=1e-2, atol=1e-3 * np.abs(model.coef_).max())


def test_ledoit_wolf_equals_scikit_learn() -> None:
    x, _ = data(n=60, d=80)
    expected = ledoit_wolf(x.astype(np.float64))[1]
    assert Moments.of(x).take([0]).ledoit_wolf() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("alphas", [(1.0, 100.0), tuple(np.logspace(-1, 4, 24))])
def test_ridge_path_equals_scikit_learn(alphas: tuple[float, ...]) -> None:
    x, y = data()
    m = Moments.of(x, y)
    for alpha, found in list(zip(alphas, ridge(m.take([0]), m.take([1]), alphas), strict=True))[::7]:
        model = Ridge(alpha=alpha).fit(x.astype(np.float64), 2.0 * y - 1)
        assert cosine_gap(found.coef, model.coef_) <= 1e-6
        assert found.intercept == pytest.approx(float(model.intercept_), rel=1e-3)


@pytest.mark.parametrize("method", ["lda", "ridge", "diffmeans"])
def test_folds_by_subtraction_equal_refits(method: str) -> None:
    x, y = data(seed=1)
    folds = 5
    fold = np.random.default_rng(2).integers(0, folds, len(y))
    coef, intercept = pair_directions(Moments.of(x, y * folds + fold), folds, (0, 1), method, alphas=(10.0,))
    assert coef.shape == (folds + 1, 1, x.shape[1])
    for k in range(folds + 1):
        train, test = fold != k, (fold == k) if k < folds else np.ones(len(y), bool)
        xt, yt = x[train].astype(np.float64), y[train]
        if method == "diffmeans":
            w = xt[yt == 1].mean(0) - xt[yt == 0].mean(0)
            expected = (x[test] - (xt[yt == 1].mean(0) + xt[yt == 0].mean(0)) / 2) @ w > 0
        else:
            model = (
                RidgeClassifier(alpha=10.0)
                if method == "ridge"
                else LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=LedoitWolf())
            ).fit(xt, yt)
            w, expected = np.ravel(model.coef_), model.predict(x[test])
        assert cosine_gap(coef[k, 0], w) <= 1e-6
        accuracy = np.mean((x[test] @ coef[k, 0] + intercept[k, 0] > 0) == y[test])
        assert abs(accuracy - np.mean(expected == y[test])) <= 1e-3


def test_a_group_inside_one_fold_is_refused() -> None:
    x, y = data(n=40)
    with pytest.raises(InputError, match="fold 1"):
        pair_directions(Moments.of(x, y * 2 + 1, count=4), 2, (0, 1), "diffmeans")


def test_pca_equals_scikit_learn() -> None:
    x, _ = data()
    components, variances, total = pca(Moments.of(x).take([0]), 4)
    model = PCA(4).fit(x.astype(np.float64))
    for mine, other in zip(components, model.components_, strict=True):
        assert 1 - abs(float(mine @ other)) <= 1e-6
    np.testing.assert_allclose(variances, model.explained_variance_ * (len(x) - 1) / len(x), rtol=1e-4)
    np.testing.assert_allclose(variances / total, model.explained_variance_ratio_, rtol=1e-4)


def test_difference_of_means_is_exact_far_from_zero() -> None:
    x, y = data()
    x = (x + 1000).astype(np.float32)
    m = Moments.of(x, y)
    w = x[y == 1].mean(0, dtype=np.float64) - x[y == 0].mean(0, dtype=np.float64)
    np.testing.assert_allclose(difference_of_means(m.take([0]), m.take([1])).coef, w, atol=1e-4)


@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
@settings(max_examples=20, deadline=None)
def test_moments_add_and_subtract(seed: int, chunks: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((57, 6)).astype(np.float32)
    shift = x[:5].mean(0)
    whole = Moments.of(x, shift=shift)
    parts = [Moments.of(part, shift=shift) for part in np.array_split(x, chunks)]
    for field in ("n", "sum", "gram", "cubic", "quartic"):
        np.testing.assert_allclose(getattr(combine(parts), field), getattr(whole, field), rtol=1e-4, atol=1e-4)
        left = combine(parts[1:])
        np.testing.assert_allclose(getattr(whole - parts[0], field), getattr(left, field), rtol=1e-3, atol=1e-4)


def test_different_shifts_are_refused() -> None:
    x = np.ones((3, 2), np.float32)
    with pytest.raises(InputError, match="shift"):
        Moments.of(x) + Moments.of(2 * x)


def test_a_slab_is_streamed_into_the_same_moments() -> None:
    ds = planted(layers=1, stages=1)
    slab = SiteData(ds).slabs()[0]
    codes = np.arange(ds.sizes["entity"]) % 3 - 1
    for t, found in enumerate(moments(slab, codes, 2)):
        x = ds.resid_post.values[0, 0, :, t]
        for cell in range(2):
            np.testing.assert_allclose(found.mean[cell], x[codes == cell].mean(0), atol=1e-5)
            expected = np.cov(x[codes == cell].T, bias=True)
            np.testing.assert_allclose(found.covariance[cell], expected, atol=1e-5)


def test_nan_is_refused_with_its_place() -> None:
    ds = planted(layers=1, stages=1, chunked=False)
    ds.resid_post[0, 0, 7, 1, 3] = np.nan
    with pytest.raises(NonFiniteError, match="entity r00007, token last"):
        moments(SiteData(ds).slabs()[0], np.zeros(ds.sizes["entity"], int), 1)


def test_a_singular_covariance_is_a_clear_error() -> None:
    x, y = data(n=20)
    x[:, 0] = 1
    m = Moments.of(x, y)
    with pytest.raises(InputError, match="singular"):
        lda(m.take([0]), m.take([1]), 0.0)
    with pytest.raises(InputError, match="positive"):
        ridge(m.take([0]), m.take([1]), (0.0,))


def test_gram_matrices_beyond_memory_are_refused() -> None:
    with pytest.raises(InputError, match="GiB"):
        Moments.zeros(10_000, np.zeros(2000))


@pytest.mark.gpu
def test_cupy_gives_the_same_moments() -> None:
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    x, y = data()
    cpu, gpu = Moments.of(x, y), Moments.of(cupy.asarray(x), y)
    np.testing.assert_allclose(cupy.asnumpy(gpu.gram), cpu.gram, rtol=1e-4, atol=1e-2)
    for mine, other in ((lda, {}), (difference_of_means, {})):
        a = mine(cpu.take([0]), cpu.take([1]), **other).coef
        b = cupy.asnumpy(mine(gpu.take([0]), gpu.take([1]), **other).coef)
        assert cosine_gap(a, b) <= 1e-6
