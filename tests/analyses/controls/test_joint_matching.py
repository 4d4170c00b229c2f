"""Matching at all tokens at once."""

from __future__ import annotations

import numpy as np

from stratalens.analyses.controls.matched_probe import matched_probe
from support.every_probe import QUIET
from support.planted import planted


def test_rows_are_matched_at_every_token_at_once() -> None:
    """The groups differ in one direction at one token, and in the other direction at the other token."""
    rng = np.random.default_rng(0)
    big = planted(stages=2, layers=1, groups=2, per_group=400, effect=0.5, d=6).isel(stage=[1])
    group = (big.trained_stage.values == "s2").astype(float)
    size = rng.normal(size=(1, 800, 2)) + 0.5 * group[None, :, None] * np.array([1, -1])
    result = matched_probe(
        big.assign(size=(("stage", "entity", "token"), size)), statistics=("size",), bins=4, tokens="joint", **QUIET
    )
    before, after = result.balance.sel(statistic="size").squeeze().values
    assert before > 0.4
    assert after < 0.25
    assert (result.n_matched % 2 == 0).all()
    assert "token" not in result.accuracy.dims
