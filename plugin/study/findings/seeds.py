"""Several seeds: every headline number over them, with its mean and spread.

A seed draws entities, partition and order of training anew, so the spread says
what a number owes to them; the interval of one seed says what it owes to its
own entities. The base model is the same in all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from stratalens.plugin.study.findings.headline import Row

ROW_KEY = ("name", "stage", "layer", "token", "site")


MAIN_NUMBERS = (
    "early v late accuracy",
    "first v last accuracy",
    "first v last accuracy after the final norm",
    "rank correlation of held-out centroids",
    "first v last accuracy matched on norms, losses and confidence: matched",
    "first v last accuracy with norms, losses and confidence regressed out",
    "self-report accuracy",
    "rank correlation of recency score and answer accuracy within stages",
)


def summarize_seeds(runs: Mapping[int, Sequence[Row]]) -> list[Row]:
    """One row for every headline number of any seed.

    Args:
        runs: rows of summary.json by seed.

    Returns:
        Rows as those of one seed: `value` is the mean over seeds, `low` and `high` its 95 % interval by Student's t
        (None below two seeds), `null` the mean of the nulls, `p` the largest, `n` the entities of one seed. And:
        `seeds`, `values` (one for each of them), `sd` (over seeds), `min`, `max`.

    >>> row = {"name": "a", "stage": "s6", "layer": 5, "token": "last", "site": "resid_post", "null": 0.5, "p": 0.01}
    >>> made = summarize_seeds({0: [{**row, "value": 0.6, "n": 9}], 1: [{**row, "value": 0.8, "n": 9}]})
    >>> made[0]["value"], round(made[0]["sd"], 3), made[0]["seeds"]
    (0.7, 0.141, [0, 1])
    """
    found: dict[tuple[object, ...], dict[int, Row]] = {}
    for seed, rows in runs.items():
        for row in rows:
            found.setdefault(tuple(row[key] for key in ROW_KEY), {})[seed] = row
    return [_summarize_row(held) for held in found.values()]


def _summarize_row(held: Mapping[int, Row]) -> Row:
    row = next(iter(held.values()))
    known = {seed: one for seed, one in held.items() if one["value"] is not None}
    values = np.array([one["value"] for one in known.values()], dtype=float)
    low = high = sd = None
    if len(values) > 1:
        sd = float(values.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / np.sqrt(len(values))
        low, high = float(values.mean() - half), float(values.mean() + half)
    nulls = [one["null"] for one in known.values() if one["null"] is not None]
    chances = [one["p"] for one in known.values() if one["p"] is not None]
    return {
        **{key: row[key] for key in ROW_KEY},
        "value": float(values.mean()) if len(values) else None,
        "low": low,
        "high": high,
        "null": float(np.mean(nulls)) if nulls else None,
        "p": max(chances) if chances else None,
        "n": row["n"],
        "seeds": list(known),
        "values": values.tolist(),
        "sd": sd,
        "min": float(values.min()) if len(values) else None,
        "max": float(values.max()) if len(values) else None,
    }


def make_seed_table(rows: Sequence[Row]) -> pd.DataFrame:
    """The rows as a table, with one column for the value of every seed."""
    wide = [
        {key: value for key, value in row.items() if key not in ("values", "seeds")}
        | {f"seed {seed}": value for seed, value in zip(row["seeds"], row["values"], strict=True)}
        for row in rows
    ]
    return pd.DataFrame(wide)


def describe_seeds(rows: Sequence[Row]) -> list[str]:
    """The main numbers over seeds, in sentences."""
    by_name = {str(row["name"]): row for row in reversed(rows)}  # the first of a name stays
    said = []
    for name in MAIN_NUMBERS:
        row = by_name.get(name)
        if row is None or row["value"] is None:
            continue
        where = f"stage {row['stage']}" + ("" if row["layer"] is None else f", layer {row['layer']}")
        text = f"{name[0].upper()}{name[1:]} ({where}): mean {row['value']:z.2f} over {len(row['seeds'])} seeds"
        if row["sd"] is not None:
            text += f", standard deviation {row['sd']:z.2f}, from {row['min']:z.2f} to {row['max']:z.2f}"
        if row["null"] is not None:
            text += f"; by chance {row['null']:z.2f}"
        untrained = by_name.get(f"{name}, untrained")
        if untrained is not None and untrained["value"] is not None:
            text += f"; untrained {untrained['value']:z.2f}"
        said.append(text + ".")
    return said
