"""Draw the figure of the README from the pairs of the `cpu` run: python docs/readme_figure.py [TARGET.png].

Left, the probe of the first against the last stage at every layer, before training and after the last stage. Right,
the probes of all pairs of stages at the deepest layer after the last stage. All numbers come from
study-results/cpu-seed-2/pairs.csv, which the study wrote.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

HERE = Path(__file__).parent
PAIRS = HERE / "study-results" / "cpu-seed-2" / "pairs.csv"
TARGET = HERE / "study-results" / "cpu-seed-2" / "accuracy.png"
INK, GREY, ORANGE, PURPLE = "#222222", "#767676", "#b35806", "#542788"
CHANCE = 0.5
STAGES = ("untrained", "s6")


def draw_layers(axes: Any, pairs: pd.DataFrame) -> None:
    """Draw the accuracy of the first against the last stage by layer, with 95 % intervals."""
    ends = pairs[(pairs.pair_first == "s1") & (pairs.pair_second == "s6")]
    words = (("before training", GREY, 0.455, "o"), ("after training on all six", PURPLE, 0.712, "s"))
    for stage, (label, color, height, marker) in zip(STAGES, words, strict=True):
        line = ends[ends.stage == stage]
        axes.fill_between(line.layer, line.low, line.high, color=color, alpha=0.18, linewidth=0)
        axes.plot(line.layer, line.accuracy, color=color, marker=marker, markersize=4.5, linewidth=2)
        axes.text(8.5, height, label, color=color, ha="right", weight="bold")
    axes.axhline(CHANCE, color=INK, linewidth=1, linestyle=(0, (3, 3)))
    axes.text(-0.3, CHANCE - 0.005, "chance", color=INK, va="top", fontsize=8.5)
    axes.set(xlabel="layer", ylim=(0.43, 0.8), xticks=range(0, 12), xlim=(-0.5, 11.5))
    axes.set_title("Data set 1 or 6? Probe accuracy by layer", loc="left", fontsize=10.5)
    axes.set_ylabel("accuracy on unseen names")
    axes.spines[["top", "right"]].set_visible(False)


def draw_pairs(axes: Any, pairs: pd.DataFrame) -> None:
    """Draw the accuracy of every pair of stages at the deepest layer, on a scale around chance."""
    last = pairs[(pairs.stage == STAGES[1]) & (pairs.layer == pairs.layer.max())]
    grid = last.pivot_table(index="pair_first", columns="pair_second", values="accuracy")
    reach = float(np.nanmax(np.abs(grid.to_numpy() - CHANCE)))
    palette = LinearSegmentedColormap.from_list("around_chance", [ORANGE, "#f7f7f7", PURPLE])
    axes.imshow(grid, cmap=palette, vmin=CHANCE - reach, vmax=CHANCE + reach, aspect="auto")
    for (i, j), value in np.ndenumerate(grid.to_numpy()):
        if np.isfinite(value):
            strong = abs(value - CHANCE) > 0.6 * reach
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", color="white" if strong else INK)
    axes.set_xticks(range(grid.shape[1]), [name[1:] for name in grid.columns])
    axes.set_yticks(range(grid.shape[0]), [name[1:] for name in grid.index])
    axes.set(xlabel="later data set", ylabel="earlier data set")
    axes.set_title("Every pair of data sets, layer 11", loc="left", fontsize=10.5)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def main(target: str | Path = TARGET) -> None:
    """Draw the figure and print its path."""
    pairs = pd.read_csv(PAIRS)
    with mpl.rc_context({"font.size": 9.5, "text.color": INK, "axes.labelcolor": INK}):
        figure = Figure(figsize=(9.6, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        draw_layers(left, pairs)
        draw_pairs(right, pairs)
        figure.suptitle(
            "SmolLM2 learned names from six data sets, one after another. Which one does a name come from?",
            x=0.005,
            ha="left",
            fontsize=11,
            weight="bold",
        )
        figure.savefig(target, dpi=110)
    sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
