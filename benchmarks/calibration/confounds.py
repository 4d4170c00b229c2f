"""Six kinds of confound: statistics separate the classes, and activations depend on the label through them alone.

Nothing is left in the activations once the statistics are known. A control that still claims an effect is wrong. The
planted data set adds a real effect to the linear confound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import xarray as xr

from benchmarks.calibration.designs import Doubles, dataset

STATISTICS = ("loss", "entropy")  # names that the controls know by default; the second one is noise unless said
FEATURES, NOISE = 16, 0.5
Draw = tuple[Doubles, Doubles, Doubles]  # both statistics, and their contribution (layer, row, feature)


def _statistic(rng: np.random.Generator, label: npt.NDArray[np.int64], layers: int) -> tuple[Doubles, Doubles]:
    """A statistic that shifts by one standard deviation, and one that is noise."""
    first, second = rng.standard_normal((2, layers, len(label)))
    return first + label, second


def _first_feature(values: Doubles) -> Doubles:
    """Contribution (layer, row, feature) of values (layer, row) to the first feature."""
    x = np.zeros((*values.shape, FEATURES))
    x[..., 0] = values
    return x


def shift(rng: np.random.Generator, label: npt.NDArray[np.int64], layers: int) -> Draw:
    """Activations are linear in a statistic that shifts."""
    s, other = _statistic(rng, label, layers)
    return s, other, _first_feature(s)


def square(rng: np.random.Generator, label: npt.NDArray[np.int64], layers: int) -> Draw:
    """Activations are quadratic in a statistic that shifts."""
    s, other = _statistic(rng, label, layers)
    return s, other, _first_feature(s**2)


def step(rng: np.random.Generator, label: npt.NDArray[np.int64], layers: int) -> Draw:
    """Activations are a step of a statistic that shifts."""
    s, other = _statistic(rng, label, layers)
    return s, other, _first_feature(2.0 * (s > 0.5))


def spread(rng: np.random.Generator, label: npt.NDArray[np.int64], layers: int) -> Draw:
    """The statistic has another spread and the same mean in both classes; activations are quadratic in it."""
    s, other = rng.standard_normal((2, layers, len(label)))
    s = s * (1 + label)
    return s, other, _first_feature(s**2)


def product(rng: np.random.Generator, label: npt.NDArray[np.int64], layers: int) -> Draw:
    """Two statistics correlate by 0.6 or -0.6 in each class, with equal marginals; activations carry their product."""
    a, b = rng.standard_normal((2, layers, len(label)))
    b = 0.6 * (2 * label - 1) * a + 0.8 * b
    return a, b, _first_feature(a * b)


def norm(rng: np.random.Generator, label: npt.NDArray[np.int64], layers: int) -> Draw:
    """The statistic is the size of a random vector with a fixed mean."""
    s, other = _statistic(rng, label, layers)
    size = np.exp(0.3 * s)
    vector = rng.standard_normal((layers, len(label), FEATURES))
    vector[..., 0] += 2
    return size, other, size[..., None] * vector


CONFOUNDS: dict[str, Callable[[np.random.Generator, npt.NDArray[np.int64], int], Draw]] = {
    "shift": shift,
    "square": square,
    "step": step,
    "spread": spread,
    "product": product,
    "norm": norm,
}


def confounded(kind: str, seed: int, layers: int, size: int = 300, effect: float = 0.0) -> xr.Dataset:
    """Draw data sets, one in each layer, with the statistics `loss` and `entropy`.

    Args:
        kind: name among CONFOUNDS.
        seed: of all draws.
        layers: number of data sets.
        size: entities of each class, one row each.
        effect: real difference of the classes in the second feature, in standard deviations of its noise.
    """
    rng = np.random.default_rng([seed, sorted(CONFOUNDS).index(kind)])
    label = np.repeat([0, 1], size)
    first, second, contribution = CONFOUNDS[kind](rng, label, layers)
    x = contribution + NOISE * rng.standard_normal(contribution.shape)
    x[..., 1] += effect * NOISE * label
    return dataset(x, label, np.arange(2 * size), dict(zip(STATISTICS, (first, second), strict=True)))
