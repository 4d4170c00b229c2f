"""95 % intervals of cross-validated measures, from the contributions of entities.

An interval covers the expected measure of the method with this number of training entities, over new training and new
test entities. Every entity is tested once and also trains the probes of the other folds, so that the contributions of
entities are correlated. Their plain variance is too small, and no unbiased estimate of the variance exists (Bengio and
Grandvalet, 2004, "No unbiased estimator of the variance of K-fold cross-validation").

Without any signal, two entities of different folds affect each other's scores by the same amount. Each such effect
counts twice, once in each direction, which doubles the variance of a sum of scores. Correct classifications follow the
signs of the scores and AUCs follow their ranks, so that the variance grows by the factor 1 + 2/pi = 1.64 or
1 + 3/pi = 1.95. With a signal and many entities the factor is near 1 (Bayle et al., 2020, "Cross-validation confidence
intervals for test error"). The factors below are somewhat larger, for small samples. They are between this limit and
the factor 1 + K/(K-1) of Nadeau and Bengio (2003), and cover about as often as the nested cross-validation of Bates,
Hastie and Tibshirani (2023), which needs K (K-1) / 2 more fits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from stratalens.analyses.data.array_types import Codes, Doubles, Mask
from stratalens.analyses.stats.bootstrap import LEVEL
from stratalens.analyses.stats.scores import ratio

DESCRIPTION = "95 % over the entities that train and test the probes"
# Factors of the variance for the correlation between entities that train and test.
ACCURACY_FACTOR = 1.75
AUC_FACTOR = 2.0
R2_FACTOR = 1.75
# With this number of entities on the rarer side, the estimated correlation inside entities has half of the weight.
FEW_ENTITIES = np.sqrt(3.0)
# Entities that are all half right have no variance; their interval has a length nevertheless.
SMALLEST_DESIGN_EFFECT = 0.25

Bounds = tuple[Doubles, Doubles]


def wilson(share: Doubles, n: Doubles, level: float = LEVEL) -> Bounds:
    """Wilson's score interval of a share of n independent cases; n may be an effective number (P,).

    Wilson (1927), "Probable inference, the law of succession, and statistical inference". Its length is never zero.

    Example:
        >>> low, high = wilson(np.array([1.0]), np.array([40.0]))
        >>> low.round(3).tolist(), high.tolist()
        ([0.912], [1.0])
    """
    z2 = float(ndtri((1 + level) / 2)) ** 2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n**2))) / (1 + z2 / n)
    return np.clip(middle - half, 0, share), np.clip(middle + half, share, 1)


def share_interval(hits: Doubles, rows: Doubles, strata: Codes, level: float = LEVEL) -> Bounds:
    """Interval of sum(hits) / sum(rows), e.g. of an accuracy.

    Wilson's interval with an effective number of rows (Korn and Graubard, 1998): the rows divided by the design
    effect of entities and by `ACCURACY_FACTOR`. Where nearly all rows are right, or nearly all wrong, too few entities
    differ to estimate the design effect. There the effective number approaches the number of entities.

    Args:
        hits: float64 array of shape (P, units), e.g. correctly classified rows of each entity.
        rows: float64 array of shape (P, units), test rows of each entity.
        strata: int64 array of shape (units,), stratum of each entity.
        level: coverage.

    Returns:
        (low, high), each a float64 array of shape (P,); NaN where no row counts.
    """
    n_rows, n_units = rows.sum(axis=1), (rows > 0).sum(axis=1)
    share = ratio(hits.sum(axis=1), n_rows)
    variance = stratified_variance(_deviations(hits, rows), rows > 0, strata)
    return _effective_wilson(share, variance, n_rows, n_units, _rarer_outcome(hits, rows), level)


def _effective_wilson(
    share: Doubles, variance: Doubles, n_rows: Doubles, n_units: Doubles, rarer: Codes, level: float
) -> Bounds:
    """Wilson's interval with the rows divided by their design effect, all of shape (P,)."""
    largest = ratio(n_rows, n_units)  # design effect of entities whose rows are all right or all wrong
    binomial = share * (1 - share) / np.maximum(n_rows, 1)
    design = np.where(binomial > 0, ratio(variance, binomial), largest)
    trust = rarer**2 / (rarer**2 + FEW_ENTITIES**2)
    design = trust * design + (1 - trust) * largest
    factor = 1 + (ACCURACY_FACTOR - 1) * trust
    with np.errstate(invalid="ignore", divide="ignore"):
        return wilson(share, n_rows / (np.maximum(design, SMALLEST_DESIGN_EFFECT) * factor), level)


def _rarer_outcome(hits: Doubles, rows: Doubles) -> Codes:
    """Number of entities with a wrong row, or with a right row, whichever is smaller; shape (P,)."""
    return np.asarray(np.minimum((hits < rows).sum(axis=1), ((hits > 0) & (rows > 0)).sum(axis=1)), dtype=np.int64)


