"""Data of the explorer: label columns, one slab in a plane of group means, and details of single rows.

Opening reads metadata only. A plane reads one slab (one stage, layer and token) block by block; details of rows read
only the statistics of these rows. Planes are cached, at a few numbers a row; slabs are not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from stratalens.analyses.centroids.entities import RowPlane
from stratalens.analyses.data.groups import TRAINED_STAGE, Groups, clusters, groups
from stratalens.analyses.data.label_columns import MAX_GROUPS, describe_label_columns
from stratalens.analyses.data.training_order import result_order
from stratalens.analyses.explorer.axes import axis_titles, default_directions, direction_names, fit_axes, mean_regions
from stratalens.analyses.plots.centroids import axis_labels, row_plane_at
from stratalens.analyses.plots.colors import group_colors
from stratalens.analyses.plots.spec import plain_text, values_of
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

Rows = npt.NDArray[np.int64]

MAX_CACHED_ROWS = 4_000_000  # over all cached planes, 24 bytes a row

SITE_STATISTICS = ("l2", "mean", "std", "kurtosis")
OUTPUT_STATISTICS = ("loss", "running_loss", "answer_loss", "entity_loss", "entropy", "max_logprob")
DIMS = ("stage", "layer", "token")


@dataclass(frozen=True)
class ViewState:
    """The state of the widgets: one slab, the column that groups its rows, and the axes of the scatter."""

    site: str
    by: str
    stage: Hashable = None
    layer: Hashable = None
    token: Hashable = None
    axes: str = "groups"
    x: str = ""
    y: str = ""
    seed: int = 0

    @property
    def position(self) -> tuple[Hashable, Hashable, Hashable]:
        """Stage, layer and token."""
        return self.stage, self.layer, self.token

    def coordinates(self) -> dict[str, Hashable]:
        """Return stage, layer and token, where the site has them."""
        values = zip(DIMS, (self.stage, self.layer, self.token), strict=True)
        return {dim: value for dim, value in values if value is not None}

    def description(self) -> str:
        """Return the slab as text: "resid_post at stage s6, layer 7, token last"."""
        words = ", ".join(f"{dim} {plain_text(value)}" for dim, value in self.coordinates().items())
        return plain_text(self.site) + (f" at {words}" if words else "")


@dataclass(frozen=True)
class GroupPlane:
    """Rows in a plane of group means, with the names of their groups.

    Attributes:
        view: state of the widgets.
        groups: names of the groups.
        ordered: the groups have a known order.
        rows: coordinates of the rows.
        total: number of rows in the store.
        regions: array of shape (groups, 3), see `mean_regions`.
    """

    view: ViewState
    groups: tuple[str, ...]
    ordered: bool
    rows: RowPlane
    total: int
    regions: npt.NDArray[np.float64]

    def axis_labels(self) -> tuple[str, str]:
        """Return the labels of the two axes."""
        view = self.view
        titles = axis_titles(view.axes, view.x, view.y, len(self.groups))
        return titles or axis_labels(self.ordered, len(self.groups))


class ExplorerData:
    """An open store, as the explorer reads it.

    Args:
        ds: result of `open_store`.
        by: label column at the start; None = the most useful one.
        seed: of halves, folds and shuffles.

    Raises:
        InputError: the store has no site or no label column.
    """

    def __init__(self, ds: xr.Dataset, by: str | None = None, seed: int = 0) -> None:
        self.ds, self.seed = ds, seed
        self.sites = [str(k) for k, v in ds.data_vars.items() if v.attrs.get("kind") == "site"]
        if not self.sites:
            raise InputError("this Dataset has no recorded site; open a store with stratalens.open_store")
        self.described = describe_label_columns(ds, (by,) if by is not None else (TRAINED_STAGE,))
        if not self.described:
            raise InputError("this store has no label column; add one to its prompt table to group the rows")
        self.columns = [column.name for column in self.described]
        self._ordered: dict[str, bool] = {}
        self._planes: OrderedDict[ViewState, GroupPlane] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def path(self) -> str:
        """Path of the store."""
        return str(self.ds.attrs.get("path", "a dataset in memory"))

    def column_options(self) -> tuple[dict[str, str], list[str]]:
        """Return the columns by their text, "habitat (4)", and the texts of those whose groups cannot be drawn."""
        columns = {f"{plain_text(c.name, 40)} ({c.groups:,})": c for c in self.described}
        return {text: c.name for text, c in columns.items()}, [text for text, c in columns.items() if c.problem]

    def ordered(self, by: str) -> bool:
        """Whether the groups of a column have a known order; a column that cannot be grouped has none."""
        if by not in self._ordered:
            try:
                self._ordered[by] = groups(self.ds, by).ordered
            except InputError:  # the plane says why
                self._ordered[by] = False
        return self._ordered[by]

    def directions(self, by: str) -> tuple[list[str], tuple[str, str]]:
        """Return the directions between the groups of a column, and the two at the start; empty without groups."""
        try:
            names = [str(n) for n in groups(self.ds, by).names]
        except InputError:  # the plane says why
            names = []
        if not 2 <= len(names) <= MAX_GROUPS:
            return [], ("", "")
        return direction_names(names), default_directions(names)

    def values(self, site: str, dim: str) -> list[Hashable]:
        """Return the values of stage (in training order), layer or token.

        The result is empty if the site has no such dim.
        """
        return values_of(self.ds[site], dim) if dim in self.ds[site].dims else []

    def plane(self, view: ViewState) -> GroupPlane:
        """Project the rows of the held-out half, or return the cached plane.

        Raises:
            InputError: as `entity_plane`, or the column has more groups than a figure can distinguish.
            NotRecordedError: no row was recorded there.
        """
        with self._lock:
            if view in self._planes:
                self._planes.move_to_end(view)
                return self._planes[view]
        count = len(groups(self.ds, view.by))
        if count > MAX_GROUPS:
            raise InputError(
                f"{view.by!r} has {count} groups, at most {MAX_GROUPS} can be shown; choose another column"
            )

        def fit(label_groups: Groups, values: np.ndarray, codes: np.ndarray) -> np.ndarray:
            return fit_axes(view.axes, view.x, view.y, [str(n) for n in label_groups.names], values, codes)

        chosen = fit if view.axes != "groups" else None
        label_groups, rows, _ = row_plane_at(self.ds, view.by, view.site, view.seed, view.coordinates(), chosen)
        names = tuple(plain_text(n) for n in label_groups.names)
        units = np.asarray(clusters(self.ds))[rows.rows]
        regions = mean_regions(rows.coordinate, rows.codes, units, len(names))
        plane = GroupPlane(view, names, label_groups.ordered, rows, self.ds.sizes["entity"], regions)
        with self._lock:
            self._planes[view] = plane
            while len(self._planes) > 1 and sum(len(p.rows.rows) for p in self._planes.values()) > MAX_CACHED_ROWS:
                self._planes.popitem(last=False)
        return plane

    def colors(self, plane: GroupPlane) -> tuple[list[str], list[str]]:
        """Return the colour of each group, and the names whose colours show an order, in order."""
        names = np.asarray(list(plane.groups), dtype=object)
        labelled = xr.Dataset(coords={k: self.ds[k] for k in ("stage", "stage_order") if k in self.ds.coords})
        labelled = labelled.assign_coords(group=names).assign_attrs(ordered=plane.ordered)
        trained = result_order(labelled)[0] if plane.ordered else []
        return list(group_colors(labelled).values()), trained

    def stages(self) -> list[str]:
        """Return the trained stages in training order, for the colours of figures."""
        return result_order(self.ds)[0]

    def row_details(self, view: ViewState, rows: Sequence[int]) -> tuple[list[str], list[list[Any]]]:
        """Return labels and statistics of some rows.

        Args:
            view: site, stage, layer and token.
            rows: rows of the entity dim.

        Returns:
            (column names, one list a row): entity, group, prompt and the other labels as text; then statistics as
            float, None where unknown.
        """
        index = np.asarray(list(rows), dtype=np.int64)
        first = [n for n in dict.fromkeys(("entity", view.by, "prompt")) if n in self.ds.coords]
        others = [n for n in self.columns if n in self.ds.coords and n not in first]
        names = [*first, *others, *self.statistic_names(view.site)]
        columns: list[list[Any]] = []
        for name in names:
            if name in self.ds.coords:
                columns.append(list[Any](self.label_texts(name, index)))
            else:
                values = self.statistic_values(name, view, index)
                columns.append([float(v) if np.isfinite(v) else None for v in values])
        titles = ["row" if name == "entity" else name for name in names]
        return titles, [list(row) for row in zip(*columns, strict=True)]

    def row_means(self, view: ViewState, rows: Rows, columns: Sequence[str]) -> list[float | None]:
        """Return the mean of each statistic over some rows.

        Args:
            view: site, stage, layer and token.
            rows: rows of the entity dim.
            columns: names of the columns, from `row_details`.

        Returns:
            One number a column; None for labels, and for statistics that no row has.
        """
        means: list[float | None] = []
        statistics = set(self.statistic_names(view.site))
        for name in columns:
            values = self.statistic_values(name, view, rows) if name in statistics else np.empty(0)
            values = values[np.isfinite(values)]
            means.append(float(values.mean()) if len(values) else None)
        return means

    def selection_labels(self, rows: Rows, name: str) -> pd.DataFrame:
        """Return a table for `stratalens label` with one label column that names the selected rows.

        Args:
            rows: selected rows of the entity dim.
            name: name of the column.

        Returns:
            One row for each row of the store: prompt_id, prompt if the store has prompts, and the column with the
            values "selected" and "other".
        """
        import pandas as pd

        selected = np.full(self.ds.sizes["entity"], "other", dtype=object)
        selected[rows] = "selected"
        columns: dict[str, Any] = {"prompt_id": self.ds["entity"].values}
        if "prompt" in self.ds.coords:
            columns["prompt"] = self.ds["prompt"].values
        return pd.DataFrame({**columns, name: selected})

    def label_texts(self, name: str, rows: Rows, limit: int = 300) -> list[str]:
        """Return a label of some rows as text.

        Row numbers replace it if there is no such column.
        """
        values = self.ds.coords[name].isel(entity=rows).values if name in self.ds.coords else rows
        return [plain_text(v, limit) for v in values]

    def statistic_names(self, site: str) -> list[str]:
        """Return the recorded statistics of rows: those of the site, then of the output."""
        names = [*(f"{site}_{n}" for n in SITE_STATISTICS), *OUTPUT_STATISTICS, "exposure"]
        return [n for n in names if n in self.ds and set(self.ds[n].dims) <= {*DIMS, "entity"}]

    def statistic_values(self, name: str, view: ViewState, rows: Rows) -> npt.NDArray[np.float64]:
        """Return one statistic of some rows at one stage, layer and token.

        Values are NaN where it is unknown.
        """
        array = self.ds[name]
        for dim, value in view.coordinates().items():
            if dim in array.dims:
                array = array.isel({dim: array[dim].values.tolist().index(value)})
        if set(array.dims) != {"entity"}:
            return np.full(len(rows), np.nan)
        return np.asarray(array.isel(entity=rows).values, dtype=np.float64)

    def search(self, text: str, limit: int) -> Rows:
        """Return the first rows with `text` in any label or the entity, ignoring case."""
        needle = text.casefold()
        matches = np.zeros(self.ds.sizes["entity"], dtype=bool)
        for name in ("entity", *self.columns):
            if name in self.ds.coords and self.ds[name].dtype.kind in ("O", "T", "U"):
                column = self.ds[name].values
                matches |= np.fromiter((needle in str(v).casefold() for v in column), bool, len(matches))
        return np.flatnonzero(matches)[:limit]
