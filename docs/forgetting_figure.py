"""How much of each group is still known, from a run folder: python docs/forgetting_figure.py RUN TARGET.png.

The share of right answers of every stage's entities (the run's forgetting.csv) against the stages since they were
trained on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

import stratalens as sl

LAST = "s6"  # what comes after it trains on several groups again


def main(run: Path, target: Path) -> None:
    """Draw it."""
    told = pd.read_csv(run / "forgetting.csv", keep_default_na=False, na_values=[""])
    known = told.pivot(index="stage", columns="entity_id", values="answer_accuracy")
    ds = sl.open_store(run / "run.zarr")
    stages = list(map(str, ds["stage"].values))
    ds = ds[["recorded", "exposure"]].isel(stage=slice(0, stages.index(LAST) + 1))
    values = known.loc[ds["stage"].values.astype(str), ds["entity_id"].values.astype(str)].to_numpy()
    ds["answer_accuracy"] = ds["exposure"].copy(data=values).assign_attrs(units="share")
    sl.plots.save(sl.plots.forgetting(ds, statistic="answer_accuracy"), target, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
