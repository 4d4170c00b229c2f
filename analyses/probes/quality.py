"""Quality of out-of-fold scores: accuracy, balanced accuracy, AUC, or R2 of regressions, with intervals."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from stratalens.analyses.data.array_types import Codes, Doubles, Floats, Mask
from stratalens.analyses.data.splits import entity_strata
from stratalens.analyses.data.targets import MULTICLASS, ORDINAL
from stratalens.analyses.probes.plan import Plan
from stratalens.analyses.stats import intervals
from stratalens.analyses.stats import scores as scoring

Variables = dict[str, tuple[tuple[str, ...], npt.NDArray[np.generic]]]


def measures(kind: str) -> tuple[str, ...]:
    """Names of the measures of a kind of probe."""
    return ("r2",) if kind == ORDINAL else ("accuracy", "balanced_accuracy", "auc")


def score_quality(score: Floats, plan: Plan, resample: bool = True) -> Variables:
    """Measure the quality of scores, in each fold and over all test rows.

    Args:
        score: array of shape (pair or group, n), out of fold.
        plan: plan of exactly these rows.
        resample: include the measures over all test rows and their intervals.
    """
    if plan.contrasts.kind == ORDINAL:
        return _ordinal_quality(score[0], plan)
    right, tested = correct_rows(score, plan), (plan.test_signs != 0).T
    member = class_rows(plan)
    by_class = [scoring.fold_means(right & own, own, plan.fold, plan.folds) for own in member]
    areas = _areas(score, plan)
    out: Variables = {
        "accuracy": (("pair", "fold"), scoring.fold_means(right, tested, plan.fold, plan.folds)),
        "balanced_accuracy": (("pair", "fold"), np.mean(by_class, axis=0)),
        "auc": (("pair", "fold"), areas[0]),
        "right": (("pair", "entity"), right.astype(np.int8)),
        "tested": (("pair", "entity"), tested.astype(np.int8)),
    }
    if not resample:
        return out
    units, n_units, strata = plan.units, int(plan.units.max(initial=-1)) + 1, entity_strata(plan.codes, plan.units)
    hits, rows = (scoring.sum_by_unit(v, units, n_units) for v in (right, tested))
    hits_by_class = np.stack([scoring.sum_by_unit(right & own, units, n_units) for own in member])
    rows_by_class = np.stack([scoring.sum_by_unit(own, units, n_units) for own in member])
    bounds = {
        "accuracy": intervals.share_interval(hits, rows, strata),
        "balanced_accuracy": intervals.mean_share_interval(hits_by_class, rows_by_class, strata),
        "auc": _auc_interval(score, plan, areas[1], strata),
    }
    for name, value in _values(right, tested, member, areas[1]).items():
        out[f"{name}_mean"] = (("pair",), value)
        out[f"{name}_low"], out[f"{name}_high"] = ((("pair",), bound) for bound in bounds[name])
    return out


def quality_values(score: Floats, plan: Plan) -> dict[str, Doubles]:
    """Measures of scores over all test rows, each of shape (pair,): those that shuffled labels are compared by."""
    if plan.contrasts.kind == ORDINAL:
        _, _, errors, deviations = _ordinal_errors(score[0], plan)
        return {"r2": np.array([1 - errors.sum() / deviations.sum()])}
    tested = (plan.test_signs != 0).T
    return _values(correct_rows(score, plan), tested, class_rows(plan), _areas(score, plan)[1])


def _values(right: Mask, tested: Mask, member: Mask, area: Doubles) -> dict[str, Doubles]:
    recall = scoring.ratio((right & member).sum(axis=2), member.sum(axis=2))
    return {
        "accuracy": scoring.ratio(right.sum(axis=1), tested.sum(axis=1)),
        "balanced_accuracy": recall.mean(axis=0),
        "auc": area,
    }


def correct_rows(score: Floats, plan: Plan) -> Mask:
    """Test rows that are classified correctly, of shape (pair, n)."""
    test = plan.test_signs
    if plan.contrasts.kind == MULTICLASS:
        return np.asarray((score.argmax(axis=0) == plan.codes) & (test[:, 0] != 0))[None]
    return scoring.is_right(score, test)


def class_rows(plan: Plan) -> Mask:
    """Test rows of each class, of shape (classes, pair, n)."""
    test = plan.test_signs
    if plan.contrasts.kind == MULTICLASS:
        return np.stack([((plan.codes == g) & (test[:, 0] != 0))[None] for g in range(len(plan.group_names))])
    return np.stack([(test < 0).T, (test > 0).T])


def _auc_rows(plan: Plan) -> tuple[Mask, Mask]:
    """Negative and positive rows of each AUC, of shape (AUCs, n); several classes have one each, against the rest."""
    member = class_rows(plan)
    if plan.contrasts.kind != MULTICLASS:
        return member[0], member[1]
    positive = member[:, 0]
    return positive.any(axis=0) & ~positive, positive


def _areas(score: Floats, plan: Plan) -> tuple[Doubles, Doubles]:
    """AUC of each fold (pair, folds) and over all folds (pair,); for several classes, the mean over classes."""
    negative, positive = _auc_rows(plan)
    concordant, pairs = scoring.concordance(score, positive, negative, plan.fold, plan.folds)
    by_fold, area = scoring.ratio(concordant, pairs), scoring.ratio(concordant.sum(axis=1), pairs.sum(axis=1))
    if plan.contrasts.kind != MULTICLASS:
        return by_fold, area
    return by_fold.mean(axis=0, keepdims=True), area.mean(keepdims=True)


def _auc_interval(score: Floats, plan: Plan, area: Doubles, strata: Codes) -> intervals.Bounds:
    """Interval of each AUC over all folds; for several classes, of their mean."""
    negative, positive = _auc_rows(plan)
    placed = scoring.placements(score, positive, negative, plan.fold, plan.folds)
    fold = np.equal.outer(plan.fold, np.arange(plan.folds)).astype(np.float64)
    n_pos, n_neg = positive @ fold, negative @ fold
    pairs = (n_pos * n_neg).sum(axis=1)
    own = scoring.ratio((placed * positive).sum(axis=1), pairs)
    # Rows of the other class that each row is compared with.
    compared = np.where(positive, n_neg @ fold.T, np.where(negative, n_pos @ fold.T, 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        influence = (placed - own[:, None] * compared) / pairs[:, None]
    n_units = len(strata)
    by_unit = scoring.sum_by_unit(influence, plan.units, n_units)
    present = np.stack([scoring.sum_by_unit(rows, plan.units, n_units) > 0 for rows in (negative, positive)])
    if plan.contrasts.kind == MULTICLASS:
        by_unit = by_unit.mean(axis=0, keepdims=True)
        present = present[:, [int(present[1].sum(axis=1).argmin())]]  # the class with the fewest entities
    return intervals.auc_interval(area, by_unit, present, strata)


def _ordinal_quality(score: Floats, plan: Plan) -> Variables:
    r2, rho, errors, deviations = _ordinal_errors(score, plan)
    n_units = int(plan.units.max(initial=-1)) + 1
    error_sums, deviation_sums = (scoring.sum_by_unit(v[None], plan.units, n_units) for v in (errors, deviations))
    low, high = intervals.unexplained_interval(error_sums, deviation_sums, entity_strata(plan.codes, plan.units))
    return {
        "r2": (("pair", "fold"), r2[None]),
        "rank_correlation": (("pair", "fold"), rho[None]),
        "r2_mean": (("pair",), np.array([1 - errors.sum() / deviations.sum()])),
        "r2_low": (("pair",), 1 - high),
        "r2_high": (("pair",), 1 - low),
    }


def _ordinal_errors(score: Floats, plan: Plan) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """R2 and Spearman's correlation of each fold (folds,); squared errors and squared deviations of every row (n,)."""
    tested = plan.test_signs[:, 0] != 0
    r2, rho = np.full(plan.folds, np.nan), np.full(plan.folds, np.nan)
    truth = plan.codes.astype(np.float64)
    error = np.where(tested, (score - truth) ** 2, 0.0)
    deviation = np.where(tested, (truth - truth[tested].mean()) ** 2, 0.0)
    for k in range(plan.folds):
        rows = np.flatnonzero((plan.fold == k) & tested)
        if len(rows) > 1 and np.ptp(truth[rows]) > 0:
            r2[k] = 1 - error[rows].sum() / deviation[rows].sum()
            if np.ptp(score[rows]) > 0:
                rho[k] = np.corrcoef(rankdata(score[rows]), rankdata(truth[rows]))[0, 1]
    return r2, rho, error, deviation
