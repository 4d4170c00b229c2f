"""Axes of the scatter: directions of planted groups, and regions of means with the right coverage."""

from __future__ import annotations

import numpy as np
import pytest

from stratalens.analyses.explorer.axes import direction_names, fit_axes, mean_regions
from stratalens.store.errors import InputError


def planted(d: int, n: int = 300, groups: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Groups that differ along feature 0 alone, and a large variance of all rows along feature 1."""
    rng = np.random.default_rng(0)
    codes = np.arange(n) % groups
    values = rng.standard_normal((n, d))
    values[:, 0] += 3 * codes
    values[:, 1] *= 30
    return values.astype(np.float32), codes


@pytest.mark.parametrize("d", [4, 700])  # fewer and more features than rows
def test_discriminants_have_the_groups_and_components_the_variance(d: int) -> None:
    values, codes = planted(d)
    pca = fit_axes("pca", "", "", ["a", "b", "c"], values, codes)
    assert abs(pca[0, 1]) > 0.99
    lda = fit_axes("lda", "", "", ["a", "b", "c"], values, codes)
    assert lda[0, 0] > (0.99 if d == 4 else 0.6)
    assert abs(lda[0, 1]) < 0.1
    x, y = fit_axes("directions", "a v b", "c v the rest", ["a", "b", "c"], values, codes)
    assert x[0] > (0.9 if d == 4 else 0.5)
    assert y[0] < (-0.9 if d == 4 else -0.4)  # from c to the rest
    two = codes < 2
    axes = fit_axes("lda", "", "", ["a", "b"], values[two], codes[two])
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-5)


def test_what_cannot_be_fitted_says_so() -> None:
    values, codes = planted(4)
    with pytest.raises(InputError, match=r"no direction 'a v z'\. Valid: a v b"):
        fit_axes("directions", "a v z", "a v b", ["a", "b", "c"], values, codes)
    with pytest.raises(InputError, match="fewer than two rows"):
        fit_axes("lda", "", "", ["a", "b", "c"], values[:4], codes[:4])
    with pytest.raises(InputError, match="unknown axes"):
        fit_axes("tsne", "", "", ["a"], values, codes)
    assert direction_names([f"g{i}" for i in range(11)])[0] == "g0 v the rest"


def test_regions_have_the_mean_in_95_percent_of_data_sets() -> None:
    rng = np.random.default_rng(1)
    hits, draws, entities = 0, 400, 8
    units = np.repeat(np.arange(entities), 3)
    mix = np.array([[2.0, 0.0], [1.5, 0.5]])
    for _ in range(draws):
        rows = np.repeat(rng.standard_normal((entities, 2)) @ mix.T, 3, axis=0)  # three equal rows an entity
        width, height, angle = mean_regions(rows, np.zeros(len(rows), int), units, 1)[0]
        c, s = np.cos(angle), np.sin(angle)
        along = np.array([[c, s], [-s, c]]) @ rows.mean(axis=0)
        hits += float((along / (np.array([width, height]) / 2)) @ (along / (np.array([width, height]) / 2))) <= 1
    assert 0.92 <= hits / draws <= 0.98
    assert np.isnan(mean_regions(rows[:9], np.zeros(9, int), units[:9], 1)).all()
