"""Lengths and angles of the steps between centroids, at their true values under noise of several sizes."""

import numpy as np
import pytest
import xarray as xr

from stratalens import project

GROUPS, FEATURES = 6, 24
ENTITIES = 60  # of each group
SAMPLES = 40  # independent data sets: the layers of one Dataset
TURN = np.pi / 3


def path(turn: float, lengths: tuple[float, ...]) -> np.ndarray:
    """Centroids (groups, features) of a path that turns by the same angle at every group."""
    angles = turn * np.arange(len(lengths))
    steps = np.zeros((len(lengths), FEATURES))
    steps[:, 0], steps[:, 1] = np.cos(angles), np.sin(angles)
    return np.vstack([np.zeros(FEATURES), np.cumsum(steps * np.array(lengths)[:, None], axis=0)])


def measure(centroids: np.ndarray, noise: float, samples: int = SAMPLES, **options) -> xr.Dataset:
    """Project samples of the centroids, each with normal noise on every entity."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(len(centroids)), ENTITIES)
    values = centroids[groups][None] + noise * random.normal(size=(samples, len(groups), FEATURES))
    labels = np.array([f"g{g}" for g in groups])
    x = xr.DataArray(
        values.astype(np.float32), dims=("layer", "entity", "d_model"), coords={"x": ("entity", labels)}, name="a"
    )
    order = [f"g{g}" for g in range(len(centroids))]
    return project(x, "x", order=order, permutations=0, progress=False, **{"bootstrap": 0, **options})


@pytest.mark.parametrize("noise", [0.5, 2.0, 4.0])
def test_squared_lengths_of_steps_have_no_bias_at_any_noise(noise: float) -> None:
    lengths = (0.5, 1.0, 0.0, 1.5, 2.0)
    squares = measure(path(TURN, lengths), noise).step_square.squeeze()
    assert np.isnan(squares.isel(group=0)).all()
    error = squares.std("layer") / np.sqrt(SAMPLES)
    difference = squares.mean("layer").values[1:] - np.square(lengths)
    assert (np.abs(difference) < 3.5 * error.values[1:]).all()
    # the plain squared length between held-out centroids is too large by their noise
    assert 2 * noise**2 * FEATURES / 30 > 5 * error.max()


@pytest.mark.parametrize("turn", [0.0, TURN, np.pi / 2])
@pytest.mark.parametrize("noise", [0.4, 1.0])
def test_angles_between_steps_are_those_of_the_expected_centroids(turn: float, noise: float) -> None:
    result = measure(path(turn, (1.5, 1.5, 1.5, 2.0, 2.0)), noise)
    cosines = result.step_cosine.squeeze()
    assert np.isnan(cosines.isel(group=[0, -1])).all()
    inner = cosines.isel(group=slice(1, -1))
    assert float(inner.notnull().mean()) > 0.97
    below = 0.05 * (turn == 0) * (noise == 1)  # no cosine is above 1
    allowed = 3.5 * inner.std("layer").values / np.sqrt(SAMPLES) + 0.02 + below
    assert (np.abs(inner.mean("layer").values - np.cos(turn)) < allowed).all()
    assert float(result.step_cosine_mean.mean()) == pytest.approx(np.cos(turn), abs=0.03 + below)


def test_groups_that_do_not_differ_have_no_angles() -> None:
    """Steps between centroids of the same entities turn sharply: their cosine is -1/2 for pure noise."""
    result = measure(np.zeros((GROUPS, FEATURES)), 1.0)
    assert float(result.step_cosine.isnull().mean()) > 0.97
    assert float(result.step_cosine_mean.isnull().mean()) > 0.9


def test_intervals_of_steps_cover_their_true_values() -> None:
    lengths = (1.3, 1.3, 1.5, 2.0, 2.0)
    result = measure(path(TURN, lengths), 1.0, samples=20, bootstrap=48)
    expected = {"step_square": np.square(lengths), "step_cosine": np.full(4, 0.5), "step_cosine_mean": 0.5}
    for name, truth in expected.items():
        low, high = (result[f"{name}_{end}"].squeeze().values for end in ("low", "high"))
        if low.ndim == 2:
            low, high = (values[:, 1 : 1 + len(truth)] for values in (low, high))
        covered = ((low <= truth) & (truth <= high))[np.isfinite(low)]
        assert np.isfinite(low).mean() > 0.95, name
        assert covered.mean() > 0.9, name


def test_groups_without_an_order_have_no_steps() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 12)
    x = xr.DataArray(random.normal(size=(36, 8)), dims=("entity", "d_model"), coords={"x": ("entity", labels)})
    result = project(x, "x", permutations=0, bootstrap=20, progress=False)
    assert not result.ordered
    for name in ("step_square", "step_cosine", "step_cosine_mean", "step_cosine_low"):
        assert result[name].isnull().all(), name
