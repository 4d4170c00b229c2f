"""`ds.strata`: the analyses as methods of a Dataset or DataArray, and its HTML.

All text in the HTML is escaped, because names of stages, sites and labels come from user data.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from stratalens.store.display import human_bytes, overview
from stratalens.store.errors import InputError
from stratalens.store.reading.json_text import as_mapping
from stratalens.store.reading.open import open_store
from stratalens.store.state.info import percent

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Strata", "open_store"]  # opening a store through here registers the accessor


class Strata:
    """Analyses of this object, e.g. ``ds.strata.centroids(by="trained_stage")``.

    Arguments and results are those of the functions of the same name.

    Example:
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
        """Project centroids into the plane of training order; see `stratalens.project`."""
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
        """Score groups along probes of other groups; see `stratalens.generalise`."""
        from stratalens.analyses.probes.generalise import generalise

        return generalise(self._data, *args, **kwargs)

    def directions(self, *args: Any, **kwargs: Any) -> Any:
        """Make named unit vectors of a result; see `stratalens.directions`."""
        from stratalens.analyses.directions.direction_set import directions

        return directions(self._data, *args, **kwargs)

    def shuffled_probes(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes of shuffled labels; see `stratalens.shuffled_probes`."""
        from stratalens.analyses.probes.shuffled_probes import shuffled_probes

        return shuffled_probes(self._data, *args, **kwargs)

    def sparse_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes of the k best features; see `stratalens.sparse_probe`."""
        from stratalens.analyses.probes.sparse_probe import sparse_probe

        return sparse_probe(self._data, *args, **kwargs)

    def statistics_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes on norms, losses or confidence; see `stratalens.statistics_probe`."""
        from stratalens.analyses.controls.statistics_probe import statistics_probe

        return statistics_probe(self._data, *args, **kwargs)

    def matched_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes on rows whose statistics are matched; see `stratalens.matched_probe`."""
        from stratalens.analyses.controls.matched_probe import matched_probe

        return matched_probe(self._data, *args, **kwargs)

    def weighted_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes on classes weighted to equal statistics; see `stratalens.weighted_probe`."""
        from stratalens.analyses.controls.weighted_probe import weighted_probe

        return weighted_probe(self._data, *args, **kwargs)

    def conditional_test(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Test probes against labels drawn given the statistics; see `stratalens.conditional_test`."""
        from stratalens.analyses.controls.conditional_test import conditional_test

        return conditional_test(self._data, *args, **kwargs)

    def residual_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit probes with statistics regressed out; see `stratalens.residual_probe`."""
        from stratalens.analyses.controls.residual_probe import residual_probe

        return residual_probe(self._data, *args, **kwargs)

    def baseline_probe(self, *args: Any, **kwargs: Any) -> xr.Dataset:
        """Fit a probe that should be at chance; see `stratalens.baseline_probe`."""
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
        from stratalens.analyses.stats.permutation import fdr

        return fdr(self._data, *args, **kwargs)

    def best(self, n: int = 5) -> pd.DataFrame:
        """List the best places of this result, with the p of the maximum over all places.

        The columns are stage, layer, token, pair, measure, estimate, low, high, null, p and p_max. The attribute
        `note` of the table says how many permutations a claim needs, if there are too few.

        Example:
            >>> import numpy as np
            >>> x = np.random.default_rng(0).normal(size=(40, 2, 4)); x[20:, 1] += 2
            >>> data = xr.DataArray(x, dims=("entity", "token", "d_model"),
            ...     coords={"colour": ("entity", np.repeat(["red", "blue"], 20).astype(object))})
            >>> probes = data.strata.probe("colour", permutations=19, progress=False)
            >>> probes.strata.best(1)[["token", "pair", "p_max"]].values.tolist()
            [[1, 'red v blue', 0.05]]
        """
        from stratalens.analyses.stats.best_places import best_places

        return best_places(self._data, n)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ds.strata has no {name!r}; it has {', '.join(dir(self))}")

    def __dir__(self) -> list[str]:
        return sorted(name for name in vars(Strata) if not name.startswith("_"))

    def __repr__(self) -> str:
        name = getattr(self._data, "name", None)
        sizes = ", ".join(f"{dim} {size}" for dim, size in self._data.sizes.items())
        return f"<stratalens analyses of {name or type(self._data).__name__} ({sizes}): {', '.join(dir(self))}>"

    def _repr_html_(self) -> str:
        return data_html(self._data)


xr.register_dataset_accessor("strata")(Strata)
xr.register_dataarray_accessor("strata")(Strata)


MAX_VALUES = 4_000_000  # size of the largest variable whose range is computed


def data_html(data: xr.Dataset | xr.DataArray) -> str:
    """Return HTML of an open store or of a result."""
    if isinstance(data, xr.Dataset) and "stratalens_format" in data.attrs:
        return _store(data)
    if isinstance(data, xr.DataArray):
        attrs = data.attrs
        return _result(data.to_dataset(name="value" if data.name is None else str(data.name)), attrs)
    return _result(data, data.attrs)


def _dims(data: xr.Dataset) -> str:
    return ", ".join(f"{dim} {size:,}" for dim, size in data.sizes.items())


def _store(ds: xr.Dataset) -> str:
    sites = [str(name) for name, variable in ds.data_vars.items() if variable.attrs.get("kind") == "site"]
    path = ds.attrs.get("path", "")
    rows: list[tuple[str, object]] = [
        ("dims", _dims(ds)),
        ("size", f"{human_bytes(ds.nbytes)} in memory"),
        *(
            (f"site {n}", f"{ds[n].attrs.get('stored_dtype', ds[n].dtype)}, {ds[n].attrs.get('hook', '')}")
            for n in sites
        ),
        ("labels", ", ".join(str(n) for n, c in ds.coords.items() if c.dims == ("entity",) and n != "entity")),
        ("other variables", ", ".join(str(n) for n in ds.data_vars if n not in sites)),
    ]
    stages = [str(s) for s in np.atleast_1d(ds["stage"].values)] if "stage" in ds.coords else []
    grid = {stage: [_recorded_share(ds, site, i) for site in sites] for i, stage in enumerate(stages)}
    details = {
        "Provenance (must match)": sorted(_mapping(ds, "provenance")),
        "Recorded with": sorted(_mapping(ds, "recorded_with")),
    }
    paths = [path] if isinstance(path, str) else path
    title = f"store {', '.join(_relative_path(p) for p in paths)}"
    return overview(title, rows, ([f"{site} recorded" for site in sites], grid), details)


def _relative_path(path: str) -> str:
    """Shorten a path inside the working folder, so that the outputs of a notebook are the same on every machine."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).parent.is_relative_to(here) else path


def _recorded_share(ds: xr.Dataset, site: str, stage: int) -> str:
    flag = ds[site].attrs.get("recorded", "recorded")
    if flag not in ds:
        return "unknown"
    recorded = ds[flag].isel(stage=stage) if "stage" in ds[flag].dims else ds[flag]
    return percent(float(np.mean(recorded.values)))


def _mapping(ds: xr.Dataset, name: str) -> list[tuple[str, Any]]:
    value = ds.attrs.get(name, {})
    return list(as_mapping(value).items()) or ([(name, value)] if value else [])


def _result(data: xr.Dataset, attrs: dict[Any, Any]) -> str:
    site = f" of {attrs['site']}" if attrs.get("site") else ""
    variables = {
        str(name): [", ".join(map(str, v.dims)) or "one value", *_range(v)] for name, v in data.data_vars.items()
    }
    origin = [(str(k), v) for k, v in {**data.attrs, **attrs}.items() if k != "stratalens_key"]
    columns = ["dims", "smallest", "largest", "missing"]
    rows: list[tuple[str, object]] = [*_best_place(data.assign_attrs(attrs)), ("dims", _dims(data))]
    return overview(f"result{site}", rows, (columns, variables), {"Computed from": origin})


def _best_place(result: xr.Dataset) -> list[tuple[str, object]]:
    """Return the best place of a result of probes or of `project` as one line; empty for other results."""
    from stratalens.analyses.stats.best_places import best_places

    if any(variable.chunks is not None for variable in result.data_vars.values()):
        return []  # a look at a lazy result computes nothing
    try:
        table = best_places(result, 1)
    except InputError:
        return []
    if not len(table):
        return []
    best = table.iloc[0]
    place = [f"{dim} {best[dim]}" for dim in ("stage", "layer", "token", "pair") if best[dim] is not None]
    text = f"{', '.join(place) or 'the only place'}: {best['measure']} {best['estimate']:.2f}"
    if np.isfinite(best["low"]) and np.isfinite(best["high"]):
        text += f" [{best['low']:.2f}, {best['high']:.2f}]"
    text += f", null {best['null']:.2f}" if np.isfinite(best["null"]) else ""
    text += f", p of the maximum over all places {best['p_max']:.2g}" if np.isfinite(best["p_max"]) else ""
    return [("best place (the largest of all, so it is too high)", text)]


def _range(array: xr.DataArray) -> list[str]:
    if array.dtype.kind not in "fiub" or array.size > MAX_VALUES or array.chunks is not None:
        return ["", "", ""]
    values = np.asarray(array.values, dtype=float)
    finite = values[np.isfinite(values)]
    ends = [f"{finite.min():.4g}", f"{finite.max():.4g}"] if finite.size else ["", ""]
    return [*ends, f"{1 - finite.size / values.size:.0%}" if values.size else ""]
