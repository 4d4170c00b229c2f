"""Sums of activations on the model's device: one set of float64 sums for each layer, token and group of a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.analyses.data.norm_sketch import BUCKETS, LOG_GAMMA, LOG_LOWEST
from stratalens.analyses.data.row_moments import ORDERS, RowMoments
from stratalens.plugin.capture.output_hooks import Sequences
from stratalens.plugin.capture.session import HookedModel
from stratalens.plugin.capture.site_hooks import check_finite, to_host
from stratalens.plugin.capture.summary_plan import SummaryPlan
from stratalens.plugin.models.sites import Site

_ELEMENTS = 2**24  # largest float64 copy of activations, in elements
_VECTORS = ("first", "second", "third", "fourth")
_MATRICES: dict[str, tuple[str, ...]] = {
    "vectors": (),
    "scatter": ("scatter",),
    "squares": ("scatter", "cross", "squares"),
}


class DeviceModel(HookedModel):
    """A hooked model whose batches stay on the device until they are added up.

    Attributes:
        batch: table rows, tokens and activations of the batch that has just run; None before the first one.
    """

    batch: tuple[NDArray[np.int64], Sequences, dict[str, Tensor]] | None = None

    def values(
        self, stage: str, rows: NDArray[np.int64], batch: Sequences, logits: Tensor | None
    ) -> dict[str, NDArray[Any]]:
        """Keep the activations of the batch that has just run; nothing goes to the host.

        The sums are updated by the caller, because a batch that runs out of memory runs again in halves.

        Raises:
            NonFiniteError: an activation is NaN or infinite.
        """
        tensors = self.site_hooks.collect()
        flags = [tensors[f"{site.name}/finite"] for site in self.spec.selection.sites]
        if not bool(torch.stack(flags).all()):
            check_finite(self.spec, to_host(tensors), stage, rows, batch.index)
        self.batch = rows, batch, tensors
        return {}


class SiteSums:
    """Sums over the rows of one site.

    Args:
        site: the site.
        plan: groups and sampled rows.
        device: device of the activations; sums are on the CPU where the device has no float64.
    """

    def __init__(self, site: Site, plan: SummaryPlan, device: torch.device) -> None:
        self.site, self.plan = site, plan
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.layers = len(plan.spec.selection.layers) if site.in_blocks else 1
        self.features = int(np.prod(site.feature_shape))
        tokens, groups, d = len(plan.tokens), len(plan.names), self.features
        cells = (self.layers, tokens, groups)
        self.count = np.zeros((tokens, groups), dtype=np.int64)

        def zeros(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros((*cells, *shape), dtype=dtype, device=self.device)

        self.sums = {name: zeros(d) for name in ("centre", *_VECTORS)}
        self.sums |= {name: zeros(d, d) for name in _MATRICES[plan.order]}
        self.sums["norms"] = zeros(2)  # of the norms: their sum, and that of their squares
        self.sums["buckets"] = zeros(BUCKETS, dtype=torch.int64)
        most = max((len(sample.entity) for sample in plan.samples.values()), default=0)
        self.sample = np.full((*cells, most, d), np.nan, dtype=np.float32)
        self._slots: dict[int, list[tuple[int, int, int, int]]] = {}  # row -> column, token, group, slot
        for (token, group), sample in plan.samples.items():
            assert sample.values is not None
            for slot, (row, column) in enumerate(sample.values.tolist()):
                self._slots.setdefault(row, []).append((column, token, group, slot))

    def add(self, rows: NDArray[np.int64], group: NDArray[np.int64], values: Tensor) -> None:
        """Add one batch.

        Args:
            rows: table rows, int64 array of shape (rows,).
            group: group of every recorded position, int64 array of shape (rows, tokens); -1 = none.
            values: activations of shape (layers, rows, tokens, features), without layers outside the blocks.
        """
        x = values.reshape(self.layers, -1, self.features)
        columns = group.shape[1]
        flat = group.reshape(-1)
        for token in range(len(self.plan.tokens)):
            inside = flat if self.plan.pooled else np.where(np.arange(flat.size) % columns == token, flat, -1)
            for g in np.unique(inside[inside >= 0]).tolist():
                places = torch.from_numpy(np.flatnonzero(inside == g)).to(x.device)
                first = self.count[token, g] == 0
                step = max(1, _ELEMENTS // self.features)
                for start in range(0, len(places), step):
                    for layer in range(self.layers):
                        chunk = x[layer].index_select(0, places[start : start + step])
                        self._add_cell((layer, token, g), chunk.to(self.device), first and start == 0)
                self.count[token, g] += len(places)
        self._add_sample(rows, columns, x)

    def _add_cell(self, cell: tuple[int, int, int], rows: Tensor, first: bool) -> None:
        """Add rows of one layer, token and group; the first ones decide the centre."""
        x = rows.to(torch.float64)
        own = {name: total[cell] for name, total in self.sums.items()}
        norm = x.square().sum(dim=1).sqrt()
        own["norms"].add_(torch.stack([norm.sum(), norm.square().sum()]))
        bucket = ((norm.log() - LOG_LOWEST) / LOG_GAMMA).clamp(0, BUCKETS - 1).long()
        own["buckets"].scatter_add_(0, bucket, torch.ones_like(bucket))  # bincount would wait for a GPU
        if first:
            own["centre"].copy_(x.mean(dim=0))
        y = x.sub_(own["centre"])
        u = y * y
        own["first"].add_(y.sum(dim=0))
        own["second"].add_(u.sum(dim=0))
        own["third"].add_((u * y).sum(dim=0))
        own["fourth"].add_((u * u).sum(dim=0))
        if "scatter" in own:
            own["scatter"].addmm_(y.T, y)
        if "cross" in own:
            own["cross"].addmm_(u.T, y)
            own["squares"].addmm_(u.T, u)

    def _add_sample(self, rows: NDArray[np.int64], columns: int, x: Tensor) -> None:
        offset = self.plan.spec.index.shape[1] - columns  # the first columns are absent where no row has tokens
        chosen = [
            (i * columns + column - offset, token, group, slot)
            for i, row in enumerate(rows.tolist())
            for column, token, group, slot in self._slots.get(row, ())
        ]
        if chosen:
            place, token, group, slot = np.array(chosen).T
            values = x[:, torch.from_numpy(place.copy()).to(x.device)].to("cpu", torch.float32).numpy()
            self.sample[:, token, group, slot] = values

    def moments(self, layer: int, token: int, group: int) -> RowMoments:
        """Sums of one layer, token and group, around the mean of its rows."""
        cell = (layer, token, group)
        arrays = {
            name: self.sums[name][cell].cpu().numpy() for name in ("centre", *_VECTORS, *_MATRICES[self.plan.order])
        }
        return RowMoments(count=int(self.count[token, group]), **arrays).central()

    def state(self) -> dict[str, NDArray[Any]]:
        """All sums, bit for bit, for a resumption."""
        arrays: dict[str, NDArray[Any]] = {name: total.cpu().numpy() for name, total in self.sums.items()}
        return arrays | {"count": self.count, "sample": self.sample}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Self:
        """Continue from the sums of an earlier run."""
        for name, total in self.sums.items():
            total.copy_(torch.from_numpy(np.ascontiguousarray(state[name])))
        self.count, self.sample = state["count"].copy(), state["sample"].copy()
        return self


def bytes_per_cell(order: str, features: int) -> tuple[int, int]:
    """Bytes of one layer, token and group: in the finished summary without its sample, and of the sums on the device.

    Args:
        order: "vectors", "scatter" or "squares".
        features: size of an activation.

    Example:
        >>> bytes_per_cell("scatter", 2048)
        (16873072, 33658480)
    """
    level, d = ORDERS.index(order), features
    vectors = 8 * (4 * d + 2 + BUCKETS)
    packed = d * (d + 1) // 2
    finished = vectors + (8 * packed if level else 0) + (4 * (packed + d * d) if level > 1 else 0)
    return finished, vectors + 8 * d + 8 * d * d * (0, 1, 3)[level]
