"""The per-row statistics that controls are made of: found in a Dataset, or computed from the activations.

Which statistics there are, and their values for the rows and tokens of one slab. What is done with them is in
statistics_alone.py, matching.py and residual.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.data.array_types import Data
from stratalens.analyses.data.slabs import SiteData, Slab, read_float32
from stratalens.analyses.sweep.cache import digest
from stratalens.store.errors import InputError, suggest
from stratalens.store.format.schema import AXES

Doubles = npt.NDArray[np.float64]


# Statistics of the output that are controls by default where the data has them (the paper's loss and confidence).
OUTPUTS = ("loss", "running_loss", "entropy", "max_logprob", "logsumexp")


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


class Statistics:
    """Statistics of the rows of `ds`, read slab by slab.

    Args:
        ds: Dataset with the statistics as variables, or a bare DataArray of activations.
        site: the site whose activations are controlled for.
        wanted: names; None = all of the site's statistics and those of OUTPUTS that the data has. A name
            `<site>_<statistic>` that the data does not have is computed from the activations. A variable with
            dims of its own (percentile, head) gives one statistic for each of their labels, e.g. "z_l2[head=3]".

    Raises:
        InputError: an unknown name; or there is none at all.
    """

    def __init__(self, ds: Data, site: str, wanted: Sequence[str] | None = None) -> None:
        if isinstance(wanted, str):
            wanted = [wanted]
        own = [f"{site}_{name}" for name in FORMULAS]
        have = {str(k) for k, v in ds.data_vars.items() if "entity" in v.dims} if isinstance(ds, xr.Dataset) else set()
        has_site = isinstance(ds, xr.DataArray) or site in have
        if wanted is None:
            wanted = [n for n in own if n in have or has_site] + [n for n in OUTPUTS if n in have]
        names = list(dict.fromkeys(wanted))
        if not names:
            raise InputError(f"there are no statistics of {site!r} here; name some with statistics=(...)")
        self.site = site
        self.names: list[str] = []
        self.layered = False
        self.computed = False
        self._parts: list[xr.DataArray | str] = []
        for name in names:
            if name in have and name != site and isinstance(ds, xr.Dataset):
                self._add(name, ds[name])
            elif name in own and has_site:
                self._parts.append(name.removeprefix(f"{site}_"))
                self.names.append(name)
                self.layered = self.computed = True
            else:
                valid = sorted(n for n in have if n != site) + [n for n in own if has_site and n not in have]
                raise InputError(f"no statistic {name!r} in the data: {suggest(str(name), valid)}")

    def _add(self, name: str, array: xr.DataArray) -> None:
        extra = [str(d) for d in array.dims if d not in AXES]
        if array.dtype.kind not in "fiu" or sum(array.sizes[d] for d in extra) > 256:
            raise InputError(f"{name!r} is no statistic: dims {array.dims}, dtype {array.dtype}")
        self.layered = self.layered or "layer" in array.dims
        labels = product(*(array[d].values.tolist() for d in extra))
        for label in labels:
            told = ", ".join(f"{d}={v}" for d, v in zip(extra, label, strict=True))
            self.names.append(f"{name}[{told}]" if extra else name)
        missing = [d for d in AXES if d not in array.dims and d != "entity"]
        self._parts.append(array.expand_dims(missing).transpose(*AXES, *extra))

    def require_places(self, source: SiteData) -> None:
        """Refuse statistics of places that the site does not have, as they have no single value there.

        Raises:
            InputError: a statistic has more stages, layers or tokens than the site.
        """
        for part in (part for part in self._parts if not isinstance(part, str)):
            for dim in ("stage", "layer", "token"):
                own, theirs = part.sizes[dim], source.array.sizes[dim]
                if own not in (1, theirs):
                    raise InputError(
                        f"{part.name!r} has {own} {dim}s and {self.site!r} has {theirs}; narrow the statistic to the "
                        f"one that is meant: ds.assign({part.name}=ds[{str(part.name)!r}].isel({dim}=..., drop=True))"
                    )

    def identity(self) -> dict[str, list[str]]:
        """What the values depend on besides the activations, for a cache to know them by."""
        parts = [
            part
            if isinstance(part, str)
            else str(part.data.name)  # dask's name: a hash of every operation since opening
            if part.chunks is not None
            else digest(part.values)
            for part in self._parts
        ]
        return {"statistics": self.names, "statistic_parts": parts}

    def values(self, slab: Slab, activations: npt.NDArray[np.floating] | None = None) -> Doubles:
        """Of the slab's rows, float64 (rows, token, statistic); NaN where a statistic is not defined.

        Args:
            slab: whose stage, layer and rows are meant.
            activations: [array-like, shape: (rows, token, d)] of the slab, where they were read already.
        """
        if self.computed and activations is None:
            activations = slab.values()
        n, n_tokens = len(slab.rows), slab.shape[1]
        columns = []
        for part in self._parts:
            if isinstance(part, str):
                assert activations is not None
                with np.errstate(invalid="ignore"):  # of infinities, which `usable` refuses
                    columns.append(FORMULAS[part](activations.astype(np.float64))[..., None])
                continue
            i, j = (p if size > 1 else 0 for p, size in zip(slab.position, part.shape[:2], strict=True))
            found = read_float32(part[i, j])[slab.rows].astype(np.float64)
            columns.append(np.broadcast_to(found.reshape(*found.shape[:2], -1), (n, n_tokens, _width(part))))
        return np.concatenate(columns, axis=-1)


def usable(values: Doubles, names: Sequence[str], where: str) -> npt.NDArray[np.bool_]:
    """Statistics that are defined, for one token: those that are NaN in every row are left out.

    (The loss of the first token has no value, for instance.) Undefined in some rows only is refused.

    Args:
        values: [array-like, shape: (rows, statistic)].
        names: of the statistics.
        where: for the message.

    Raises:
        InputError: a statistic is NaN or infinite in some rows and not in others.
    """
    bad = ~np.isfinite(values)
    some = bad.any(axis=0) & ~bad.all(axis=0)
    if some.any():
        told = ", ".join(f"{names[i]} ({int(bad[:, i].sum())} of {len(values)})" for i in np.flatnonzero(some).tolist())
        raise InputError(
            f"{where}: not defined in some rows: {told}. Choose other statistics=(...), narrow the tokens with "
            f".sel(token=...), or leave these rows out of the data"
        )
    return np.asarray(~bad.any(axis=0))


def _width(part: xr.DataArray) -> int:
    return int(np.prod(part.shape[4:], dtype=np.int64))
