"""Differences of attributes between stages, and partitions that keep them small.

A numeric attribute is compared by its standardised mean difference (difference
of means over the pooled standard deviation), a category by the difference of
its shares, each stage against all others together. Conventions: Austin,
"Balance diagnostics for comparing the distribution of baseline covariates"
(2009). A random partition is drawn again until its differences are under the
limits: Morgan and Rubin, "Rerandomization to improve covariate balance" (2012).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from stratalens.store.errors import InputError, join_names

MAX_PARTITIONS = 1000
MEAN_MEASURE = "standardised mean difference"
SHARE_MEASURE = "difference of shares"


class Covariates:
    """Attributes of entities as numbers, for comparing any stages.

    Args:
        attributes: values by name, one for every entity. An attribute whose values are all numbers is numeric; any
            other is a category.

    Example:
        >>> covariates = Covariates({"born": ["1900", "1910", "1920", "1930"], "gender": ["f", "f", "m", "m"]})
        >>> table = covariates.compare(np.array([0, 1, 0, 1]), ["s1", "s2"])
        >>> table[table.attribute == "gender"]["difference"].tolist()
        [0.0, 0.0, 0.0, 0.0]
    """

    def __init__(self, attributes: Mapping[str, Sequence[str]]) -> None:
        labels: list[tuple[str, str | None]] = []
        columns: list[npt.NDArray[np.float64]] = []
        for name, values in attributes.items():
            numbers = pd.to_numeric(pd.Series(list(values)), errors="coerce").to_numpy(dtype=float)
            if np.isfinite(numbers).all():
                labels.append((name, None))
                columns.append(numbers)
                continue
            categories = np.asarray(list(values), dtype=object)
            for value in sorted(set(values)):
                labels.append((name, value))
                columns.append((categories == value).astype(float))
        self.labels = labels
        self.values = np.stack(columns, axis=1) if columns else np.zeros((0, 0))
        self.numeric = np.array([value is None for _, value in labels], dtype=bool)

    def differences(self, stage: npt.NDArray[np.int64], stages: int) -> npt.NDArray[np.float64]:
        """Compare every stage with the others.

        Args:
            stage: int64 array of shape (entities,), the stage of each entity.
            stages: number of stages.

        Returns:
            float64 array of shape (stages, labels): standardised mean differences of numeric attributes, differences
            of shares of categories.
        """
        out = np.zeros((stages, len(self.labels)))
        for number in range(stages):
            inside, outside = self.values[stage == number], self.values[stage != number]
            difference = _mean(inside) - _mean(outside)
            spread = np.sqrt((_variance(inside) + _variance(outside)) / 2)
            scale = np.where(self.numeric, np.where(spread > 0, spread, np.where(difference == 0, 1, 1e-300)), 1)
            out[number] = difference / scale
        return out

    def compare(self, stage: npt.NDArray[np.int64], names: Sequence[str]) -> pd.DataFrame:
        """Tabulate the differences: stage, attribute, value, measure, difference.

        Args:
            stage: int64 array of shape (entities,), the stage of each entity.
            names: names of the stages.

        Returns:
            One row for every stage and label.
        """
        differences = self.differences(stage, len(names))
        return pd.DataFrame(
            [
                {
                    "stage": name,
                    "attribute": attribute,
                    "value": "" if value is None else value,
                    "measure": MEAN_MEASURE if value is None else SHARE_MEASURE,
                    "difference": differences[number, column],
                }
                for number, name in enumerate(names)
                for column, (attribute, value) in enumerate(self.labels)
            ],
            columns=["stage", "attribute", "value", "measure", "difference"],
        )

    def is_balanced(self, stage: npt.NDArray[np.int64], stages: int, mean_limit: float, share_limit: float) -> bool:
        """Return whether all differences are at most the limits."""
        differences = np.abs(self.differences(stage, stages))
        return bool((differences <= np.where(self.numeric, mean_limit, share_limit)).all())


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the mean over entities; 0 without entities."""
    return values.mean(axis=0) if len(values) else np.zeros(values.shape[1])


def _variance(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute the unbiased variance over entities; 0 for fewer than two."""
    return values.var(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def draw_balanced_partition(
    covariates: Covariates,
    first: npt.NDArray[np.int64],
    stages: int,
    random: np.random.Generator,
    mean_limit: float,
    share_limit: float,
) -> npt.NDArray[np.int64]:
    """Draw partitions until one is under the limits.

    Args:
        covariates: the attributes to balance.
        first: int64 array of shape (entities,), the first partition to try.
        stages: number of stages.
        random: generator of the other partitions.
        mean_limit: largest standardised mean difference.
        share_limit: largest difference of shares.

    Returns:
        int64 array of shape (entities,): the first partition under the limits, of at most `MAX_PARTITIONS`; `first`
        if none is.
    """
    partition = first
    for _ in range(MAX_PARTITIONS):
        if covariates.is_balanced(partition, stages, mean_limit, share_limit):
            return partition
        partition = random.permutation(first)
    return first


def describe_largest_differences(table: pd.DataFrame) -> list[str]:
    """Describe the largest difference of either measure, one phrase a measure."""
    phrases = []
    for measure, rows in table.groupby("measure", sort=True):
        row = rows.iloc[int(rows["difference"].abs().to_numpy().argmax())]
        label = row["attribute"] if not row["value"] else f"{row['attribute']} = {row['value']}"
        size = abs(row["difference"])
        phrases.append(f"largest {measure}: {size:.2f} ({label}, {row['stage']} against the other stages)")
    return phrases


def check_balance(table: pd.DataFrame, mean_limit: float, share_limit: float, *, force: bool, shuffled: bool) -> None:
    """Refuse stages whose attributes differ too much.

    Args:
        table: the result of `Covariates.compare`.
        mean_limit: largest standardised mean difference.
        share_limit: largest difference of shares.
        force: accept any difference.
        shuffled: whether the study drew the partition, so that more entities may help.

    Raises:
        InputError: a difference is above its limit; the message names the largest.
    """
    if force or not len(table):
        return
    limit = np.where(table["measure"] == SHARE_MEASURE, share_limit, mean_limit)
    over = table[table["difference"].abs().to_numpy() > limit]
    if not len(over):
        return
    pairs = zip(over["attribute"].astype(str), over["value"].astype(str), strict=True)
    names = sorted({f"{attribute} = {value}" if value else attribute for attribute, value in pairs})
    remedy = (
        f"None of {MAX_PARTITIONS} random partitions is better. Give more entities a stage, leave out attributes with "
        "rare values, or raise entities.mean_limit and entities.share_limit"
        if shuffled
        else "Leave out the column trained_stage to draw a balanced partition, or change the partition"
    )
    raise InputError(
        f"The stages differ in {join_names(names, 6)}: {'; '.join(describe_largest_differences(table))}; limits "
        f"{mean_limit} and {share_limit}. A probe could read the attribute instead of the time. {remedy}; or set "
        "entities.force: true, which the report mentions."
    )
