"""Closed-form probes from a summary: exact coefficients, and accuracies from its sample of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Codes, Doubles, Signs
from stratalens.analyses.data.groups import Groups
from stratalens.analyses.data.row_moments import ORDERS, RowMoments
from stratalens.analyses.data.row_sample import RowSample
from stratalens.analyses.data.summary import (
    MATRICES,
    cell_moments,
    cell_samples,
    cell_variables,
    in_memory,
    require_summary,
)
from stratalens.analyses.data.targets import ORDINAL, Contrasts, Pairs, contrasts
from stratalens.analyses.estimators.moment_probes import NEEDS, fit_from_moments
from stratalens.analyses.stats.intervals import share_interval
from stratalens.store.errors import InputError, suggest

SAMPLE_VARIABLES = ("sample_accuracy", "sample_accuracy_low", "sample_accuracy_high", "sample_rows", "sample_entities")


def summary_probe(
    summary: xr.Dataset,
    site: str = "resid_post",
    pairs: Pairs = "all",
    method: str = "ridge",
    C: float = 0.1,
    *,
    order: Sequence[object] | None = None,
    standardize: bool = False,
    folds: int = 5,
) -> xr.Dataset:
    """Fit closed-form probes to all rows of a summary at every stage, layer and token.

    Coefficients and intercepts are those of `probe` with the same method on a store of the same rows, solved in
    float64. Accuracies come from the sample of rows: in each fold, the rows of some sampled entities are taken out of
    the sums, the probe is fitted to the rest, and it is scored on these rows.

    Args:
        summary: from `summarize`, `open_summary` or `merge_summaries`.
        site: site of the summary.
        pairs: "all", "rest" (each group against the others), "ordinal" (ridge alone: regression on the position in the
            order), or a list of (name, name).
        method: "ridge", "lda" or "diffmeans", as in `probe`. The summary must have the sums for it (`probes=` of
            `summarize`).
        C: inverse strength of the L2 penalty of ridge (alpha = 1 / C).
        order: groups wanted, in order; None = all of the summary.
        standardize: scale features to unit variance; lda always does.
        folds: folds of sampled entities for the accuracies; 0 leaves the accuracies out.

    Returns:
        Dataset, with the coordinates pair, pair_first and pair_second of `probe`:

        - coef (stage, layer, token, pair, features): float64.
        - intercept (stage, layer, token, pair): float64.
        - chance (stage, token, pair): float64, share of the larger class.
        - sample_accuracy (stage, layer, token, pair): float64, share of sampled rows that are classified correctly by
          a probe that never saw their entity; NaN where a class has no sampled entity in two folds.
        - sample_accuracy_low, sample_accuracy_high: float64, 95 % interval over sampled entities.
        - sample_rows, sample_entities (stage, layer, token, pair): int64, rows and entities that were scored.

        For "ordinal" there are no accuracies and no chance.

    Raises:
        InputError: no summary, an unknown site, group or method, a summary without the sums for the method, fewer than
            two groups, or a group with fewer than two rows.

    Example:
        >>> probes = sl.summary_probe(sl.open_summary("run.summary"), method="lda")  # doctest: +SKIP
        >>> probes.coef.sel(pair="week1 v week2")  # doctest: +SKIP
    """
    data = require_summary(summary, site, "summary_probe", "probe")
    targets, group_codes = _targets(data, pairs, order)
    _check(data, targets, method, C, folds)
    values = group_codes.astype(np.float64) if targets.kind == ORDINAL else None
    fit = _Fit(targets.signs, method, values, 1 / C, standardize, folds if targets.kind == "binary" else 0)
    name = f"{site}_mean"
    lead = [d for d in ("stage", "layer", "token") if d in data[name].dims]
    features = [str(d) for d in data[name].dims if d not in (*lead, "group")]
    sizes, shape = [data.sizes[d] for d in lead], [data.sizes[d] for d in features]
    n_pairs = len(targets.names)
    coef = np.full((*sizes, n_pairs, int(np.prod(shape))), np.nan)
    intercept = np.full((*sizes, n_pairs), np.nan)
    scores = {n: np.full(intercept.shape, np.nan) for n in SAMPLE_VARIABLES} if fit.folds else {}
    mixed = bool(data.attrs["entities_in_several_groups"])
    wanted = in_memory(data[cell_variables(data, site, _matrices(method))])
    for place in np.ndindex(*sizes):
        cell = wanted.isel(dict(zip(lead, place, strict=True))).load()
        moments = cell_moments(cell, site)
        coef[place], intercept[place] = fit.all_rows(moments)
        if scores:
            measured = fit.score(moments, cell_samples(cell, site), mixed)
            for variable, value in zip(scores, measured, strict=True):
                scores[variable][place] = value
    out = xr.Dataset(
        {
            "coef": ((*lead, "pair", *features), coef.reshape(*sizes, n_pairs, *shape)),
            "intercept": ((*lead, "pair"), intercept),
        },
        coords={
            "pair": np.array(targets.names, dtype=object),
            "pair_first": ("pair", np.array(targets.first, dtype=object)),
            "pair_second": ("pair", np.array(targets.second, dtype=object)),
        },
    )
    for variable, value in scores.items():
        counts = variable in ("sample_rows", "sample_entities")
        out[variable] = ((*lead, "pair"), value.astype(np.int64) if counts else value)
        out[variable].attrs["from"] = "a sample of the rows, by probes that never saw the entity"
    if fit.folds:
        count = data["count"].values
        sides = [count @ (targets.signs == side) for side in (-1, 1)]
        out["chance"] = (("stage", "token", "pair"), np.maximum(sides[0], sides[1]) / (sides[0] + sides[1]))
    coordinates = {n: data[n] for n in (*lead, *features) if n in data.coords}
    out = out.assign_coords(coordinates).assign_coords({n: data[n] for n in ("stage_order", "weights_fingerprint")})
    return out.assign_attrs(
        site=site,
        target=data.attrs["by"],
        pairs=targets.kind,
        method=method,
        C=C,
        standardize=int(standardize),
        ordered=int(data.attrs["ordered"]) if order is None else 1,
        accuracies="from a sample of the rows" if fit.folds else "none",
        model=data.attrs["model"],
        summary_of=data.attrs["path"],
    )


def _matrices(method: str) -> set[str]:
    """The matrices that a method reads."""
    return set(MATRICES[: (0, 1, 3)[ORDERS.index(NEEDS[method])]])


def _targets(data: xr.Dataset, pairs: Pairs, order: Sequence[object] | None) -> tuple[Contrasts, Codes]:
    """Contrasts whose rows are the groups of the summary, and the position of each group in the order; -1 = unused."""
    names = np.asarray(data.group.values)
    groups = Groups(data.attrs["by"] or "by", names, np.arange(len(names)), data.attrs["ordering"])
    if order is not None:
        codes = np.full(len(names), -1, dtype=np.int64)
        chosen = [groups.index(name) for name in order]
        codes[chosen] = np.arange(len(chosen))
        groups = replace(groups, names=names[chosen], codes=codes, ordering="order")
    groups.require(2)
    if isinstance(pairs, str) and pairs == "multiclass":
        raise InputError("pairs='multiclass' needs a logistic regression, which needs rows. Use a store and `probe`.")
    return contrasts(groups, pairs), groups.codes


def _check(data: xr.Dataset, targets: Contrasts, method: str, C: float, folds: int) -> None:
    """Refuse what these sums cannot give."""
    if method not in NEEDS:
        raise InputError(f"method={method!r}: {suggest(str(method), NEEDS)}. Other probes need a store and `probe`.")
    if targets.kind == ORDINAL and method != "ridge":
        raise InputError(f"pairs='ordinal' is a ridge regression; method={method!r} has no meaning there")
    if ORDERS.index(NEEDS[method]) > ORDERS.index(data.attrs["order_of_sums"]):
        raise InputError(
            f"this summary has no sums for method={method!r}. Summarize again with probes={(method,)!r}, or use "
            f"method='diffmeans'."
        )
    if not (np.isfinite(C) and C > 0):
        raise InputError(f"C={C!r}; an inverse penalty must be positive and finite, e.g. 0.1")
    if folds < 0 or folds == 1:
        raise InputError(f"folds={folds}; give at least 2, or 0 for no accuracies")
    count = data["count"]
    used = (targets.signs != 0).any(axis=1)
    small = (count < 2).values & used
    if small.any():
        stage, token, group = (int(i[0]) for i in np.nonzero(small))
        raise InputError(
            f"group {str(data.group.values[group])!r} has {int(count.values[stage, token, group])} rows at stage "
            f"{data.stage.values[stage]}, token {data.token.values[token]}; a probe needs at least 2. Leave the group "
            "out with order=[...] or pairs=[...], or merge summaries of more rows."
        )


class _Fit:
    """Fits and scores the probes of one place.

    Args:
        signs: int8 array of shape (groups, pairs).
        method: method of the probes.
        values: numbers to predict for "ordinal", else None.
        alpha: ridge penalty.
        standardize: scale features to unit variance.
        folds: folds of sampled entities.
    """

    def __init__(
        self, signs: Signs, method: str, values: Doubles | None, alpha: float, standardize: bool, folds: int
    ) -> None:
        self.signs, self.method, self.values, self.alpha = signs, method, values, alpha
        self.standardize, self.folds = standardize, folds

    def one(self, moments: Sequence[RowMoments], pair: int) -> tuple[Doubles, float]:
        """Coefficients and intercept of one pair."""
        signs = self.signs[:, pair]
        return fit_from_moments(
            moments, signs, self.method, values=self.values, alpha=self.alpha, standardize=self.standardize
        )

    def all_rows(self, moments: Sequence[RowMoments]) -> tuple[Doubles, Doubles]:
        """Coefficients (pairs, d) and intercepts (pairs,) from all rows."""
        fitted = [self.one(moments, pair) for pair in range(self.signs.shape[1])]
        return np.array([w for w, _ in fitted]), np.array([b for _, b in fitted])

    def score(self, moments: Sequence[RowMoments], samples: Sequence[RowSample], mixed: bool) -> Doubles:
        """Accuracy, its bounds, rows and entities of each pair: (5, pairs)."""
        if mixed:  # then an entity counts only if all of its rows are in the samples of all groups
            limit = min(sample.limit for sample in samples)
            samples = [s.ordered(len(s.entity))[0] for s in (replace(s, limit=limit) for s in samples)]
        entities = np.unique(np.concatenate([s.entity for s in samples]))
        fold = [np.searchsorted(entities, s.entity) % self.folds for s in samples]
        order = NEEDS[self.method]
        scores: list[list[tuple[Codes, Doubles, int]]] = [[] for _ in range(self.signs.shape[1])]
        for k in range(self.folds):
            rest = [
                m.without(RowMoments.of_rows(np.asarray(s.values)[f == k], order)) if (f == k).any() else m
                for m, s, f in zip(moments, samples, fold, strict=True)
            ]
            for pair, scored in enumerate(scores):
                signs = self.signs[:, pair]
                if any(sum(m.count for m, s in zip(rest, signs, strict=True) if s == side) < 2 for side in (-1, 1)):
                    continue
                if not any((f == k).any() for f, s in zip(fold, signs, strict=True) if s):
                    continue
                w, b = self.one(rest, pair)
                for sample, f, sign in zip(samples, fold, signs, strict=True):
                    rows = np.flatnonzero(f == k) if sign else np.empty(0, dtype=np.int64)
                    if len(rows):
                        scored.append((sample.entity[rows], np.asarray(sample.values)[rows] @ w + b, int(sign)))
        return np.stack([_accuracy(scored) for scored in scores], axis=1)


def _accuracy(scored: Sequence[tuple[Codes, Doubles, int]]) -> Doubles:
    """Accuracy, low, high, rows and entities; NaN where a class has no scored row."""
    if {sign for _, _, sign in scored} != {-1, 1}:
        return np.array([np.nan, np.nan, np.nan, 0, 0])
    entity = np.concatenate([e for e, _, _ in scored])
    sign = np.concatenate([np.full(len(e), s) for e, _, s in scored])
    right = np.concatenate([(score > 0) == (s > 0) for _, score, s in scored])
    units, code = np.unique(entity, return_inverse=True)
    hits = np.bincount(code, right.astype(np.float64), len(units)).astype(np.float64)
    rows = np.bincount(code, minlength=len(units)).astype(np.float64)
    strata = (np.bincount(code, sign, len(units)) > 0).astype(np.int64)
    low, high = share_interval(hits[None], rows[None], strata)
    return np.array([right.mean(), low[0], high[0], len(right), len(units)])
