"""Draw the README's figure from the store of `make demo`: python docs/figure.py demo/run.zarr [TARGET.png].

The figure shows held-out centroids of the six groups after the last stage, at the deepest layer and the last token.
"""

from __future__ import annotations

import sys
from pathlib import Path

import stratalens as sl

TARGET = Path(__file__).parent / "study-results" / "demo-seed-1" / "centroids.png"


def main(store: str, target: str | Path = TARGET) -> None:
    """Draw the figure and print its alternative text."""
    ds = sl.open_store(store)
    last = ds[["resid_post", "recorded", "exposure"]].isel(stage=[-1], layer=[-1]).sel(token=["last"])
    plane = sl.project(last, by="trained_stage", repeats=100, progress=False, cache=False)
    figure = sl.plots.centroid_path(plane)
    sl.plots.save(figure, target, dpi=110)
    spec = figure.stratalens_spec
    value, low, high = (plane[f"rank_correlation{part}"].item() for part in ("", "_low", "_high"))
    null = plane["rank_correlation_null"].item()
    sys.stdout.write(
        f"{spec.heading({})}: rank correlation with training order {value:.2f} ({low:.2f} to {high:.2f}), "
        f"{null:.2f} with permuted labels\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
