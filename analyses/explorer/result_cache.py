"""Probes and projections of single slabs, computed on demand and shared by all pages of a server.

One step is one stage, layer and token, which takes little time. The cache of the sweeps, next to the store,
keeps each result for the next session.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.centroids import project
from stratalens.analyses.data.groups import groups
from stratalens.analyses.explorer.data import ExplorerData, ViewState
from stratalens.analyses.probes.probe import probe
from stratalens.analyses.stats.estimates import pair_mean
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
    "tokens": "all layers and tokens, at this stage",
    "stages": "all stages, at this layer",
    "everything": "all layers and all stages",
}

PERMUTATIONS = 200

Position = tuple[Hashable, Hashable, Hashable]  # stage, layer, token


@dataclass(frozen=True)
class AnalysisRequest:
    """An analysis with its options, without stage, layer and token."""

    kind: Literal["probes", "order"]
    site: str
    by: str
    method: str = "logistic"
    pairs: str = "ends"


class ResultCache:
    """Results by request and (stage, layer, token).

    Args:
        data: the store.
        C: inverse strength of the penalty of logistic probes.
        folds: number of folds over entities.
    """

    def __init__(self, data: ExplorerData, C: float = 0.1, folds: int = 5) -> None:
        self.data, self.C, self.folds = data, C, folds
        self._results: dict[AnalysisRequest, dict[Position, xr.Dataset]] = {}
        self._numbers: dict[AnalysisRequest, dict[Position, tuple[float, float]]] = {}
        self._lock = threading.Lock()

    def missing_keys(self, request: AnalysisRequest, view: ViewState, scope: str) -> list[Position]:
        """Return the (stage, layer, token) without a result, nearest to the view first.

        Raises:
            InputError: the scope is unknown.
        """
        if scope not in SCOPES:
            raise InputError(f"unknown scope {scope!r}. Valid: {', '.join(SCOPES)}.")
        stages = self.data.values(view.site, "stage") or [None]
        layers = self.data.values(view.site, "layer") or [None]
        tokens = (self.data.values(view.site, "token") if scope == "tokens" else []) or [view.token]
        if scope in ("here", "layers", "tokens"):
            stages = [view.stage]
        if scope in ("here", "stages"):
            layers = [view.layer]
        known = self._results_of(request)
        missing = [k for k in product(stages, layers, tokens) if k not in known]

        def distance(key: Position) -> tuple[bool, bool, float]:
            return key[0] != view.stage, key[2] != view.token, abs(_number(key[1]) - _number(view.layer))

        return sorted(missing, key=distance)

    def compute(self, request: AnalysisRequest, key: Position) -> xr.Dataset:
        """Run an analysis at one stage, layer and token, or read it from the cache of the sweeps."""
        ds = self._select(request, key)
        options: dict[str, Any] = {"site": request.site, "cache": None, "progress": False, "skip_missing": True}
        options["seed"] = self.data.seed
        if request.kind == "order":
            return project(ds, by=request.by, permutations=PERMUTATIONS, bootstrap=PERMUTATIONS, **options)
        pairs: Any = request.pairs
        if pairs == "ends":
            names = groups(ds, request.by).names
            pairs = [(names[0], names[-1])]
        options |= {"C": self.C, "folds": self.folds}
        result = probe(ds, target=request.by, pairs=pairs, method=request.method, **options)
        return result.drop_vars(["coef", "intercept"], errors="ignore")

    def add(self, request: AnalysisRequest, key: Position, result: xr.Dataset) -> None:
        """Add a result."""
        number = main_number(request.kind, result)
        with self._lock:
            self._results.setdefault(request, {})[key] = result
            self._numbers.setdefault(request, {})[key] = number

    def get(self, request: AnalysisRequest, key: Position) -> xr.Dataset | None:
        """Return the result at one stage, layer and token, with dims of size one.

        The result is None if there is none yet.
        """
        return self._results_of(request).get(key)

    def across_layers(self, request: AnalysisRequest, stage: Hashable, token: Hashable) -> xr.Dataset | None:
        """Concatenate the results of all layers at one stage and token; None if there is none yet."""
        by_key = {k: v for k, v in self._results_of(request).items() if (k[0], k[2]) == (stage, token)}
        results = [by_key[k] for k in sorted(by_key, key=lambda k: _number(k[1]))]
        if not results:
            return None
        if len(results) == 1 or "layer" not in results[0].dims:
            return results[0]
        return xr.concat(
            results, dim="layer", data_vars="minimal", coords="minimal", compat="override", join="override"
        )

    def layer_token_values(self, request: AnalysisRequest, stage: Hashable) -> dict[Position, tuple[float, float]]:
        """Return the main number of every result at a stage with its null, by stage, layer and token."""
        with self._lock:
            numbers = dict(self._numbers.get(request, {}))
        return {key: number for key, number in numbers.items() if key[0] == stage}

    def stage_layer_grid(self, request: AnalysisRequest, name: str, token: Hashable) -> xr.DataArray | None:
        """Return one number of every result at a token over (stage, layer).

        Values are NaN where there is no result yet.
        """
        results = {k[:2]: v for k, v in self._results_of(request).items() if k[2] == token}
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
            "token": token,
        }
        return xr.DataArray(grid, dims=("stage", "layer"), coords=coords, attrs={"site": request.site})

    def _results_of(self, request: AnalysisRequest) -> dict[Position, xr.Dataset]:
        with self._lock:
            return dict(self._results.get(request, {}))

    def _select(self, request: AnalysisRequest, key: Position) -> xr.Dataset:
        """Select one stage, layer and token.

        The selection is lazy, so that the cache of the sweeps recognises it.
        """
        site = self.data.ds[request.site]
        index: dict[str, list[int]] = {}
        for dim, value in zip(("stage", "layer", "token"), key, strict=True):
            if dim in site.dims:
                index[dim] = [site[dim].values.tolist().index(value)]
        flag = site.attrs.get("recorded", "recorded")
        names = [request.site, *(n for n in (flag, "exposure") if n in self.data.ds)]
        return self.data.ds[names].isel(index)


def main_number(kind: str, result: xr.Dataset) -> tuple[float, float]:
    """Return (value, null): the mean over the pairs of probes, or the rank correlation of the inner groups."""
    if kind == "order":
        return float(result["inner_rank_correlation"].mean()), 0.0
    mean = pair_mean(result)
    return float(mean["value"].mean()), float(mean["null"].mean())


def _number(layer: Hashable) -> float:
    return float(layer) if isinstance(layer, int) else 0.0
