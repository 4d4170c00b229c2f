"""Labels move between entities: whole vectors where an entity has several labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.analyses.data.targets import shuffled_labels
from stratalens.analyses.probes.probe import probe

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous"}


def labelled(x: np.ndarray, label: np.ndarray, units: np.ndarray) -> xr.DataArray:
    """Activations (layer, rows, d) of entities with labels."""
    coords = {
        "entity_id": ("entity", np.array([f"e{i}" for i in units], object)),
        "group": ("entity", np.array(["a", "b", "c"], object)[label]),
    }
    return xr.DataArray(x.astype("f4"), dims=("layer", "entity", "d_model"), coords=coords)


def pattern(labels: np.ndarray, units: np.ndarray) -> list[tuple[int, ...]]:
    """Sorted label vectors of all entities, without their owners."""
    return sorted(tuple(sorted(labels[units == u])) for u in np.unique(units))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_entities_of_one_size_swap_their_vectors(seed: int, classes: int) -> None:
    """In each fold the labels, the number of torn entities and the rows outside stay the same."""
    rng = np.random.default_rng(seed)
    units = rng.permutation(np.repeat(np.arange(24), 3))
    fold = units % 3
    labels = rng.integers(0, classes + 1, (72, 2))  # 0 = outside
    out = shuffled_labels(labels, fold, units, seed)
    assert ((out == 0) == (labels == 0)).all()
    for column, before in zip(out.T, labels.T, strict=True):
        for u in np.unique(units):
            assert (column[units == u] > 0).sum() == (before[units == u] > 0).sum()
    whole = np.where(labels > 0, labels, 1)[:, :1]
    if classes == 2:
        moved = shuffled_labels(whole, fold, units, seed)
        for k in range(3):
            torn = [len(set(p)) > 1 for p in pattern(whole[fold == k, 0], units[fold == k])]
            moved_torn = [len(set(p)) > 1 for p in pattern(moved[fold == k, 0], units[fold == k])]
            assert sum(torn) == sum(moved_torn)


def test_every_entity_gets_other_labels_whatever_its_size() -> None:
    units = np.repeat(np.arange(8), [1, 2, 3, 4, 5, 6, 7, 8])
    labels = np.where(units % 2, 1, -1).astype(np.int8)
    labels[-1] = -labels[-1]  # one torn row, in an entity of its own size
    draws = np.stack([shuffled_labels(labels[:, None], np.zeros(36, int), units, s)[:, 0] for s in range(200)])
    share = (draws == 1).mean(axis=0)
    assert ((share > 0.3) & (share < 0.7)).all()
    torn = [len(np.unique(d[units == u])) > 1 for d in draws for u in range(8)]
    assert sum(torn) == 200, "one entity stays torn, and the others whole"


def test_whole_entities_keep_a_common_label() -> None:
    units, labels = np.repeat(np.arange(6), 2), np.repeat([1, 1, 2, 2, 3, 3], 2)
    out = shuffled_labels(labels[:, None], np.zeros(12, int), units, 5)[:, 0]
    assert (out[::2] == out[1::2]).all()
    assert sorted(out) == sorted(labels)


@pytest.mark.parametrize("options", [{}, {"pairs": "multiclass"}, {"pairs": "ordinal"}], ids=str)
def test_one_torn_row_does_not_blind_the_test(options: dict[str, Any]) -> None:
    """40 entities with 4 rows and a strong effect; one row of 160 has the label of the other class."""
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(40), 4)
    label = np.repeat([0, 1], 20)[units]
    x = rng.normal(size=(1, 160, 6))
    x[0, :, 0] += 1.5 * label
    label[0] = 1
    result = probe(labelled(x, label, units), "group", permutations=99, **options, **QUIET).squeeze()
    measure = "r2" if "r2_p" in result else "accuracy"
    assert float(result[f"{measure}_p"]) == 0.01
    assert float(result[f"{measure}_null"]) < (0.05 if measure == "r2" else 0.55)


@pytest.mark.parametrize("sizes", [4, "unequal"])
def test_torn_entities_with_an_effect_are_detected_and_those_without_are_not(sizes: object) -> None:
    """Every entity is torn: one row has a label at random. The rows of an entity share an offset."""
    rng = np.random.default_rng(1)
    count = rng.integers(3, 9, 30) if sizes == "unequal" else np.full(30, 4)
    units = np.repeat(np.arange(30), count)
    label = (np.arange(30) % 2)[units]
    first = np.flatnonzero(np.diff(units, prepend=-1))
    label[first] = 1 - label[first]
    noise = rng.normal(size=(40, 30, 5))[:, units] * 2 + rng.normal(size=(40, len(units), 5))
    options: dict[str, Any] = {"method": "diffmeans", "permutations": 19, **QUIET}
    null = probe(labelled(noise, label, units), "group", **options)
    assert float((null.accuracy_p <= 0.05).mean()) <= 0.2
    assert abs(float(null.accuracy_mean.mean() - null.accuracy_null.mean())) < 0.03
    noise[:, :, 0] += 4 * label
    effect = probe(labelled(noise, label, units), "group", **options)
    assert float((effect.accuracy_p <= 0.05).mean()) > 0.9


def test_label_vectors_do_not_depend_on_the_order_of_rows() -> None:
    """Rows sorted by label inside every entity would make all vectors equal; swaps alone would change nothing."""
    rng = np.random.default_rng(2)
    units = np.repeat(np.arange(30), 2)
    label = np.tile([0, 1], 30)
    x = rng.normal(size=(1, 60, 4))
    x[0, :, 1] += 2 * label
    result = probe(labelled(x, label, units), "group", permutations=39, method="ridge", **QUIET).squeeze()
    assert float(result.accuracy_p) == 0.025
