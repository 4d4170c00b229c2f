"""Random directions follow the covariance of the activations, and stand for one feature of the rows at every layer."""

import numpy as np

from stratalens.analyses.directions.random_directions import random_directions


def test_draws_follow_the_covariance() -> None:
    rng = np.random.default_rng(0)
    spread = np.array([3.0, 1.0, 0.1, 0.0])
    x = 7 + rng.normal(size=(5000, 4)) * spread
    drawn = random_directions(x, 4000, seed=1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)
    ratio = np.median(np.abs(drawn[:, 1] / drawn[:, 0]))  # of a Cauchy variable with scale 1/3
    np.testing.assert_allclose(ratio, 1 / 3, rtol=0.08)
    assert np.abs(drawn[:, 3]).max() < 1e-9
    even = random_directions(x, 4000, seed=1, kind="isotropic")
    np.testing.assert_allclose((even**2).mean(0), 0.25, atol=0.02)


def test_orthogonal_draws_avoid_the_tested_directions() -> None:
    x = np.random.default_rng(0).normal(size=(50, 6))
    tested = np.array([[1.0, 0, 0, 0, 0, 0], [0.6, 0.8, 0, 0, 0, 0], [np.nan] * 6])
    drawn = random_directions(x, 9, seed=0, kind="orthogonal", tested=tested)
    assert np.abs(drawn[:, :2]).max() < 1e-12
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), 1)


def test_the_same_rows_give_the_same_feature_in_other_coordinates() -> None:
    x = np.random.default_rng(0).normal(size=(40, 5))
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 5)))[0]
    first, second = random_directions(x, 3, seed=4), random_directions(x @ rotation, 3, seed=4)
    np.testing.assert_allclose(first @ rotation, second, atol=1e-12)
    assert (first != random_directions(x, 3, seed=5)).all()


def test_constant_activations_have_no_direction() -> None:
    assert np.isnan(random_directions(np.ones((9, 3), np.float32) * 0.1, 2, seed=0)).all()
