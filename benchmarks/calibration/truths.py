"""Exact quality of linear probes on groups of normal rows with equal, isotropic covariance.

The expected accuracy of a procedure at some number of rows is the mean, over data sets, of the exact accuracy of the
probes that it fitted. Closed forms replace large test sets, and have no Monte Carlo error of their own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.stats import norm

from benchmarks.calibration.designs import Design, Doubles


def fold_probes(result: xr.Dataset) -> tuple[Doubles, Doubles]:
    """Return coefficients (data set, fold, feature) and intercepts (data set, fold) of the probes of one pair."""
    coef = result["fold_coef"].squeeze("token").squeeze("pair").transpose("layer", "fold", "d_model")
    intercept = result["fold_intercept"].squeeze("token").squeeze("pair").transpose("layer", "fold")
    return coef.values.astype(np.float64), intercept.values.astype(np.float64)


def two_class_truth(
    result: xr.Dataset, design: Design, effect: float, rows: npt.NDArray[np.int64]
) -> dict[str, Doubles]:
    """Return the exact quality of the fold probes of every data set, mean over the folds.

    Args:
        result: of `probe` with fold_coefs=True, data sets along `layer`.
        design: of the data.
        effect: distance of the two means.
        rows: number of rows of both classes.

    Returns:
        float64 arrays of shape (data set,): accuracy, auc and balanced_accuracy.
    """
    coef, intercept = fold_probes(result)
    length = np.linalg.norm(coef, axis=-1) * design.sd
    scores = np.einsum("lfd,gd->glf", coef, design.means(effect)) + intercept  # mean score of each class
    specificity, sensitivity = norm.cdf(-scores[0] / length), norm.cdf(scores[1] / length)
    share = rows / rows.sum()
    return {
        "accuracy": (share[0] * specificity + share[1] * sensitivity).mean(axis=1),
        "balanced_accuracy": ((specificity + sensitivity) / 2).mean(axis=1),
        "auc": norm.cdf((scores[1] - scores[0]) / (np.sqrt(2) * length)).mean(axis=1),
    }


def ordinal_truth(result: xr.Dataset, design: Design, effect: float, rows: npt.NDArray[np.int64]) -> Doubles:
    """Return the exact R2 of the fold probes of the group number, mean over the folds, of every data set."""
    coef, intercept = fold_probes(result)
    share, number = rows / rows.sum(), np.arange(len(rows))
    scores = np.einsum("lfd,gd->glf", coef, design.means(effect)) + intercept
    error = np.einsum("g,glf->lf", share, (scores - number[:, None, None]) ** 2)
    error += (np.linalg.norm(coef, axis=-1) * design.sd) ** 2
    deviation = float(share @ (number - share @ number) ** 2)
    return np.asarray((1 - error / deviation).mean(axis=1))
