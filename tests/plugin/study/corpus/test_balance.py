"""Differences of attributes between stages."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stratalens.plugin.study.corpus.balance import Covariates


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-9, 9), st.sampled_from("ab")), min_size=3, max_size=30))
def test_differences_stay_finite_or_huge_and_vanish_for_equal_stages(rows):
    stage = np.array([row[0] for row in rows])
    covariates = Covariates({"n": [str(row[1]) for row in rows], "c": [row[2] for row in rows]})
    differences = covariates.differences(stage, 3)
    assert np.isfinite(differences).all()
    twice = Covariates({"n": [str(row[1]) for row in rows] * 2, "c": [row[2] for row in rows] * 2})
    same = twice.differences(np.repeat([0, 1], len(rows)), 2)
    np.testing.assert_allclose(same, 0, atol=1e-12)
