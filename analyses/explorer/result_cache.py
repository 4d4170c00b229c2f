"""Probes and projections of single places, asked on demand and kept; what the explorer's second part shows.

One task is one (stage, layer) at one token: small enough to be waited for, and kept
by the engine's cache beside the store, so that the next session does not fit it again.
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
from stratalens.analyses.explorer.data import Source, Where
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError

QUESTIONS = {"probes": "Can the groups be told apart? (probes)", "order": "Do the centroids lie in order? (projection)"}


PAIRS = {"ends": "first against last group", "all": "all pairs", "rest": "each group against the rest"}


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


Key = tuple[Hashable, Hashable]


@dataclass(frozen=True)
class Question:
    """What is asked, without the place: results of equal questions belong together."""

    kind: Literal["probes", "order"]
    site: str
    by: str
    token: Hashable
    method: str = "logistic"
    pairs: str = "ends"


class Answers:
    """Results by question and (stage, layer), shared by all pages of one server."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._kept: dict[Question, dict[Key, xr.Dataset]] = {}
        self._lock = threading.Lock()

    def keys(self, question: Question, where: Where, scope: str) -> list[Key]:
        """(stage, layer) of the scope that are not answered yet, the place itself first, then by distance."""
        stages = self.source.values(where.site, "stage") or [None]
        layers = self.source.values(where.site, "layer") or [None]
        if scope in ("here", "layers"):
            stages = [where.stage]
        if scope in ("here", "stages"):
            layers = [where.layer]
        every = [(s, layer) for s in stages for layer in layers]
        if scope not in SCOPES:
            raise InputError(f"unknown scope {scope!r}; valid: {', '.join(SCOPES)}")
        near = {key: (key[0] != where.stage, abs(_number(key[1]) - _number(where.layer))) for key in every}
        with self._lock:
            have = set(self._kept.get(question, {}))
        return sorted((k for k in every if k not in have), key=lambda k: near[k])

    def ask(self, question: Question, key: Key) -> xr.Dataset:
        """Answer one question at one stage and layer (from the engine's cache where it is there)."""
        ds = self._narrow(question, key)
        common: dict[str, Any] = {"site": question.site, "cache": None, "progress": False, "skip_missing": True}
        if question.kind == "order":
            return project(ds, by=question.by, permutations=PERMUTATIONS, bootstrap=PERMUTATIONS, **common)
        pairs: Any = question.pairs
        if pairs == "ends":
            names = groups(ds, question.by).names
            pairs = [(names[0], names[-1])]
        result = probe(ds, target=question.by, pairs=pairs, method=question.method, **common)
        return result.drop_vars([n for n in ("coef", "intercept") if n in result])

    def keep(self, question: Question, key: Key, result: xr.Dataset) -> None:
        """Remember a result."""
        with self._lock:
            self._kept.setdefault(question, {})[key] = result

    def at(self, question: Question, stage: Hashable, layer: Hashable) -> xr.Dataset | None:
        """The result of one place, with dims of size one; None where it is not known."""
        with self._lock:
            return self._kept.get(question, {}).get((stage, layer))

    def along_layers(self, question: Question, stage: Hashable) -> xr.Dataset | None:
        """Results of all layers that are known at one stage, side by side."""
        with self._lock:
            found = {k: v for k, v in self._kept.get(question, {}).items() if k[0] == stage}
        return _joined([found[k] for k in sorted(found, key=lambda k: _number(k[1]))], "layer")

    def over_everything(self, question: Question, name: str) -> xr.DataArray | None:
        """One number of every place that is known, over (stage, layer); NaN where it is not known yet."""
        with self._lock:
            found = dict(self._kept.get(question, {}))
        if not found or any(k[1] is None or k[0] is None for k in found):
            return None
        site = self.source.ds[question.site]
        stages, layers = self.source.values(question.site, "stage"), self.source.values(question.site, "layer")
        table = np.full((len(stages), len(layers)), np.nan)
        for (stage, layer), result in found.items():
            table[stages.index(stage), layers.index(layer)] = float(result[name].mean())
        coords = {"stage": np.array(stages, dtype=object), "layer": layers, "token": question.token}
        orders = dict(zip(site["stage"].values.tolist(), site["stage_order"].values.tolist(), strict=True))
        return xr.DataArray(table, dims=("stage", "layer"), coords=coords, attrs={"site": question.site}).assign_coords(
            stage_order=("stage", [orders[s] for s in stages])
        )

    def _narrow(self, question: Question, key: Key) -> xr.Dataset:
        """The store at one stage, layer and token: a lazy selection, so that the engine's cache knows it."""
        site = self.source.ds[question.site]
        index: dict[str, list[int]] = {}
        for dim, value in zip(("stage", "layer", "token"), (*key, question.token), strict=True):
            if dim in site.dims:
                index[dim] = [site[dim].values.tolist().index(value)]
        flag = site.attrs.get("recorded", "recorded")
        names = [question.site, *(n for n in (flag, "exposure") if n in self.source.ds)]
        return self.source.ds[names].isel(index)


def _joined(parts: list[xr.Dataset], dim: str) -> xr.Dataset | None:
    if not parts:
        return None
    if len(parts) == 1 or dim not in parts[0].dims:
        return parts[0]
    return xr.concat(parts, dim=dim, data_vars="minimal", coords="minimal", compat="override", join="override")


def _number(layer: Hashable) -> float:
    return float(layer) if isinstance(layer, int) else 0.0
