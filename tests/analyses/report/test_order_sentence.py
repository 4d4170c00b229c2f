"""The sentence on order leads with the inner groups, and claims nothing that was not tested."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.plots.centroids import centroid_path_spec
from stratalens.analyses.report.group_sentences import path_sentence
from support import results as planted
from support.unordered import without_order

STAGES = ("base", "s1", "s2", "s3", "s4", "s5", "s6")


def projection(stages: tuple[str, ...] = STAGES, inner: float = 1.0, p: float = 0.042, **attrs: object) -> xr.Dataset:
    result = planted.projection(stages, 1, ("last",))
    shape = xr.full_like(result["rank_correlation"], 1.0)
    numbers = {"": inner, "_low": inner - 0.2, "_high": min(1.0, inner + 0.2), "_null": 0.0, "_p": p}
    result = result.assign({f"inner_rank_correlation{k}": shape * v for k, v in numbers.items()})
    return result.assign_attrs({"ordered": True, "least_p": 0.042, **attrs})


def sentence(result: xr.Dataset) -> str:
    spec = centroid_path_spec(result)
    return path_sentence(result, spec)(spec.default_values())


def test_an_order_of_the_inner_groups_leads() -> None:
    said = sentence(projection())
    assert (
        "the 6 centroids of held-out entities follow training order: the rank correlation of the 4 inner groups is 1.00"
        in said
    )
    assert "p = 0.042 under random orders of the inner groups" in said
    assert said.index("inner groups") < said.index("Over all groups")
    assert "with no difference between groups it would be 0.00, p ≤ 0.001" in said
    assert "permuted" not in said


@pytest.mark.parametrize(("inner", "p"), [(1.0, 0.2), (-1.0, 1.0), (0.0, 0.5), (-0.5, 0.01)])
def test_groups_that_differ_without_order_are_not_said_to_follow_one(inner: float, p: float) -> None:
    """Their rank correlation over all groups has a small p here, because the first and the last group differ."""
    said = sentence(projection(inner=inner, p=p))
    assert "p ≤ 0.001" in said
    assert "do not show training order" in said
    assert "follow" not in said


def test_fewer_than_six_groups_cannot_show_an_order() -> None:
    said = sentence(projection(STAGES[:6], least_p=1 / 6))
    assert "cannot show training order at p = 0.05, because there are fewer than six groups" in said
    assert "(the least possible p is 0.17)" in said
    assert "follow" not in said
    three = sentence(projection(STAGES[:4], least_p=1.0))
    assert "cannot show training order: only one group is between" in three
    weak = sentence(projection(inner=0.4))
    assert "weakly follow training order" in weak


def test_results_of_earlier_versions_make_no_claim() -> None:
    old = projection()
    del old.attrs["least_p"]
    assert "are not tested for training order here" in sentence(old)
    assert "follow" not in sentence(old)
    assert "not tested for training order" in sentence(planted.projection(STAGES, 1, ("last",)))


def test_other_orders_have_their_own_name_and_groups_without_one_have_no_claim() -> None:
    sizes = ("tiny", "small", "medium", "large", "huge", "giant")
    ordered = without_order(projection(), sizes).assign_attrs(ordered=True, by="size")
    said = sentence(ordered)
    assert "follow the order of size: " in said
    assert "training" not in said
    none = sentence(without_order(projection(), sizes))
    assert "no order, so it is no test of one" in none
    assert not np.any([word in none for word in ("follow", "training", "rank")])
