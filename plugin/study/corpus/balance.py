"""Whether stages differ in anything but the time at which they are trained on.

A numeric attribute is compared by its standardised mean difference (difference
of means over the pooled standard deviation), a category by the difference of
its shares; always one stage against all others together. Conventions: Austin,
"Balance diagnostics for comparing the distribution of baseline covariates"
(2009). A partition by chance is drawn again until it is under the limits:
Morgan and Rubin, "Rerandomization to improve covariate balance" (2012).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from stratalens.store.errors import InputError

MAX_PARTITIONS = 1000


class Covariates:
    """Attributes of entities as numbers, ready to be compared between any stages.

    Args:
        attributes: values by name, each as long as there are entities; text in which all values are numbers
            is numeric, everything else a category.

    >>> people = Covariates({"born": ["1900", "1910", "1920", "1930"], "gender": ["f", "f", "m", "m"]})
    >>> table = people.compare(np.array([0, 1, 0, 1]), ["s1", "s2"])
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
            given = np.asarray(list(values), dtype=object)
            for value in sorted(set(values)):
                labels.append((name, value))
                columns.append((given == value).astype(float))
        self.labels = labels
        self.values = np.stack(columns, axis=1) if columns else np.zeros((0, 0))
        self.numeric = np.array([value is None for _, value in labels], dtype=bool)

    def differences(self, stage: npt.NDArray[np.int64], stages: int) -> npt.NDArray[np.float64]:
        """Differences of every stage against the others, shape (stages, values): standardised where numeric."""
        out = np.zeros((stages, len(self.labels)))
        for number in range(stages):
            mine, others = self.values[stage == number], self.values[stage != number]
            difference = _mean(mine) - _mean(others)
            spread = np.sqrt((_variance(mine) + _variance(others)) / 2)
            scale = np.where(self.numeric, np.where(spread > 0, spread, np.where(difference == 0, 1, 1e-300)), 1)
            out[number] = difference / scale
        return out

    def compare(self, stage: npt.NDArray[np.int64], names: Sequence[str]) -> pd.DataFrame:
        """One row for every stage and value: stage, attribute, value, measure, difference."""
        found = self.differences(stage, len(names))
        return pd.DataFrame(
            [
                {
                    "stage": name,
                    "attribute": attribute,
                    "value": "" if value is None else value,
                    "measure": "standardised mean difference" if value is None else "difference of shares",
                    "difference": found[number, column],
                }
                for number, name in enumerate(names)
                for column, (attribute, value) in enumerate(self.labels)
            ],
            columns=["stage", "attribute", "value", "measure", "difference"],
        )

    def within(self, stage: npt.NDArray[np.int64], stages: int, mean_limit: float, share_limit: float) -> bool:
        """Whether all differences are under the limits."""
        found = np.abs(self.differences(stage, stages))
        return bool((found <= np.where(self.numeric, mean_limit, share_limit)).all())


def _mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Mean over entities; 0 for none."""
    return values.mean(axis=0) if len(values) else np.zeros(values.shape[1])


def _variance(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Unbiased variance over entities; 0 for fewer than two."""
    return values.var(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def draw_balanced_partition(
    covariates: Covariates,
    first: npt.NDArray[np.int64],
    stages: int,
    random: np.random.Generator,
    mean_limit: float,
    share_limit: float,
) -> npt.NDArray[np.int64]:
    """The first random partition under the limits, of at most `MAX_PARTITIONS`; the very first one where none is.

    Args:
        covariates: what shall be alike.
        first: the partition to begin with, shape (entities,).
        stages: how many there are.
        random: source of the others.
        mean_limit: of standardised mean differences.
        share_limit: of differences of shares.
    """
    tried = first
    for _ in range(MAX_PARTITIONS):
        if covariates.within(tried, stages, mean_limit, share_limit):
            return tried
        tried = random.permutation(first)
    return first


def describe_largest_differences(table: pd.DataFrame) -> list[str]:
    """The largest difference of either measure, in words."""
    said = []
    for measure, rows in table.groupby("measure", sort=True):
        row = rows.iloc[int(rows["difference"].abs().to_numpy().argmax())]
        of = row["attribute"] if not row["value"] else f"{row['attribute']} = {row['value']}"
        said.append(f"largest {measure}: {abs(row['difference']):.2f} ({of}, {row['stage']} against the other stages)")
    return said


def check_balance(table: pd.DataFrame, mean_limit: float, share_limit: float, *, force: bool, shuffled: bool) -> None:
    """Refuse stages that differ.

    Args:
        table: of `Covariates.compare`.
        mean_limit: of standardised mean differences.
        share_limit: of differences of shares.
        force: accept anything.
        shuffled: whether the partition was drawn here, so that more entities or another seed may help.

    Raises:
        InputError: a difference above its limit; the worst are named.
    """
    if force or not len(table):
        return
    limit = np.where(table["measure"] == "difference of shares", share_limit, mean_limit)
    over = table[table["difference"].abs().to_numpy() > limit]
    if not len(over):
        return
    pairs = zip(over["attribute"].astype(str), over["value"].astype(str), strict=True)
    names = sorted({f"{attribute} = {value}" if value else attribute for attribute, value in pairs})
    mend = (
        f"None of {MAX_PARTITIONS} random partitions is better: give more entities a stage, leave out attributes with rare "
        "values, or raise entities.mean_limit and entities.share_limit"
        if shuffled
        else "Leave out the column trained_stage (a balanced partition is then drawn), or change the partition"
    )
    raise InputError(
        f"The stages differ in {', '.join(names[:6])}{' ...' if len(names) > 6 else ''}: {'; '.join(describe_largest_differences(table))}; "
        f"limits {mean_limit} and {share_limit}. A probe could then read the attribute instead of the time. {mend}; "
        "or set entities.force: true, which is said in the report."
    )
