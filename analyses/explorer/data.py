"""What the explorer asks of a store: places, columns, one plane at a time, details of single rows. No drawing.

Opening reads metadata only. A plane reads one slab (one stage, layer, token), block by
block; details of rows read the statistics of these rows. Planes are kept (a few
numbers a row), slabs are not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.entities import RowPlane
from stratalens.analyses.data.groups import Groups, label_columns
from stratalens.analyses.data.training_order import result_order
from stratalens.analyses.plots.centroids import place_plane
from stratalens.analyses.plots.spec import plain, values_of
from stratalens.store.errors import InputError

KEPT_ROWS = 4_000_000  # rows of planes that are kept, 24 bytes each


MOST_GROUPS = 60


PER_ROW = ("l2", "mean", "std", "kurtosis")


OUTPUTS = ("loss", "running_loss", "answer_loss", "entropy", "max_logprob")


DIMS = ("stage", "layer", "token")


@dataclass(frozen=True)
class Where:
    """A place of the store and what groups its rows: everything that a plane depends on."""

    site: str
    by: str
    stage: Hashable = None
    layer: Hashable = None
    token: Hashable = None
    seed: int = 0

    def place(self) -> dict[str, Hashable]:
        """stage, layer and token, as far as the site has them."""
        return {d: v for d, v in zip(DIMS, (self.stage, self.layer, self.token), strict=True) if v is not None}

    def words(self) -> str:
        """The place for a sentence: "resid_post at stage s6, layer 7, token last"."""
        at = ", ".join(f"{dim} {plain(value)}" for dim, value in self.place().items())
        return plain(self.site) + (f" at {at}" if at else "")


@dataclass(frozen=True)
class Plane:
    """Rows in the plane, with the names of their groups.

    Attributes:
        where: what it was made from.
        groups: names of the groups, in order.
        rows: the numbers, see `RowPlane`.
        total: rows of the store.
    """

    where: Where
    groups: tuple[str, ...]
    rows: RowPlane
    total: int


class Source:
    """An open store as the explorer sees it."""

    def __init__(self, ds: xr.Dataset) -> None:
        self.ds = ds
        self.sites = [str(k) for k, v in ds.data_vars.items() if v.attrs.get("kind") == "site"]
        if not self.sites:
            raise InputError("there is no recorded site in this Dataset; open a store with stratalens.open_store")
        columns = label_columns(ds)
        if not columns:
            raise InputError("this store has no label column: its prompt table has nothing to group rows by")
        first = [c for c in ("trained_stage",) if c in columns]
        last = [c for c in ("entity_id", "entity", "prompt", "answer") if c in columns]
        self.columns = [*first, *(c for c in columns if c not in (*first, *last)), *last]
        self._kept: OrderedDict[Where, Plane] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def path(self) -> str:
        """Where the store is."""
        return str(self.ds.attrs.get("path", "a dataset in memory"))

    def values(self, site: str, dim: str) -> list[Hashable]:
        """Values along stage (in training order), layer or token; none where the site lacks the dim."""
        return values_of(self.ds[site], dim) if dim in self.ds[site].dims else []

    def plane(self, where: Where) -> Plane:
        """Rows of the held-out half in the plane of one place.

        Raises:
            StratalensError: what `entity_plane` refuses; a column with too many groups to tell apart by colour.
        """
        with self._lock:
            if where in self._kept:
                self._kept.move_to_end(where)
                return self._kept[where]
        found, rows, _ = place_plane(self._narrow_groups(where.by), where.by, where.site, where.seed, where.place())
        made = Plane(where, tuple(plain(n) for n in found.names), rows, self.ds.sizes["entity"])
        with self._lock:
            self._kept[where] = made
            while len(self._kept) > 1 and sum(len(p.rows.rows) for p in self._kept.values()) > KEPT_ROWS:
                self._kept.popitem(last=False)
        return made

    def _narrow_groups(self, by: str) -> xr.Dataset:
        """The store, if `by` is a column with a few groups."""
        from stratalens.analyses.data.groups import groups

        found: Groups = groups(self.ds, by)
        if len(found) > MOST_GROUPS:
            raise InputError(
                f"{by!r} has {len(found)} groups, at most {MOST_GROUPS} can be told apart here; choose another column"
            )
        return self.ds

    def colours(self, groups: Sequence[str]) -> tuple[list[str], list[str]]:
        """(trained stages in order, untrained ones) that colours of these groups go by."""
        return result_order(self.ds.assign_coords(group=np.asarray(list(groups), dtype=object)))

    def details(self, where: Where, rows: Sequence[int]) -> tuple[list[str], list[list[Any]]]:
        """Labels and statistics of a few rows at one place, as a table for reading.

        Args:
            where: site, stage, layer and token.
            rows: rows of the entity dim.

        Returns:
            (column names, one list a row): entity, group and prompt (text), statistics (float or None where
            not known), the other labels.
        """
        index = np.asarray(list(rows), dtype=np.int64)
        first = ["entity", where.by, "prompt"]
        labels = [n for n in (*first, *self.columns) if n in self.ds.coords]
        head = list(dict.fromkeys(labels))[: len([n for n in dict.fromkeys(first) if n in self.ds.coords])]
        tail = [n for n in dict.fromkeys(labels) if n not in head]
        columns: list[str] = []
        parts: list[list[Any]] = []
        for name in (*head, *self.statistics(where.site), *tail):
            columns.append("row" if name == "entity" else name)
            if name in self.ds.coords:
                parts.append(list[Any](self.texts(name, index)))
            else:
                values = self.numbers(name, where, index)
                parts.append([float(v) if np.isfinite(v) else None for v in values])
        return columns, [list(row) for row in zip(*parts, strict=True)]

    def texts(self, name: str, rows: np.ndarray, limit: int = 300) -> list[str]:
        """A label of some rows as text; their numbers where there is no such column."""
        found = self.ds.coords[name].isel(entity=rows).values if name in self.ds.coords else rows
        return [plain(v, limit) for v in found]

    def statistics(self, site: str) -> list[str]:
        """Statistics of single rows that the store has: those of the site, then those of the output."""
        wanted = [*(f"{site}_{n}" for n in PER_ROW), *OUTPUTS, "exposure"]
        return [n for n in wanted if n in self.ds and set(self.ds[n].dims) <= {*DIMS, "entity"}]

    def numbers(self, name: str, where: Where, rows: np.ndarray) -> np.ndarray:
        """One statistic of some rows at one place, float64; NaN where there is none."""
        array = self.ds[name]
        for dim, value in where.place().items():
            if dim in array.dims:
                array = array.isel({dim: array[dim].values.tolist().index(value)})
        if set(array.dims) != {"entity"}:
            return np.full(len(rows), np.nan)
        return np.asarray(array.isel(entity=rows).values, dtype=np.float64)

    def search(self, text: str, most: int) -> np.ndarray:
        """First rows whose prompt, entity or any label holds `text`, whatever its case; int64 rows."""
        needle = text.casefold()
        hits = np.zeros(self.ds.sizes["entity"], dtype=bool)
        for name in ("entity", *self.columns):
            if name in self.ds.coords and self.ds[name].dtype.kind in "OTU":
                hits |= np.fromiter((needle in str(v).casefold() for v in self.ds[name].values), bool, len(hits))
        return np.flatnonzero(hits)[:most]
