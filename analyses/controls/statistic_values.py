"""Statistics of the rows: variables of a Dataset, or computed from activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Data, Doubles, Floats, Mask
from stratalens.analyses.data.slabs import SiteData, Slab, read_float32
from stratalens.analyses.probes.slab import normalize_rows
from stratalens.analyses.sweep.cache import digest
from stratalens.store.errors import InputError, suggest
from stratalens.store.format.schema import AXES

# Statistics of the output that are used by default if the data has them (the loss and confidence of the paper).
OUTPUTS = ("loss", "entity_loss", "running_loss", "entropy", "max_logprob", "logsumexp")


def _moment(x: Doubles, power: int) -> Doubles:
    """Standardised central moment over the last axis; NaN for constant vectors."""
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((centred**power).mean(axis=-1) / spread**power, dtype=np.float64)


FORMULAS: dict[str, Callable[[Doubles], Doubles]] = {
    "l2": lambda x: np.sqrt((x**2).sum(axis=-1)),
    "l1": lambda x: np.abs(x).sum(axis=-1),
    "mean": lambda x: x.mean(axis=-1),
    "std": lambda x: x.std(axis=-1),
    "max": lambda x: x.max(axis=-1),
    "min": lambda x: x.min(axis=-1),
    "skewness": lambda x: _moment(x, 3),
    "kurtosis": lambda x: _moment(x, 4) - 3,
}


def default_names(ds: Data, site: str) -> list[str]:
    """Names of all statistics of the site, recorded or computable, and of those of the output that are recorded."""
    stored, has_site = _stored_names(ds, site)
    own = [f"{site}_{name}" for name in FORMULAS]
    outputs = [n for n in OUTPUTS if n in stored and isinstance(ds, xr.Dataset) and _is_usable(ds, n)]
    return [n for n in own if n in stored or has_site] + outputs


def _stored_names(ds: Data, site: str) -> tuple[set[str], bool]:
    """Variables with the dim `entity`, and whether the activations of the site are among them."""
    dataset = ds if isinstance(ds, xr.Dataset) else xr.Dataset()
    stored = {str(k) for k, v in dataset.data_vars.items() if "entity" in v.dims}
    return stored, isinstance(ds, xr.DataArray) or site in stored


class Statistics:
    """Statistics of the rows of `ds`, read slab by slab.

    Args:
        ds: Dataset with the statistics as variables, or a DataArray of activations.
        site: site of the statistics.
        wanted: names; None = all statistics of the site, and those of OUTPUTS that the data has. A name
            `<site>_<statistic>` that the data does not have is computed from the activations. A variable with
            further dims (percentile, head) gives one statistic for each of their labels, e.g. "z_l2[head=3]".

    Raises:
        InputError: an unknown name, or no statistic.
    """

    def __init__(self, ds: Data, site: str, wanted: Sequence[str] | None = None) -> None:
        if isinstance(wanted, str):
            wanted = [wanted]
        dataset = ds if isinstance(ds, xr.Dataset) else xr.Dataset()
        stored, has_site = _stored_names(ds, site)
        computable = [f"{site}_{name}" for name in FORMULAS] if has_site else []
        names = list(dict.fromkeys(default_names(ds, site) if wanted is None else wanted))
        if not names:
            raise InputError(f"the data has no statistics of {site!r}; name some with statistics=(...)")
        self.site = site
        self.wanted = names
        self.names: list[str] = []
        self.layered = False
        self.computed = False
        self._sources: list[xr.DataArray | str] = []  # a variable, or the name of a formula
        for name in names:
            if name in stored and name != site:
                self._add(name, dataset[name])
            elif name in computable:
                self._sources.append(name.removeprefix(f"{site}_"))
                self.names.append(name)
                self.layered = self.computed = True
            else:
                valid = sorted(stored - {site}) + [n for n in computable if n not in stored]
                raise InputError(f"no statistic {name!r} in the data: {suggest(str(name), valid)}")

    def _add(self, name: str, array: xr.DataArray) -> None:
        extra = [str(d) for d in array.dims if d not in AXES]
        if array.dtype.kind not in "fiu" or sum(array.sizes[d] for d in extra) > 256:
            raise InputError(f"{name!r} is no statistic: dims {array.dims}, dtype {array.dtype}")
        self.layered = self.layered or "layer" in array.dims
        for label in product(*(array[d].values.tolist() for d in extra)):
            selection = ", ".join(f"{d}={v}" for d, v in zip(extra, label, strict=True))
            self.names.append(f"{name}[{selection}]" if extra else name)
        missing = [d for d in AXES if d not in array.dims and d != "entity"]
        self._sources.append(array.expand_dims(missing).transpose(*AXES, *extra))

    def require_places(self, source: SiteData) -> None:
        """Refuse statistics with more stages, layers or tokens than the site.

        Raises:
            InputError: names the statistic and the dim.
        """
        for array in self._sources:
            if isinstance(array, str):
                continue
            for dim in ("stage", "layer", "token"):
                size, site_size = array.sizes[dim], source.array.sizes[dim]
                if size not in (1, site_size):
                    raise InputError(
                        f"{array.name!r} has {size} {dim}s and {self.site!r} has {site_size}; narrow the statistic to "
                        f"one of them: ds.assign({array.name}=ds[{str(array.name)!r}].isel({dim}=..., drop=True))"
                    )

    def identity(self) -> dict[str, list[str]]:
        """Names and sources of the statistics, for a cache to hash."""
        return {"statistics": self.names, "statistic_parts": [_identify(source) for source in self._sources]}

    def read(self, slab: Slab, normalize: bool) -> tuple[Floats, Doubles]:
        """Read the activations of a slab and its statistics, which are of the activations before normalisation.

        Args:
            slab: stage, layer and rows.
            normalize: divide activation vectors by their L2 norm.

        Returns:
            activations: float32 array of shape (rows, token, d).
            values: float64 array of shape (rows, token, statistic), see `values`.

        Raises:
            NonFiniteError: NaN or infinity among the activations.
        """
        activations = slab.values()
        slab.refuse_nonfinite(activations)
        values = self.values(slab, activations)
        return (normalize_rows(activations, slab.where) if normalize else activations), values

    def values(self, slab: Slab, activations: Floats | None = None) -> Doubles:
        """Compute or read the statistics of the rows of a slab.

        Args:
            slab: stage, layer and rows.
            activations: float32 array of shape (rows, token, d) of the slab, if they were read already.

        Returns:
            float64 array of shape (rows, token, statistic), NaN where a statistic is not defined.
        """
        if activations is None:
            activations = slab.values() if self.computed else np.empty(0)
        n, n_tokens = len(slab.rows), slab.shape[1]
        columns = []
        for source in self._sources:
            if isinstance(source, str):
                with np.errstate(invalid="ignore"):  # infinities, which `usable_statistics` refuses
                    columns.append(FORMULAS[source](activations.astype(np.float64))[..., None])
                continue
            i, j = (p if size > 1 else 0 for p, size in zip(slab.position, source.shape[:2], strict=True))
            stored = read_float32(source[i, j])[slab.rows].astype(np.float64)
            width = int(np.prod(source.shape[4:], dtype=np.int64))
            columns.append(np.broadcast_to(stored.reshape(*stored.shape[:2], -1), (n, n_tokens, width)))
        return np.concatenate(columns, axis=-1)


def _is_usable(ds: xr.Dataset, name: str) -> bool:
    """Return whether a statistic is a default: `entity_loss` is one only where every recorded row has it."""
    if name != "entity_loss":
        return True
    values = ds[name]
    missing = np.isnan(np.asarray(values.values, dtype=np.float64))
    recorded = ds.get(str(values.attrs.get("recorded", "recorded")))
    if recorded is not None and set(recorded.dims) <= set(values.dims):
        missing = missing & np.asarray(recorded.broadcast_like(values).transpose(*values.dims).values, dtype=bool)
    return not missing.any()


def _identify(source: xr.DataArray | str) -> str:
    if isinstance(source, str):
        return source
    if source.chunks is not None:
        return str(source.data.name)  # the name in dask hashes every operation since opening
    return digest(source.values)


def usable_statistics(values: Doubles, names: Sequence[str], where: str) -> Mask:
    """Find the statistics that are defined at one token.

    Args:
        values: float64 array of shape (rows, statistic).
        names: of the statistics.
        where: place, for the error message.

    Returns:
        bool array of shape (statistic,), False for those that are NaN or infinite in every row.

    Raises:
        InputError: a statistic is NaN or infinite in some rows and not in others.
    """
    bad = ~np.isfinite(values)
    partly = bad.any(axis=0) & ~bad.all(axis=0)
    if partly.any():
        counts = ", ".join(
            f"{names[i]} ({int(bad[:, i].sum())} of {len(values)})" for i in np.flatnonzero(partly).tolist()
        )
        raise InputError(
            f"{where}: not defined in some rows: {counts}. Choose other statistics=(...), narrow the tokens with "
            f".sel(token=...), or leave these rows out of the data"
        )
    return np.asarray(~bad.any(axis=0))
