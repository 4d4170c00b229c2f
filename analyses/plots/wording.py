"""Words of figures and sentences about groups: they mention an order only where the groups have one."""

from __future__ import annotations

from dataclasses import dataclass

import xarray as xr

from stratalens.analyses.data.training_order import group_names, is_ordered, stage_orders
from stratalens.analyses.plots.spec import plain_text


@dataclass(frozen=True)
class GroupWords:
    """Words about the groups of one result.

    Attributes:
        by: label column of the groups; "the groups" where the result does not name it.
        ordered: the groups have a known order.
        order: name of the order, "training order" or "the order of size"; empty without one.
        first: word for the first group of a pair.
        second: word for the second group of a pair.
    """

    by: str
    ordered: bool
    order: str
    first: str
    second: str

    @property
    def trained(self) -> bool:
        """Whether the order is that of training."""
        return self.order == "training order"


def group_words(data: xr.Dataset | xr.DataArray) -> GroupWords:
    """Return the words about the groups of a result."""
    by = column_of(data)
    if not is_ordered(data):
        return GroupWords(by or "the groups", False, "", "one group", "other group")
    names, stages = [name for name in group_names(data) if name != "rest"], stage_orders(data) or {}
    trained = by in ("trained_stage", "") or (bool(names) and all(name in stages for name in names))
    order = "training order" if trained else f"the order of {by}"
    return GroupWords(by or "the groups", True, order, "earlier group", "later group")


def column_of(data: xr.Dataset | xr.DataArray) -> str:
    """Return the label column of a result; empty where the result does not name it."""
    return plain_text(data.attrs.get("by") or data.attrs.get("target") or "", 40)