def mean_share_interval(hits: Doubles, rows: Doubles, strata: Codes, level: float = LEVEL) -> Bounds:
    """Interval of the mean over classes of sum(hits) / sum(rows), e.g. of a balanced accuracy.

    The wider of two intervals on each side. The first is that of `share_interval`, with the variance of the mean and
    the harmonic means of rows and entities; for equal classes it is the interval of the accuracy. The second combines
    the intervals of the classes by the distances of their bounds (Zou and Donner, 2008, "Construction of confidence
    limits about effect measures"), for a small class whose rows are all right. Entities with rows in several classes
    correlate the classes, which scales these distances.

    Args:
        hits: float64 array of shape (classes, P, units).
        rows: float64 array of shape (classes, P, units).
        strata: as in `share_interval`.
        level: coverage.

    Returns:
        (low, high), each a float64 array of shape (P,).
    """
    share = ratio(hits.sum(axis=2), rows.sum(axis=2))
    mean, present = share.mean(axis=0), rows > 0
    deviations = np.stack([_deviations(own, counted) for own, counted in zip(hits, rows, strict=True)])
    variance = stratified_variance(deviations.sum(axis=0), np.asarray(present.any(axis=0)), strata)
    with np.errstate(divide="ignore"):
        n_rows, n_units = (len(rows) ** 2 / (1 / n).sum(axis=0) for n in (rows.sum(axis=2), present.sum(axis=2)))
    rarer = _rarer_outcome(hits.sum(axis=0), rows.sum(axis=0))
    low, high = _effective_wilson(mean, variance / len(rows) ** 2, n_rows, n_units, rarer, level)
    alone = [stratified_variance(own, n, strata) for own, n in zip(deviations, present, strict=True)]
    scale = ratio(variance, np.sum(alone, axis=0))
    # With one class to an entity the two variances are equal.
    torn = present.sum(axis=0).max(axis=1) > 1
    scale = np.sqrt(np.where(torn & np.isfinite(scale), scale.clip(0.25), 1.0))
    bounds = [share_interval(own, counted, strata, level) for own, counted in zip(hits, rows, strict=True)]
    below = np.sqrt(sum((s - b[0]) ** 2 for s, b in zip(share, bounds, strict=True))) / len(share)
    above = np.sqrt(sum((s - b[1]) ** 2 for s, b in zip(share, bounds, strict=True))) / len(share)
    return np.minimum(low, mean - scale * below).clip(0, 1), np.maximum(high, mean + scale * above).clip(0, 1)


def auc_interval(area: Doubles, influence: Doubles, classes: Mask, strata: Codes, level: float = LEVEL) -> Bounds:
    """Interval of an AUC: Wilson's, with an effective number of entities.

    The variance is that of the structural components of DeLong, DeLong and Clarke-Pearson (1988), summed by entity
    (Obuchowski, 1997, "Nonparametric analysis of clustered ROC curve data"), times `AUC_FACTOR`. Where every row is in
    the right order, the effective number is the harmonic mean of the entities of the two classes, times two.

    Args:
        area: float64 array of shape (P,).
        influence: float64 array of shape (P, units), share of each entity in the deviation of the area.
        classes: bool array of shape (2, P, units), entities with test rows of each class.
        strata: as in `share_interval`.
        level: coverage.

    Returns:
        (low, high), each a float64 array of shape (P,).
    """
    variance = AUC_FACTOR * stratified_variance(influence, np.asarray(classes.any(axis=0)), strata)
    with np.errstate(invalid="ignore", divide="ignore"):
        entities = 4 / (1 / classes.sum(axis=2)).sum(axis=0)
        variance = variance * entities / np.maximum(entities - 2, 1)  # two means are estimated
        perfect = area * (1 - area) <= 0
        n = np.where(perfect | (variance <= 0), entities, area * (1 - area) / variance)
        return wilson(area, n, level)


def unexplained_interval(errors: Doubles, deviations: Doubles, strata: Codes, level: float = LEVEL) -> Bounds:
    """Interval of sum(errors) / sum(deviations), the share of the variance that is not explained.

    The interval is symmetric on the logarithmic scale, because the share is positive.

    Args:
        errors: float64 array of shape (P, units), squared errors of each entity.
        deviations: float64 array of shape (P, units), squared deviations from the mean.
        strata: as in `share_interval`.
        level: coverage.

    Returns:
        (low, high), each a float64 array of shape (P,).
    """
    share = ratio(errors.sum(axis=1), deviations.sum(axis=1))
    variance = R2_FACTOR * stratified_variance(
        _deviations(errors, deviations), np.asarray(deviations + errors > 0), strata
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        half = float(ndtri((1 + level) / 2)) * np.where(share > 0, np.sqrt(variance) / share, 0)
        return share * np.exp(-half), share * np.exp(half)


def stratified_variance(influence: Doubles, member: npt.NDArray[np.bool_], strata: Codes) -> Doubles:
    """Variance of a sum of contributions of entities that are drawn inside their strata.

    Args:
        influence: float64 array of shape (P, units).
        member: bool array of shape (P, units), entities that count.
        strata: int64 array of shape (units,).

    Returns:
        float64 array of shape (P,).
    """
    names, code = np.unique(strata, return_inverse=True)
    inside = np.equal.outer(code.ravel(), np.arange(len(names))).astype(np.float64)
    count = member.astype(np.float64) @ inside
    total, squares = (influence * member) @ inside, (influence**2 * member) @ inside
    # A stratum of one entity has no spread; its deviation from the estimate counts.
    centred = np.where(count > 1, squares - total**2 / np.maximum(count, 1), squares)
    return np.asarray((centred.clip(0) * count / np.maximum(count - 1, 1)).sum(axis=1), dtype=np.float64)


def _deviations(top: Doubles, bottom: Doubles) -> Doubles:
    """Contribution of each entity to the deviation of sum(top) / sum(bottom), shape (P, units)."""
    total = np.maximum(bottom.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray((top - bottom * (top.sum(axis=1, keepdims=True) / total)) / total, dtype=np.float64)
