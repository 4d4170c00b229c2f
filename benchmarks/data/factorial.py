"""Run the cells of the study's factorial on a tuning seed, and write their table.

The cells and the reading of their outcomes are in `docs/study-results/factorial`. A cell is an ordinary study in a
folder of its own, so an interrupted one resumes. Several processes can share the folder: each takes the next cell that
no other process works on.

    python -m benchmarks.data.factorial --out /tmp/factorial                 # all cells, in order
    python -m benchmarks.data.factorial --out /tmp/factorial --only blocks-12
    python -m benchmarks.data.factorial --out /tmp/factorial --table         # only the table of the finished cells
    python -m benchmarks.data.factorial --out /tmp/factorial --table --controls   # and what statistics leave in each

Not part of the suite: it trains for hours.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
import yaml

import stratalens as sl
from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings, validate_settings
from stratalens.plugin.study.findings.statistic_sets import describe_statistic_sets, measure_statistic_sets
from stratalens.plugin.study.recording.stores import STORE, with_order_of_run
from stratalens.plugin.study.run import run_study

CELLS = Path(__file__).parents[2] / "docs" / "study-results" / "factorial" / "factorial.yaml"
SMALLEST = 60  # entities a stage of the smallest cell
SIZES = (60, 75, 90, 120, 150, 180, 225, 300, 600)  # of the learning curve
SUBSETS = 10
PLACES = {"final norm": "ln_final", "last block": "resid_post"}
SHOWN = {
    "first v last accuracy after the final norm": "first v last, final norm",
    "first v last accuracy": "first v last, last block",
    "early v late accuracy after the final norm": "early v late, final norm",
    "rank correlation of held-out centroids without the ends of the axis after the final norm": "order, final norm",
}


def read_cells(file: Path = CELLS) -> dict[str, StudySettings]:
    """Read the settings of all cells: those of `base` with the changes of the cell."""
    text = yaml.safe_load(file.read_text(encoding="utf-8"))
    cells = {}
    for name, changes in text["cells"].items():
        values = {**text["base"], **changes}
        values["train"] = {**text["base"]["train"], **changes.get("train", {})}
        cells[name] = validate_settings(values, f"{file}: {name}")
    return cells


def learning_curve(ds: xr.Dataset, settings: StudySettings) -> list[dict[str, Any]]:
    """Accuracy of first against last with fewer entities a stage than the run has: place, entities, value, sd.

    Each value is a mean over random subsets of entities; the largest size is the run itself.
    """
    last = ds.sel(stage=[settings.stage_names[-1]], token=ds.token.values[:1]).isel(layer=[-1])
    groups = [np.flatnonzero(ds.trained_stage.values == name) for name in settings.end_stages]
    rows = []
    for place, site in PLACES.items():
        for size in sorted({*(n for n in SIZES if n < settings.entities_per_stage), settings.entities_per_stage}):
            random = np.random.default_rng([size, settings.seed])
            values = []
            for draw in range(SUBSETS if size < settings.entities_per_stage else 1):
                chosen = np.sort(np.concatenate([random.permutation(group)[:size] for group in groups]))
                probes = sl.probe(
                    last.isel(entity=chosen),
                    target="trained_stage",
                    pairs=[settings.end_stages],
                    order=list(settings.end_stages),
                    site=site,
                    C=settings.analysis.C,
                    folds=settings.analysis.folds,
                    seed=draw,
                    progress=False,
                )
                values.append(float(probes["accuracy_mean"].squeeze()))
            rows.append({"place": place, "entities": size, "value": np.mean(values), "sd": np.std(values)})
    return rows


def run_cell(name: str, settings: StudySettings, out: Path) -> None:
    """Run or resume one cell, and write its outcomes to `<out>/<name>.json`."""
    started = time.process_time(), time.time()
    outcome = run_study(settings, out / name)
    ds = sl.open_store(outcome.store)
    result = {
        "settings": settings.model_dump(mode="json"),
        "rows": json.loads(outcome.summary.read_text(encoding="utf-8")),
        "learning_curve": learning_curve(ds, settings),
        # of this process: a resumed cell does not count the time before
        "cpu_seconds": round(time.process_time() - started[0]),
        "seconds": round(time.time() - started[1]),
    }
    (out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def write_controls(name: str, settings: StudySettings, out: Path) -> None:
    """Write what each set of statistics leaves of the effect of a finished cell to `<out>/<name>-controls.csv`."""
    target = out / f"{name}-controls.csv"
    if target.is_file():
        return
    ds = with_order_of_run(sl.open_store(out / name / STORE), (UNTRAINED, *settings.stage_names))
    last = ds.sel(stage=[settings.stage_names[-1]], token=ds.token.values[:1]).isel(layer=[-1])
    table = measure_statistic_sets(last, settings)
    table.to_csv(target, index=False)
    print(f"{name}: {describe_statistic_sets(table, 'the recorded template')}")


def draw_learning_curves(out: Path) -> None:
    """Draw accuracy over the entities that the probe has, one line a cell and one panel a place."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    results = {name: out / f"{name}.json" for name in read_cells() if (out / f"{name}.json").is_file()}
    figure, axes = plt.subplots(1, len(PLACES), figsize=(9, 3.6), sharey=True, layout="constrained")
    for axis, place in zip(axes, PLACES, strict=True):
        for name, file in results.items():
            curve = [r for r in json.loads(file.read_text(encoding="utf-8"))["learning_curve"] if r["place"] == place]
            axis.plot([r["entities"] for r in curve], [r["value"] for r in curve], marker="o", markersize=3, label=name)
        axis.axhline(0.5, color="0.6", linewidth=0.8)
        axis.set(title=place, xscale="log", xlabel="entities of a stage that the probe has")
    axes[0].set_ylabel("first v last accuracy")
    axes[-1].legend(fontsize=7, frameon=False)
    figure.savefig(out / "learning-curves.png", dpi=110)


