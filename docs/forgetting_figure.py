"""Draw the forgetting of each group from a run folder: python docs/forgetting_figure.py RUN TARGET.png.

The figure shows the share of correct answers for every stage's entities, from the run's forgetting.csv, over the
number of stages since their training.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

import stratalens as sl

LAST = "s6"  # later stages train on several groups again


def main(run: Path, target: Path) -> None:
    """Draw the figure."""
    answers = pd.read_csv(run / "forgetting.csv", keep_default_na=False, na_values=[""])
    known = answers.pivot(index="stage", columns="entity_id", values="answer_accuracy")
    ds = sl.open_store(run / "run.zarr")
    stages = list(map(str, ds["stage"].values))
    ds = ds[["recorded", "exposure"]].isel(stage=slice(0, stages.index(LAST) + 1))
    values = known.loc[ds["stage"].values.astype(str), ds["entity_id"].values.astype(str)].to_numpy()
    ds["answer_accuracy"] = ds["exposure"].copy(data=values).assign_attrs(units="share")
    sl.plots.save(sl.plots.forgetting(ds, statistic="answer_accuracy"), target, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
