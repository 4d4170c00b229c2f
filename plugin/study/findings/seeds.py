"""Headline numbers over several seeds, with mean and spread.

A seed draws new entities, a new partition and a new order of training, so the
spread over seeds includes all three. The interval of one seed includes its
entities only. All seeds start from the same base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from stratalens.plugin.study.findings.headline import INNER_ORDER, ORDER, Row, capitalize

ROW_KEY = ("name", "stage", "layer", "token", "site")
MAIN_NUMBERS = (
    "early v late accuracy",
    "first v last accuracy",
    "first v last accuracy after the final norm",
    INNER_ORDER,
    ORDER,
    "first v last accuracy matched on norms, losses and confidence: matched",
    "first v last accuracy with norms, losses and confidence regressed out",
    "self-report accuracy",
    "rank correlation of recency score and answer accuracy within stages",
)


def summarize_seeds(runs: Mapping[int, Sequence[Row]]) -> list[Row]:
    """Summarise every headline number over seeds.

    Args:
        runs: rows of summary.json by seed.

    Returns:
        Rows as those of one seed: `value` is the mean over seeds, `low` and `high` its 95 % interval by Student's t
        (None below two seeds), `null` the mean of the nulls, `p` the largest p, `n` the entities of one seed. Further
        keys: `seeds`, `values` (one for each seed), `sd` (over seeds), `min`, `max`.

    Example:
        >>> row = {"name": "a", "stage": "s6", "layer": 5, "token": "last", "site": "resid_post"}
        >>> row |= {"null": 0.5, "p": 0.01}
        >>> summary = summarize_seeds({0: [{**row, "value": 0.6, "n": 9}], 1: [{**row, "value": 0.8, "n": 9}]})
        >>> summary[0]["value"], round(summary[0]["sd"], 3), summary[0]["seeds"]
        (0.7, 0.141, [0, 1])
    """
    by_key: dict[tuple[object, ...], dict[int, Row]] = {}
    for seed, rows in runs.items():
        for row in rows:
            by_key.setdefault(tuple(row[key] for key in ROW_KEY), {})[seed] = row
    return [_summarize_row(rows) for rows in by_key.values()]


def _summarize_row(rows: Mapping[int, Row]) -> Row:
    """Summarise the rows of one number, by seed; rows without a value do not count."""
    first = next(iter(rows.values()))
    known = {seed: row for seed, row in rows.items() if row["value"] is not None}
    values = np.array([row["value"] for row in known.values()], dtype=float)
    low = high = sd = None
    if len(values) > 1:
        sd = float(values.std(ddof=1))
        half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / np.sqrt(len(values))
        low, high = float(values.mean() - half), float(values.mean() + half)
    nulls = [row["null"] for row in known.values() if row["null"] is not None]
    ps = [row["p"] for row in known.values() if row["p"] is not None]
    return {
        **{key: first[key] for key in ROW_KEY},
        "value": float(values.mean()) if len(values) else None,
        "low": low,
        "high": high,
        "null": float(np.mean(nulls)) if nulls else None,
        "p": max(ps) if ps else None,
        "n": first["n"],
        "seeds": list(known),
        "values": values.tolist(),
        "sd": sd,
        "min": float(values.min()) if len(values) else None,
        "max": float(values.max()) if len(values) else None,
    }


def make_seed_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Make a table of the rows, with one column for the value of every seed."""
    wide = [
        {key: value for key, value in row.items() if key not in ("values", "seeds")}
        | {f"seed {seed}": value for seed, value in zip(row["seeds"], row["values"], strict=True)}
        for row in rows
    ]
    return pd.DataFrame(wide)


def describe_seeds(rows: Sequence[Row]) -> list[str]:
    """Describe the main numbers over seeds, one sentence each."""
    by_name = {str(row["name"]): row for row in reversed(rows)}  # the first row of a name wins
    sentences = []
    for name in MAIN_NUMBERS:
        row = by_name.get(name)
        if row is None or row["value"] is None:
            continue
        where = f"stage {row['stage']}" + ("" if row["layer"] is None else f", layer {row['layer']}")
        text = f"{capitalize(name)} ({where}): mean {row['value']:z.2f} over {len(row['seeds'])} seeds"
        if row["sd"] is not None:
            text += f", standard deviation {row['sd']:z.2f}, range {row['min']:z.2f} to {row['max']:z.2f}"
        if row["null"] is not None:
            text += f"; by chance {row['null']:z.2f}"
        untrained = by_name.get(f"{name}, untrained")
        if untrained is not None and untrained["value"] is not None:
            text += f"; untrained {untrained['value']:z.2f}"
        sentences.append(text + ".")
    return sentences
