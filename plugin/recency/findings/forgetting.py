"""Forgetting and recency: is an entity that looks recent also one whose answer is still known?

Within every trained stage, so that time itself explains nothing: the rank
correlation over entities between the recency score (out of fold, of the probe
of early against late) and the loss of the entity's answer. Then partialled for
the loss over the prompt itself: an alias that is remembered is read with less
surprise. The null shuffles scores within stages, the interval is a bootstrap
over entities within stages.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

import stratalens as sl
from stratalens.analyses.significance import interval
from stratalens.recency.findings.asking import BY, HALVES, Findings
from stratalens.recency.findings.headline import Row
from stratalens.recency.settings import StudySettings
from stratalens.store.atomic import write_text

if TYPE_CHECKING:
    import xarray as xr

Array = npt.NDArray[np.float64]
DRAWS = 1000


def within_ranks(values: Array, strata: npt.NDArray[np.int64]) -> Array:
    """Ranks inside each stratum, from -0.5 to 0.5, so that strata cannot differ.

    >>> within_ranks(np.array([3.0, 9.0, 1.0, 5.0]), np.array([0, 0, 1, 1])).tolist()
    [-0.25, 0.25, -0.25, 0.25]
    """
    out = np.zeros(len(values))
    for stratum in np.unique(strata):
        mine = strata == stratum
        out[mine] = (rankdata(values[mine]) - 0.5) / mine.sum() - 0.5
    return out


def partial_correlation(x: Array, y: Array, given: Array | None) -> float:
    """Correlation of two centred variables, of what is left of them where a third has explained what it can.

    >>> a = np.array([-1.0, 0.0, 1.0]); round(partial_correlation(a, -a, None), 6)
    -1.0
    """
    if given is not None:
        power = float(given @ given)
        if power > 0:
            x, y = x - given * float(x @ given) / power, y - given * float(y @ given) / power
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 1e-12 else float("nan")


def relate(
    score: Array, loss: Array, strata: npt.NDArray[np.int64], given: Array | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Rank correlation within strata, with interval, null and two-sided p.

    Args:
        score: [array-like, shape: (entities,)].
        loss: [array-like, shape: (entities,)].
        strata: [array-like, shape: (entities,)] int group inside which ranks are taken and labels are shuffled.
        given: what is partialled out, or None.
        seed: of resamples and permutations.
    """
    random = np.random.default_rng([6, seed])
    ranks = [within_ranks(values, strata) for values in (score, loss)]
    third = None if given is None else within_ranks(given, strata)
    value = partial_correlation(ranks[0], ranks[1], third)
    groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    null, draws = np.empty(DRAWS), np.empty(DRAWS)
    for number in range(DRAWS):
        shuffled = np.empty(len(score))
        for group in groups:
            shuffled[group] = ranks[0][random.permutation(group)]
        null[number] = partial_correlation(shuffled, ranks[1], third)
        rows = np.concatenate([random.choice(group, len(group)) for group in groups])
        taken = [within_ranks(values[rows], strata[rows]) for values in (score, loss)]
        again = None if given is None else within_ranks(given[rows], strata[rows])
        draws[number] = partial_correlation(taken[0], taken[1], again)
    low, high = interval(draws, np.array(value), bounds=(-1, 1))
    p = (1 + int((np.abs(null) >= abs(value) - 1e-9).sum())) / (1 + DRAWS)
    numbers = {"value": value, "low": float(low), "high": float(high), "null": float(null.mean()), "p": p}
    return {name: number if np.isfinite(number) else None for name, number in numbers.items()}


def add_forgetting(found: Findings, ds: xr.Dataset, settings: StudySettings, table: Path) -> None:
    """Rows and a sentence for the last stage, and a csv of every entity at every checkpoint.

    The csv has stage, entity_id, trained_stage, exposure, recency_score, answer_loss and prompt_loss (mean loss over
    the prompt), so that other questions about forgetting can be asked of it.
    """
    a = settings.analysis
    first = np.flatnonzero(ds.template.values == str(ds.template.values[0]))  # one row an entity
    here = ds.isel(layer=[-1], entity=first).sel(token=ds.token.values[:1])
    probes = sl.probe(
        here, target=HALVES, order=["early", "late"], C=a.C, folds=a.folds, seed=settings.seed, progress=False
    )
    frames = []
    for stage in ds.stage.values:
        at = here.sel(stage=stage).isel(token=0)
        frames.append(
            pd.DataFrame(
                {
                    "stage": str(stage),
                    "entity_id": at.entity_id.values.astype(str),
                    BY: at[BY].values.astype(str),
                    "exposure": at.exposure.values,
                    "recency_score": probes.score.sel(stage=stage).isel(layer=0, token=0, pair=0).values,
                    "answer_loss": at.answer_loss.values,
                    "prompt_loss": at.running_loss.values,
                }
            )
        )
    frame = pd.concat(frames, ignore_index=True)
    write_text(table, frame.to_csv(index=False))
    final = settings.stage_names[-1]
    last = frame[frame["stage"] == final]
    strata = pd.factorize(last[BY])[0].astype(np.int64)
    score, loss, prompt = (last[name].to_numpy(float) for name in ("recency_score", "answer_loss", "prompt_loss"))
    name = "rank correlation of recency score and answer loss within stages"
    rows: list[Row] = []
    for suffix, given in (("", None), (", prompt loss partialled out", prompt)):
        rows.append(
            {
                "name": name + suffix,
                "stage": final,
                "layer": here.layer.values[0].item(),
                "token": str(here.token.values[0]),
                **relate(score, loss, strata, given, seed=settings.seed),
                "n": len(last),
                "site": str(probes.attrs.get("site", "")),
            }
        )
    found.rows += rows
    if all(row["value"] is not None for row in rows):
        found.sentences.append(
            f"Forgetting: within stages, entities with a higher recency score have "
            f"{'a lower' if rows[0]['value'] < 0 else 'a higher'} answer loss, rank correlation {_said(rows[0])}; with "
            f"the loss over the prompt partialled out {_said(rows[1])}: {_verdict(rows)}."
        )


def _said(row: Row) -> str:
    return f"{row['value']:.2f} (95 % interval {row['low']:.2f} to {row['high']:.2f}, p = {row['p']:.3f})"


def _verdict(rows: list[Row]) -> str:
    if rows[0]["p"] >= 0.05:
        return "no relation is shown"
    return "a relation beyond that loss" if rows[1]["p"] < 0.05 else "nothing is shown beyond that loss"
