"""Probes of shuffled labels, whose cosines are those of unrelated directions in the same data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.groups import groups as ordered_groups
from stratalens.analyses.data.targets import Pairs, contrasts, shuffled_labels
from stratalens.analyses.probes.plan import make_plan
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError

FOLDS = 2  # nothing is scored, so that the fewest folds do


def shuffled_probes(
    ds: Data,
    target: str = "trained_stage",
    site: str = "resid_post",
    pairs: Pairs = "all",
    draws: int = 10,
    *,
    groups: str = "entity_id",
    test: Mapping[str, object] | None = None,
    order: Sequence[object] | None = None,
    tokens: str = "each",
    seed: int = 0,
    **options: Any,
) -> xr.Dataset:
    """Fit the probes of `probe` after the labels were shuffled over entities, several times.

    Pass the result to `cosines(probes, null=...)`. All stages, layers, tokens and pairs share the shuffles, so that the
    null has the likeness that comes from common groups, from noise of unequal directions, and from noise that layers
    share.

    Args:
        ds: Dataset or DataArray, as in `probe`.
        target: label column.
        site: variable to read.
        pairs: as in `probe`; the same as for the probes to compare.
        draws: number of shuffles; each costs half of a `probe` of five folds.
        groups: label column of the units that keep one label.
        test: as in `probe`.
        order: groups wanted, in order; None = all.
        tokens: as in `probe`.
        seed: of the shuffles.
        **options: other arguments of `probe`, such as method, C, normalize and standardize.

    Returns:
        Dataset:

        - coef (draw, stage, layer, token, pair, features): float32, directions of shuffled labels.

    Raises:
        InputError: no draws, or as `probe`.
    """
    if draws < 2:
        raise InputError(f"draws={draws}; a spread needs at least two shuffles")
    plan = make_plan(ds, target, pairs, FOLDS, groups, test, order, 0, seed, 1, tokens)
    label_groups = ordered_groups(ds, target, order)
    fit: dict[str, Any] = {"folds": FOLDS, "groups": groups, "test": test, "tokens": tokens, "seed": seed, **options}
    shuffles = []
    for k in range(draws):
        labels = (plan.codes + 1)[:, None]  # one labelling for all pairs, which may have a group in common
        codes = shuffled_labels(labels, plan.fold, plan.units, np.random.SeedSequence([seed, k]))[:, 0] - 1
        targets = contrasts(replace(label_groups, codes=codes), pairs)
        shuffled = replace(plan, codes=codes, contrasts=targets)
        shuffles.append(probe(ds, target, site, pairs, resamples=1, plan=shuffled, **fit))
    coef = xr.concat([result["coef"] for result in shuffles], dim=pd.Index(np.arange(draws), name="draw"))
    return xr.Dataset({"coef": coef}, attrs={**shuffles[0].attrs, "shuffled": "labels", "draws": draws})
