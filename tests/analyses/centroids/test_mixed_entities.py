"""Entities with rows in several groups: the entity stays the unit of splits, resamples and permutations."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy.stats import binom

from stratalens.analyses.centroids.centroids import project
from stratalens.analyses.centroids.mixed_entities import MixedSlots
from stratalens.analyses.centroids.resampling import halves

GROUPS = 4


def mixed(torn: int | None, effect: float, layers: int, seed: int = 0) -> xr.DataArray:
    """Rows of 40 entities; `torn` rows, or all (None), have a label that is not that of the entity."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(10 * GROUPS), 3)
    code = np.repeat(np.arange(GROUPS), 10)[unit]
    chosen = rng.choice(len(unit), len(unit) if torn is None else torn, replace=False)
    code[chosen] = rng.integers(0, GROUPS, len(chosen))
    x = rng.standard_normal((layers, len(unit), 8))
    x += 2 * rng.standard_normal((layers, 10 * GROUPS, 8))[:, unit]
    x[..., 0] += effect * code
    labels = np.array(list("abcd"), object)[code]
    entity_id = np.array([f"e{u}" for u in unit], object)
    return xr.DataArray(
        x[:, :, None].astype(np.float32),
        dims=("layer", "entity", "token", "d_model"),
        coords={"x": ("entity", labels), "entity_id": ("entity", entity_id)},
    )


@pytest.mark.parametrize("partitions", [1, 2])
def test_resamples_move_whole_entities(partitions: int) -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(24), 3)
    code = np.repeat(np.arange(3), 8)[unit]
    code[::7] = 2
    parts = halves(0.5, 20 * partitions, rng)
    slots = MixedSlots(code, unit, 3, parts, rng)
    table = np.eye(len(unit), dtype=np.float32)

    def cells_of_entities(sums: np.ndarray) -> np.ndarray:
        """Share of each entity's rows in each cell (entity, cell)."""
        by_cell = sums.reshape(3, parts.cells, 24, 3).sum(axis=(0, 3))
        return by_cell.T

    observed = slots.observed(table)
    assert observed.shape == (partitions, 3 * parts.cells, len(unit))
    for sums in observed:
        np.testing.assert_array_equal(sums.sum(axis=0), 1)
        assert set(np.unique(cells_of_entities(sums))) == {0.0, 3.0}
        np.testing.assert_array_equal(sums.reshape(3, parts.cells, -1).sum(axis=1).argmax(axis=0), code)
    drawn = np.concatenate(list(slots.bootstrap(table, 30, rng)))
    assert drawn.shape[:2] == (30, partitions)
    for sums in drawn.reshape(-1, 3 * parts.cells, len(unit)):
        weights = sums.sum(axis=0).reshape(24, 3)
        np.testing.assert_array_equal(weights, np.broadcast_to(weights[:, :1], weights.shape))
        assert weights.sum() == len(unit)
        assert ((cells_of_entities(sums) > 0).sum(axis=1) <= 1).all()
    moved = 0
    for sums in np.concatenate(list(slots.permuted(table, 30, rng))).reshape(-1, 3 * parts.cells, len(unit)):
        np.testing.assert_array_equal(sums.sum(axis=0), 1)
        assert ((cells_of_entities(sums) > 0).sum(axis=1) == 1).all()
        labels = sums.reshape(3, parts.cells, -1).sum(axis=1).argmax(axis=0)
        # An entity keeps the pattern of its labels: how many rows share one, whichever it is.
        pattern = np.sort(np.stack([np.bincount(own, minlength=3) for own in labels.reshape(24, 3)]), axis=1)
        own_pattern = np.sort(np.stack([np.bincount(own, minlength=3) for own in code.reshape(24, 3)]), axis=1)
        np.testing.assert_array_equal(np.sort(pattern, axis=0), np.sort(own_pattern, axis=0))
        moved += (labels != code).sum()
    assert moved > 0


@pytest.mark.parametrize("torn", [1, 6, None])
def test_p_values_with_mixed_entities_hold_their_level(torn: int | None) -> None:
    layers = 60
    result = project(mixed(torn, 0.0, layers), "x", order=list("abcd"), permutations=39, bootstrap=0, progress=False)
    for name in ("r2", "rank_correlation"):
        assert (result[f"{name}_p"] <= 0.05).sum() <= binom.ppf(0.9999, layers, 0.05)
    assert abs(float((result.r2 - result.r2_null).mean())) < 0.05


def test_a_label_that_varies_inside_entities_is_tested() -> None:
    result = project(mixed(None, 1.5, 2), "x", order=list("abcd"), permutations=99, bootstrap=50, progress=False)
    assert (result.rank_correlation_p <= 0.02).all()
    assert (result.rank_correlation > 0.9).all()
    assert (result.r2_low <= result.r2).all()
    assert result.entities.values.min() > 20
    again = project(mixed(None, 1.5, 2), "x", order=list("abcd"), permutations=99, bootstrap=50, progress=False)
    xr.testing.assert_identical(again.load(), result.load())


def test_one_torn_row_changes_little() -> None:
    whole, torn = (
        project(mixed(n, 2.0, 4), "x", order=list("abcd"), permutations=0, bootstrap=200, progress=False)
        for n in (0, 1)
    )
    np.testing.assert_allclose(torn.r2, whole.r2, atol=0.1)
    widths = [(r.r2_high - r.r2_low).mean().item() for r in (whole, torn)]
    assert widths[1] == pytest.approx(widths[0], rel=0.4)
