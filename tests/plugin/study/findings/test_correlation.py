"""Rank correlation within strata, on planted relations."""

import numpy as np

from stratalens.plugin.study.findings.correlation import correlate_within_strata


def test_a_relation_within_stages_is_found_and_one_between_stages_is_not():
    random = np.random.default_rng(0)
    strata = np.repeat(np.arange(4), 60)
    known = random.normal(size=240)
    within = correlate_within_strata(strata + known, -known + random.normal(size=240), strata)
    assert within["value"] < -0.4
    assert within["low"] < within["value"] < within["high"]
    assert within["p"] < 0.01
    between = correlate_within_strata(
        strata + random.normal(size=240) * 0.1, 5.0 * strata + random.normal(size=240), strata
    )
    assert between["p"] > 0.01
    explained = correlate_within_strata(
        known + random.normal(size=240) * 0.1, known + random.normal(size=240) * 0.1, strata, known
    )
    assert abs(explained["value"]) < 0.35