def make_table(out: Path) -> pd.DataFrame:
    """Make the table of the finished cells."""
    rows = []
    for name in read_cells():
        file = out / f"{name}.json"
        if not file.is_file():
            continue
        result = json.loads(file.read_text(encoding="utf-8"))
        settings = StudySettings.model_validate(result["settings"])
        train = settings.train
        exposures = round(settings.train_questions * train.epochs)
        row: dict[str, Any] = {
            "cell": name,
            "entities": settings.entities_per_stage,
            "exposures": exposures,
            "blocks": settings.layers or 30,
            "batch": train.batch_size,
            "rate": f"{train.learning_rate:g}",
            "units": round(settings.entities_per_stage * exposures * (settings.layers or 30) / 28800, 2),
        }
        by_name = {entry["name"]: entry for entry in result["rows"]}
        for key, title in SHOWN.items():
            entry = by_name[key]
            row[title] = f"{entry['value']:.2f} ({entry['low']:.2f} to {entry['high']:.2f})"
        for entry in result["learning_curve"]:
            if entry["entities"] == SMALLEST:
                row[f"{SMALLEST} entities, {entry['place']}"] = f"{entry['value']:.2f}"
        row["CPU minutes"] = round(result["cpu_seconds"] / 60)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Run the cells that no other process runs and that have no result yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=None, help="names of cells")
    parser.add_argument("--table", action="store_true", help="write the table of the finished cells and stop")
    parser.add_argument("--controls", action="store_true", help="what statistics leave of the effect of finished cells")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, settings in read_cells().items() if not args.table else ():
        if (args.only is not None and name not in args.only) or (args.out / f"{name}.json").is_file():
            continue
        with (args.out / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            print(f"{name}: process {os.getpid()}", flush=True)
            run_cell(name, settings, args.out)
    table = make_table(args.out)
    if args.controls:
        for name in table["cell"] if len(table) else ():
            write_controls(name, read_cells()[name], args.out)
    if len(table):
        draw_learning_curves(args.out)
        lines = ["| " + " | ".join(map(str, row)) + " |" for row in (table.columns, *table.itertuples(index=False))]
        lines.insert(1, "|" + "---|" * len(table.columns))
        (args.out / "factorial.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        table.to_csv(args.out / "factorial.csv", index=False)
        print("\n".join(lines))


if __name__ == "__main__":
    main()
