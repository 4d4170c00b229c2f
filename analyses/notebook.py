"""`ds.strata` in a notebook: what an open store holds, or what a result was made from and between which values it lies.

Everything is escaped: names of stages, sites and labels are somebody's data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from stratalens.store.info import percent
from stratalens.store.notebook import binary, overview

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
        ("size", f"{binary(ds.nbytes)} as it is read"),
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
