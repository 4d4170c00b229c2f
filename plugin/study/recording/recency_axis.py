"""The recency axis at one place of a checkpoint, and the same from shuffled stage labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import stratalens as sl
from stratalens.analyses.stats.permutation import permuted_labels
from stratalens.plugin.study.config.settings import StudySettings

AXIS, PROBE, ANSWER = "recency axis", "recency probe", "answer direction"
SITE = "resid_post"
_BY = "trained_stage"


@dataclass(frozen=True, eq=False)
class RecencyAxis:
    """Directions at one place.

    Attributes:
        vectors: dims (layer, direction, d_model); the recency axis first, then the probe.
        shuffled: the same dims, centroid differences of shuffled labels.
        unit: distance between the two centroids, the unit of doses.
        entities: the entities whose activations made the vectors.
        stage: the checkpoint.
        fingerprint: of its weights.
    """

    vectors: xr.DataArray
    shuffled: xr.DataArray
    unit: float
    entities: tuple[str, ...]
    stage: str
    fingerprint: str

    def of_checkpoint(self, vectors: xr.DataArray) -> xr.DataArray:
        """Label vectors with the checkpoint, so that a model with other weights is refused."""
        labelled = vectors.expand_dims(stage=[self.stage])
        return labelled.assign_coords(weights_fingerprint=("stage", [self.fingerprint]))


def make_recency_axis(
    ds: xr.Dataset,
    pair: tuple[str, str],
    stage: str,
    layer: int,
    token: str,
    entities: Sequence[str],
    settings: StudySettings,
    draws: int,
) -> RecencyAxis:
    """Make the axis from the earlier to the later group of a pair, at one place.

    Args:
        ds: the store of all stages.
        pair: the earlier and the later training stage.
        stage: the checkpoint.
        layer: block of the activations.
        token: position of the activations.
        entities: entities that make the axis; others of the pair are left out.
        settings: regularisation, folds and seed.
        draws: number of directions from shuffled labels. A draw shuffles in the same way at every place.
    """
    own = np.isin(ds["entity_id"].values.astype(str), list(entities)) & np.isin(ds[_BY].values.astype(str), pair)
    part = ds.isel(entity=np.flatnonzero(own)).sel(stage=[stage], layer=[layer], token=[token])
    groups = sl.centroids(part, by=_BY, site=SITE, progress=False)["centroid"].isel(token=0, drop=True)
    axis = groups.sel(group=pair[1], drop=True) - groups.sel(group=pair[0], drop=True)
    fit: dict[str, Any] = {"C": settings.analysis.C, "folds": settings.analysis.folds, "seed": settings.seed}
    probe = sl.probe(part, target=_BY, pairs=[pair], site=SITE, progress=False, **fit)["coef"]
    probe = probe.isel(token=0, pair=0).reset_coords(drop=True)
    values = np.asarray(part[SITE].isel(stage=0, layer=0, token=0).values, dtype=np.float64)
    shuffled = _shuffled_differences(values, part, pair, draws, settings.seed)
    return RecencyAxis(
        label_vectors([axis.values, probe.values], [AXIS, PROBE], layer),
        label_vectors(shuffled, [f"shuffled labels {number}" for number in range(draws)], layer),
        float(np.linalg.norm(axis.values)),
        tuple(sorted(set(part["entity_id"].values.astype(str)))),
        stage,
        str(part["weights_fingerprint"].values[0]),
    )


def label_vectors(vectors: Sequence[NDArray[Any]] | NDArray[Any], names: Sequence[str], layer: int) -> xr.DataArray:
    """Label vectors of one layer, dims (layer, direction, d_model)."""
    stacked = np.stack([np.asarray(vector, dtype=np.float64).reshape(-1) for vector in vectors])
    return xr.DataArray(
        stacked[None], dims=("layer", "direction", "d_model"), coords={"layer": [layer], "direction": list(names)}
    )


def _shuffled_differences(
    values: NDArray[np.float64], part: xr.Dataset, pair: tuple[str, str], draws: int, seed: int
) -> NDArray[np.float64]:
    """Compute centroid differences after shuffling the stage over entities, array of shape (draws, features)."""
    _, first, unit = np.unique(part["entity_id"].values.astype(str), return_index=True, return_inverse=True)
    later = (part[_BY].values.astype(str) == pair[1]).astype(int)[first]
    labels = permuted_labels(later, draws, np.random.default_rng([9, seed]))[:, unit]
    return np.stack([values[row == 1].mean(axis=0) - values[row == 0].mean(axis=0) for row in labels])
