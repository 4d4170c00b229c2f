from __future__ import annotations

import itertools

import numpy as np

from stratalens.analyses.controls.label_draws import LabelUnits, draw_labels


def test_draws_follow_their_distribution_given_the_number_of_labels() -> None:
    odds = np.array([-1.5, -0.5, 0.0, 0.7, 1.6])
    units = LabelUnits(np.arange(5), np.array([1, 1, -1, -1, -1], np.int8), np.zeros(5, np.int64))
    draws = draw_labels(units, odds, 4000, 0)
    assert ((draws > 0).sum(axis=1) == 2).all()
    weights = {pair: np.exp(odds[list(pair)].sum()) for pair in itertools.combinations(range(5), 2)}
    total = sum(weights.values())
    for pair, weight in weights.items():
        share = (draws[:, list(pair)] > 0).all(axis=1).mean()
        assert abs(share - weight / total) < 0.04, pair


def test_labels_move_inside_folds_and_torn_entities_keep_theirs() -> None:
    entity = np.array([0, 0, 1, 1, 2, 3, 4, 4, 4])
    sign = np.array([1, 1, -1, -1, 1, -1, 1, -1, -1], np.int8)
    fold = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
    units = LabelUnits.of(sign, fold, entity)
    assert len(units.label) == 7  # four whole entities, three rows of the torn one
    draws = np.stack([units.signs(label) for label in draw_labels(units, np.zeros(7), 200, 1)])
    assert (draws[:, 0] == draws[:, 1]).all()
    assert (draws[:, 0] == -draws[:, 2]).all()
    assert ((draws[:, 6:] > 0).sum(axis=1) == 1).all()
    assert 0.35 < (draws[:, 0] > 0).mean() < 0.65
    assert 0.2 < (draws[:, 6] > 0).mean() < 0.47


def test_rows_outside_the_pair_have_no_label_and_blocks_do_not_mix() -> None:
    sign = np.array([1, 0, -1, 1, -1], np.int8)
    block = np.array([0, 0, 0, 1, 1])
    units = LabelUnits.of(sign, np.zeros(5, np.int64), np.arange(5), block)
    assert units.unit.tolist() == [0, -1, 1, 2, 3]
    draws = np.stack([units.signs(label) for label in draw_labels(units, np.zeros(4), 50, 0)])
    assert (draws[:, 1] == 0).all()
    assert (draws[:, 0] == -draws[:, 2]).all()
    assert (draws[:, 3] == -draws[:, 4]).all()


def test_values_of_an_entity_are_averaged() -> None:
    units = LabelUnits.of(np.array([1, 1, -1], np.int8), np.zeros(3, np.int64), np.array([7, 7, 9]))
    assert units.mean(np.array([[1.0], [3.0], [5.0]])).tolist() == [[2.0], [5.0]]
    assert units.first_rows().tolist() == [0, 2]
