"""Sums and Gram matrices of training sets against the definition."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.analyses.estimators import gram
from stratalens.analyses.estimators.gram import Rows


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5), st.booleans())
@settings(max_examples=30, deadline=None)
def test_gram_matrices_of_training_sets_by_subtraction(seed: int, labels: int, sets: int, small: bool) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((40, 5))
    codes = rng.permutation(np.concatenate([np.arange(labels), rng.integers(0, labels, 40 - labels)]))
    inside = rng.random((40, sets)) < rng.random(sets)
    limit, gram.CELL_BYTES = gram.CELL_BYTES, 0 if small else 2**20
    try:
        rows = Rows.of(x, codes, inside)
        grams, sums, squares = rows.grams(), rows.sums(), rows.sums(squared=True)
        for k in range(sets):
            members = [x[(codes == g) & inside[:, k]] for g in range(labels)]
            np.testing.assert_allclose(grams(k), [part.T @ part for part in members], atol=1e-10)
            np.testing.assert_allclose(sums[:, k], [part.sum(axis=0) for part in members], atol=1e-10)
            np.testing.assert_allclose(squares[:, k], [(part**2).sum(axis=0) for part in members], atol=1e-10)
        assert (rows.label_grams is None) is small
        around = sum((codes == g).sum() * x[codes == g].var(axis=0) for g in range(labels))
        np.testing.assert_allclose(rows.variance, around / 40, atol=1e-10)
    finally:
        gram.CELL_BYTES = limit
