"""Probes and projections of single slabs, computed on demand and shared by all pages of a server.

One step is one stage and layer at one token, which takes little time. The cache of the sweeps, next to the store,
keeps each result for the next session.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.centroids import project
from stratalens.analyses.data.groups import groups
from stratalens.analyses.explorer.data import ExplorerData, ViewState
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError

ANALYSES = {"probes": "separability (probes)", "order": "order (projection)"}

PAIR_CHOICES = {
    "ends": "first against last group",
    "multiclass": "all groups at once",
    "all": "all pairs",
    "rest": "each group against the rest",
}

METHODS = {
    "logistic": "logistic regression",
    "ridge": "ridge",
    "lda": "linear discriminant (LDA)",
    "diffmeans": "difference of means",
}

SCOPES = {
    "layers": "all layers, at this stage",
    "here": "this layer, at this stage",
    "stages": "all stages, at this layer",
    "everything": "all layers and all stages",
}

PERMUTATIONS = 200

StageLayer = tuple[Hashable, Hashable]


@dataclass(frozen=True)
class AnalysisRequest:
    """An analysis with its options, without stage and layer."""

    kind: Literal["probes", "order"]
    site: str
    by: str
    token: Hashable
    method: str = "logistic"
    pairs: str = "ends"


class ResultCache:
    """Results by request and (stage, layer).

    Args:
        data: the store.
    """

    def __init__(self, data: ExplorerData) -> None:
        self.data = data
        self._results: dict[AnalysisRequest, dict[StageLayer, xr.Dataset]] = {}
        self._lock = threading.Lock()

    def missing_keys(self, request: AnalysisRequest, view: ViewState, scope: str) -> list[StageLayer]:
        """Return the (stage, layer) without a result, nearest to the view first.

        Raises:
            InputError: the scope is unknown.
        """
        if scope not in SCOPES:
            raise InputError(f"unknown scope {scope!r}. Valid: {', '.join(SCOPES)}.")
        stages = self.data.values(view.site, "stage") or [None]
        layers = self.data.values(view.site, "layer") or [None]
        if scope in ("here", "layers"):
            stages = [view.stage]
        if scope in ("here", "stages"):
            layers = [view.layer]
        known = self._results_of(request)
        missing = [(stage, layer) for stage in stages for layer in layers if (stage, layer) not in known]
        return sorted(missing, key=lambda k: (k[0] != view.stage, abs(_number(k[1]) - _number(view.layer))))

    def compute(self, request: AnalysisRequest, key: StageLayer) -> xr.Dataset:
        """Run an analysis at one stage and layer, or read it from the cache of the sweeps."""
        ds = self._select(request, key)
        options: dict[str, Any] = {"site": request.site, "cache": None, "progress": False, "skip_missing": True}
        if request.kind == "order":
            return project(ds, by=request.by, permutations=PERMUTATIONS, bootstrap=PERMUTATIONS, **options)
        pairs: Any = request.pairs
        if pairs == "ends":
            names = groups(ds, request.by).names
            pairs = [(names[0], names[-1])]
        result = probe(ds, target=request.by, pairs=pairs, method=request.method, **options)
        return result.drop_vars(["coef", "intercept"], errors="ignore")

    def add(self, request: AnalysisRequest, key: StageLayer, result: xr.Dataset) -> None:
        """Add a result."""
        with self._lock:
            self._results.setdefault(request, {})[key] = result

    def get(self, request: AnalysisRequest, stage: Hashable, layer: Hashable) -> xr.Dataset | None:
        """Return the result at one stage and layer, with dims of size one.

        The result is None if there is none yet.
        """
        return self._results_of(request).get((stage, layer))

    def across_layers(self, request: AnalysisRequest, stage: Hashable) -> xr.Dataset | None:
        """Concatenate the results of all layers at one stage; None if there is none yet."""
        by_key = {k: v for k, v in self._results_of(request).items() if k[0] == stage}
        results = [by_key[k] for k in sorted(by_key, key=lambda k: _number(k[1]))]
        if not results:
            return None
        if len(results) == 1 or "layer" not in results[0].dims:
            return results[0]
        return xr.concat(
            results, dim="layer", data_vars="minimal", coords="minimal", compat="override", join="override"
        )

    def stage_layer_grid(self, request: AnalysisRequest, name: str) -> xr.DataArray | None:
        """Return one number of every result over (stage, layer).

        Values are NaN where there is no result yet.
        """
        results = self._results_of(request)
        if not results or any(stage is None or layer is None for stage, layer in results):
            return None
        site = self.data.ds[request.site]
        stages, layers = self.data.values(request.site, "stage"), self.data.values(request.site, "layer")
        grid = np.full((len(stages), len(layers)), np.nan)
        for (stage, layer), result in results.items():
            grid[stages.index(stage), layers.index(layer)] = float(result[name].mean())
        orders = dict(zip(site["stage"].values.tolist(), site["stage_order"].values.tolist(), strict=True))
        coords = {
            "stage": np.array(stages, dtype=object),
            "stage_order": ("stage", [orders[s] for s in stages]),
            "layer": layers,
            "token": request.token,
        }
        return xr.DataArray(grid, dims=("stage", "layer"), coords=coords, attrs={"site": request.site})

    def _results_of(self, request: AnalysisRequest) -> dict[StageLayer, xr.Dataset]:
        with self._lock:
            return dict(self._results.get(request, {}))

    def _select(self, request: AnalysisRequest, key: StageLayer) -> xr.Dataset:
        """Select one stage, layer and token.

        The selection is lazy, so that the cache of the sweeps recognises it.
        """
        site = self.data.ds[request.site]
        index: dict[str, list[int]] = {}
        for dim, value in zip(("stage", "layer", "token"), (*key, request.token), strict=True):
            if dim in site.dims:
                index[dim] = [site[dim].values.tolist().index(value)]
        flag = site.attrs.get("recorded", "recorded")
        names = [request.site, *(n for n in (flag, "exposure") if n in self.data.ds)]
        return self.data.ds[names].isel(index)


def _number(layer: Hashable) -> float:
    return float(layer) if isinstance(layer, int) else 0.0
