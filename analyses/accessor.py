"""`ds.strata`: the analysis functions as methods of a Dataset or DataArray, and their HTML in a notebook.

Arguments and results are those of the functions of the same name. The HTML shows what
a store holds, or what a result was computed from. All of it is escaped, because names
of stages, sites and labels come from a user's files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from stratalens.store.display import human_bytes, overview
from stratalens.store.reading.open import open_store
from stratalens.store.state.info import percent

__all__ = ["Strata", "open_store"]  # opening a store through here registers the accessor


class Strata:
    """The verbs of stratalens, applied to this object: ``ds.strata.centroids(by="trained_stage")``.

    >>> import numpy as np
    >>> x = xr.DataArray(np.eye(4)[:, None], dims=("entity", "token", "d_model"),
    ...     coords={"colour": ("entity", np.array(["red", "red", "blue", "blue"], object))})
    >>> x.strata.centroids(by="colour", progress=False).centroid.values[0].tolist()
    [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """

    def __init__(self, data: xr.Dataset | xr.DataArray) -> None:
        self._data: Any = data

    def sweep(self, *args: Any, **kwargs: Any) -> Any:
        """Apply a function to every stage and layer; see `stratalens.sweep`."""
        from stratalens.analyses.sweep.run import sweep

        return sweep(self._data, *args, **kwargs)

    def centroids(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Average the rows of each group; see `stratalens.centroids`."""
        from stratalens.analyses.centroids.centroids import centroids

        return centroids(self._data, *args, **kwargs)

    def project(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Place the centroids of held-out rows in the plane of training order; see `stratalens.project`."""
        from stratalens.analyses.centroids.centroids import project

        return project(self._data, *args, **kwargs)

    def pca(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Find principal components; see `stratalens.pca`."""
        from stratalens.analyses.centroids.pca import pca

        return pca(self._data, *args, **kwargs)

    def probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit linear probes between groups; see `stratalens.probe`."""
        from stratalens.analyses.probes.probe import probe

        return probe(self._data, *args, **kwargs)

    def generalise(self, *args: Any, **kwargs: Any) -> xr.DataArray:
        """Score every group along each probe, on entities that no probe saw; see `stratalens.generalise`."""
        from stratalens.analyses.probes.generalise import generalise

        return generalise(self._data, *args, **kwargs)

    def statistics_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes on norms, losses or confidence alone; see `stratalens.statistics_probe`."""
        from stratalens.analyses.controls.statistics_probe import statistics_probe

        return statistics_probe(self._data, *args, **kwargs)

    def matched_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes on rows whose statistics are matched; see `stratalens.matched_probe`."""
        from stratalens.analyses.controls.matched_probe import matched_probe

        return matched_probe(self._data, *args, **kwargs)

    def residual_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes after the statistics are regressed out; see `stratalens.residual_probe`."""
        from stratalens.analyses.controls.residual_probe import residual_probe

        return residual_probe(self._data, *args, **kwargs)

    def baseline_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit a baseline: random directions or shuffled labels; see `stratalens.baseline_probe`."""
        from stratalens.analyses.controls.controls import baseline_probe

        return baseline_probe(self._data, *args, **kwargs)

    def controls(self, *args: Any, **kwargs: Any) -> dict[str, xr.Dataset]:
        """Run a probe with its controls; see `stratalens.controls`."""
        from stratalens.analyses.controls.controls import controls

        return controls(self._data, *args, **kwargs)

    def cosines(self, *args: Any, **kwargs: Any) -> xr.DataArray:
        """Compare directions by their cosines; see `stratalens.cosines`."""
        from stratalens.analyses.directions.directions import cosines

        return cosines(self._data, *args, **kwargs)

    def agreement(self, *args: Any, **kwargs: Any) -> xr.DataArray:
        """Compare directions by the scores that they give; see `stratalens.agreement`."""
        from stratalens.analyses.directions.directions import agreement

        return agreement(self._data, *args, **kwargs)

    def drift(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Compare directions with those of other stages; see `stratalens.drift`."""
        from stratalens.analyses.directions.directions import drift

        return drift(self._data, *args, **kwargs)

    def steps(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Measure how far centroids move from stage to stage; see `stratalens.steps`."""
        from stratalens.analyses.directions.directions import steps

        return steps(self._data, *args, **kwargs)

    def principal_angles(self, *args: Any, **kwargs: Any) -> xr.DataArray:
        """Compare subspaces by their principal angles; see `stratalens.principal_angles`."""
        from stratalens.analyses.directions.alignment import principal_angles

        return principal_angles(self._data, *args, **kwargs)

    def procrustes(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Align two sets of centroids by a rotation; see `stratalens.procrustes`."""
        from stratalens.analyses.directions.alignment import procrustes

        return procrustes(self._data, *args, **kwargs)

    def fdr(self, *args: Any, **kwargs: Any) -> Any:
        """Adjust p-values for the false discovery rate; see `stratalens.fdr`."""
        from stratalens.analyses.stats.bootstrap import fdr

        return fdr(self._data, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ds.strata has no {name!r}; it has {', '.join(dir(self))}")

    def __dir__(self) -> list[str]:
        return sorted(name for name in vars(Strata) if not name.startswith("_"))

    def __repr__(self) -> str:
        name = getattr(self._data, "name", None)
        sizes = ", ".join(f"{dim} {size}" for dim, size in self._data.sizes.items())
        return f"<stratalens verbs on {name or type(self._data).__name__} ({sizes}): {', '.join(dir(self))}>"

    def _repr_html_(self) -> str:

        return data_html(self._data)


_xarray: Any = xr  # the registers have no types


_xarray.register_dataset_accessor("strata")(Strata)


_xarray.register_dataarray_accessor("strata")(Strata)


LARGEST = 4_000_000  # values of a result that are looked through for its range


def data_html(data: xr.Dataset | xr.DataArray) -> str:
    """HTML of an open store or of a result."""
    if isinstance(data, xr.Dataset) and "stratalens_format" in data.attrs:
        return _store(data)
    return _result(
        data
        if isinstance(data, xr.Dataset)
        else data.to_dataset(name="value" if data.name is None else str(data.name)),
        data.attrs,
    )


def _dims(data: xr.Dataset) -> str:
    return ", ".join(f"{dim} {size:,}" for dim, size in data.sizes.items())


def _store(ds: xr.Dataset) -> str:
    sites = [str(name) for name, variable in ds.data_vars.items() if variable.attrs.get("kind") == "site"]
    path = ds.attrs.get("path", "")
    rows: list[tuple[str, object]] = [
        ("dims", _dims(ds)),
        ("size", f"{human_bytes(ds.nbytes)} as it is read"),
        *(
            (f"site {n}", f"{ds[n].attrs.get('stored_dtype', ds[n].dtype)}, {ds[n].attrs.get('hook', '')}")
            for n in sites
        ),
        ("labels", ", ".join(str(n) for n, c in ds.coords.items() if c.dims == ("entity",) and n != "entity")),
        ("other variables", ", ".join(str(n) for n in ds.data_vars if n not in sites)),
    ]
    stages = [str(s) for s in np.atleast_1d(ds["stage"].values)] if "stage" in ds.coords else []
    grid = {stage: [_share(ds, site, i) for site in sites] for i, stage in enumerate(stages)}
    folded = {"Provenance (must match)": sorted(_mapping(ds, "provenance")), "Recorded with": sorted(
        _mapping(ds, "recorded_with"))}  # fmt: skip
    title = f"store {', '.join(map(_from_here, [path] if isinstance(path, str) else path))}"
    return overview(title, rows, ([f"{site} recorded" for site in sites], grid), folded)


def _from_here(path: str) -> str:
    """A path in the working folder without it: short, and the same wherever a notebook with its outputs was made."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).parent.is_relative_to(here) else path


def _share(ds: xr.Dataset, site: str, stage: int) -> str:
    flag = ds[site].attrs.get("recorded", "recorded")
    if flag not in ds:
        return "not known"
    known = ds[flag].isel(stage=stage) if "stage" in ds[flag].dims else ds[flag]
    return percent(float(np.mean(known.values)))


def _mapping(ds: xr.Dataset, name: str) -> list[tuple[str, Any]]:
    found = ds.attrs.get(name, {})
    return [(str(k), v) for k, v in found.items()] if isinstance(found, dict) else [(name, found)]


def _result(data: xr.Dataset, attrs: dict[Any, Any]) -> str:
    site = f" of {attrs['site']}" if attrs.get("site") else ""
    variables = {
        str(name): [", ".join(map(str, v.dims)) or "one value", *_range(v)] for name, v in data.data_vars.items()
    }
    made: list[tuple[str, object]] = [(str(k), v) for k, v in {**data.attrs, **attrs}.items() if k != "stratalens_key"]
    return overview(
        f"result{site}", [("dims", _dims(data))], (["dims", "smallest", "largest", "not known"], variables),
        {"Made from": made},
    )  # fmt: skip


def _range(array: xr.DataArray) -> list[str]:
    if array.dtype.kind not in "fiub" or array.size > LARGEST or array.chunks is not None:
        return ["", "", ""]
    values = np.asarray(array.values, dtype=float)
    known = values[np.isfinite(values)]
    ends = [f"{known.min():.4g}", f"{known.max():.4g}"] if known.size else ["", ""]
    return [*ends, f"{1 - known.size / values.size:.0%}" if values.size else ""]
