"""Resampled sums: permutations are uniform, and bootstrap samples stay in their cells."""

from __future__ import annotations

import itertools

import numpy as np

from stratalens.analyses.centroids.resampling import Slots, halves


def test_permutations_are_uniform_and_bootstrap_keeps_cells() -> None:
    labels = np.repeat(np.arange(3), [240, 240, 240])
    parts = halves(0.5, 40, np.random.default_rng(0))
    slots = Slots(labels, 3, parts, np.random.default_rng(1))
    sums = np.eye(len(labels), dtype=np.float32)  # so that a slot sum names its members
    where = []
    for batch in slots.permuted(sums, 60, np.random.default_rng(2)):
        assert set(np.unique(batch)) == {0.0, 1.0}
        np.testing.assert_array_equal(batch.sum(axis=2), 1)  # each entity in one slot of every division
        np.testing.assert_array_equal(batch.sum(axis=3), np.broadcast_to(slots.slot_sizes, batch.shape[:3]))
        group = batch.reshape(len(batch), 2, 3, parts.cells, -1).sum(axis=3).argmax(axis=2)
        np.testing.assert_array_equal(group[:, 0], group[:, 1])  # one labelling, two divisions into cells
        where.append(group[:, 0])
    group = np.concatenate(where)
    share = np.stack([(group == g).mean(axis=0) for g in range(3)])  # (group, entity)
    expected = slots.sizes[:, None] / slots.sizes.sum()
    z = (share - expected) / np.sqrt(expected * (1 - expected) / len(group))
    assert abs(z.mean()) < 0.1
    assert 0.8 < z.std() < 1.2
    order = slots.orders[0]
    for batch in slots.bootstrap(sums, 20, np.random.default_rng(3)):
        for s, (a, z_) in enumerate(itertools.pairwise(slots.starts)):
            inside = np.zeros(len(labels), bool)
            inside[order[a:z_]] = True
            assert (batch[:, 0, s][:, ~inside] == 0).all()
        totals = batch[:, 0].reshape(len(batch), 3, parts.cells, -1).sum(axis=(2, 3))
        np.testing.assert_array_equal(totals, np.broadcast_to(slots.sizes, totals.shape))
