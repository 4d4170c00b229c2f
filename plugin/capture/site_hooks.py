"""Hooks that gather the recorded positions of every site of one model.

Each hook copies its few vectors into one preallocated tensor per site, on the model's device, and returns None. After
the forward pass everything goes to the host in one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.spec import DTYPE_NAMES, CaptureSpec
from stratalens.plugin.capture.statistics import activation_statistics
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.hooks import observed
from stratalens.plugin.models.sites import Site
from stratalens.store.errors import InputError, NonFiniteError, join_names

# The store's buffer scales int8 by row.
TORCH_DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()} | {"int8": torch.float32}


@dataclass
class _Batch:
    """A batch on its way through the model.

    Attributes:
        rows: table row of every sequence, int64 array of shape (rows,).
        index: token index of every position, int64 array of shape (rows, tokens); -1 = missing.
        lines: sequence of every row, int64 array of shape (rows,); None where each row is its own sequence.
        values: activations gathered so far, by site.
        fired: how many hooks of each site have fired.
        offsets: indices of the gathered vectors, by device and shape of the activation.
    """

    rows: NDArray[np.int64]
    index: NDArray[np.int64]
    lines: NDArray[np.int64] | None = None
    values: dict[str, Tensor] = field(default_factory=dict)
    fired: dict[str, int] = field(default_factory=dict)
    offsets: dict[tuple[torch.device, torch.Size], Tensor] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        """Number of sequences that the model runs."""
        return len(self.rows) if self.lines is None else int(self.lines.max()) + 1


class SiteHooks:
    """Hooks on the sites of one model.

    Not re-entrant: call `start_batch`, run one forward pass, call `collect`, in this order.
    """

    def __init__(self, adapter: Adapter, spec: CaptureSpec) -> None:
        self.adapter = adapter
        self.spec = spec
        self._buffers: dict[str, Tensor] = {}  # one flat tensor per site, reused from batch to batch
        self._batch: _Batch | None = None
        self.listens: Callable[[], bool] | None = None  # decides whether a hook records what it sees

    def attached(self) -> AbstractContextManager[None]:
        """Put a hook on every point of every site while the context is open; all or none."""
        points = self.spec.selection.points(self.adapter)
        return observed(
            (point, self._hook(site, layer))
            for site in self.spec.selection.sites
            for layer, point in enumerate(points[site.name])
        )

    def start_batch(
        self, rows: NDArray[np.int64], index: NDArray[np.int64], lines: NDArray[np.int64] | None = None
    ) -> None:
        """Announce the next forward pass.

        Args:
            rows: table rows, int64 array of shape (rows,).
            index: token index of every position, int64 array of shape (rows, tokens); -1 = missing.
            lines: sequence of every row, int64 array of shape (rows,), where rows with the same prompt run once; None
                where each row is its own sequence.
        """
        self._batch = _Batch(rows, index, lines)

    def abandon(self) -> None:
        """Drop the batch after a forward pass that failed."""
        self._batch = None

    @property
    def has_fired(self) -> bool:
        """Whether a hook has recorded something of the announced batch."""
        return self._batch is not None and bool(self._batch.fired)

    @property
    def is_complete(self) -> bool:
        """Whether every hook has recorded the announced batch."""
        if self._batch is None:
            return False
        return all(self._batch.fired.get(site.name, 0) >= self._layers(site) for site in self.spec.selection.sites)

    def _layers(self, site: Site) -> int:
        return len(self.spec.selection.layers) if site.in_blocks else 1

    def _announced(self) -> _Batch:
        if self._batch is None:
            raise InputError(
                "the model ran inside the recorder without an announced batch. Call rec.batch(rows, positions) before "
                "every forward pass, or run it inside `with rec.paused():` to leave it out."
            )
        return self._batch

    def _hook(self, site: Site, layer: int) -> Callable[[Tensor], None]:
        """Make the hook of one site at the layer with this number in the selection."""
        layers = self._layers(site)

        def gather(value: Tensor) -> None:
            if self.listens is not None and not self.listens():
                return
            batch = self._announced()
            rows, columns = batch.index.shape
            if value.shape[0] not in (1, batch.sequences) or value.ndim != 2 + len(site.feature_shape):
                raise InputError(
                    f"site {site.name!r} has shape {list(value.shape)} in a batch announced with {rows} rows. "
                    "rec.batch(rows, ...) must list one table row per sequence."
                )
            if layer == 0 or site.name not in batch.values:
                batch.values[site.name] = self._allocate(site, (layers, rows, columns), value.dtype)
            value, offsets = value.detach(), self._offsets(batch, value)
            target = batch.values[site.name][layer].view(-1, *site.feature_shape)
            if value.is_contiguous() and value.dtype == target.dtype and value.device == target.device:
                torch.index_select(value.view(-1, *site.feature_shape), 0, offsets, out=target)
            else:
                length = value.shape[1]
                target.copy_(value[offsets // length, offsets % length])
            batch.fired[site.name] = batch.fired.get(site.name, 0) + 1

        return gather

    def _allocate(self, site: Site, leading: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        shape = (*leading, *site.feature_shape)
        size = int(np.prod(shape))
        buffer = self._buffers.get(site.name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            buffer = self._buffers[site.name] = torch.empty(size, dtype=dtype, device=self.adapter.device)
        return buffer[:size].view(shape)

    def _offsets(self, batch: _Batch, value: Tensor) -> Tensor:
        """Indices of the recorded vectors among all vectors of an activation."""
        key = value.device, value.shape[:2]
        if key not in batch.offsets:
            token = np.maximum(batch.index, 0)
            if token.max(initial=0) >= value.shape[1]:
                raise self._position_error(batch, value.shape[1])
            lines = np.arange(len(token)) if batch.lines is None else batch.lines
            row = lines[:, None] if value.shape[0] == batch.sequences else 0
            batch.offsets[key] = torch.from_numpy((row * value.shape[1] + token).reshape(-1)).to(value.device)
        return batch.offsets[key]

    def _position_error(self, batch: _Batch, length: int) -> InputError:
        rows, columns = np.nonzero(batch.index >= length)
        label = self.spec.labels[len(self.spec.labels) - batch.index.shape[1] + columns[0]]
        affected = batch.rows[rows[columns == columns[0]]]
        return InputError(
            f"position {label!r} is outside the {length} tokens that the model ran for table rows "
            f"{join_names(affected)}: it is token {batch.index[rows[0], columns[0]]} of row {affected[0]}. Pass token "
            "indices in these sequences to rec.batch(rows, positions), padding counted, and -1 for a missing position."
        )

    def collect(self) -> dict[str, Tensor]:
        """Take the values of every variable of the sites out of the forward pass that has just run.

        Returns:
            Tensors on the model's device by variable; missing positions are NaN. Activations have shape
            (layers, rows, tokens, features) in storage dtype, without layers for a site outside the blocks. A
            statistic loses the last feature axis. `<site>/finite` and `<site>/overflow` tell the host whether to look
            for values that are not finite; `<site>/overflow_at` is the place of the first value beyond the range,
            where values that are not finite are kept.

        Raises:
            InputError: a site did not fire once per recorded layer.
        """
        batch, values = self._announced(), {}
        missing = torch.from_numpy(batch.index < 0).to(self.adapter.device)
        any_missing = bool((batch.index < 0).any())
        for site in self.spec.selection.sites:
            expected = self._layers(site)
            if batch.fired.get(site.name, 0) != expected:
                raise InputError(
                    f"site {site.name!r} fired {batch.fired.get(site.name, 0)} times in a forward pass, expected "
                    f"{expected}: once per recorded layer. Run the whole model once per rec.batch()."
                )
            x = batch.values[site.name] if site.in_blocks else batch.values[site.name][0]
            if any_missing:
                _fill(x, missing, len(site.feature_shape), 0)
            # One pass answers both questions: NaN reaches both extremes, and a cast keeps their order.
            extremes = torch.stack(torch.aminmax(x))
            values[f"{site.name}/finite"] = torch.isfinite(extremes).all()
            statistics = activation_statistics(x) if self.spec.site_statistics else {}
            for name in self.spec.site_statistics:
                statistic = statistics[name]
                if any_missing:
                    _fill(statistic, missing, len(site.feature_shape) - 1, torch.nan)
                values[f"{site.name}_{name}"] = statistic
            cast = x.to(TORCH_DTYPES[self.spec.dtypes[site.name]])
            if self.spec.options.nonfinite == "keep" and cast.dtype != x.dtype:
                values[f"{site.name}/overflow"], values[f"{site.name}/overflow_at"] = _find_overflow(x, cast)
            else:
                values[f"{site.name}/overflow"] = torch.isinf(extremes.to(cast.dtype)).any()
            if any_missing:
                cast = _fill(cast.clone() if cast is x else cast, missing, len(site.feature_shape), torch.nan)
            values[site.name] = cast
        self._batch = None
        return values


def _find_overflow(x: Tensor, cast: Tensor) -> tuple[Tensor, Tensor]:
    """Find finite values that a cast made infinite, among values that may be NaN or infinite themselves.

    Returns:
        Whether there is one (bool), and the index of the first one in the flat tensor (int64).
    """
    overflow = (torch.isinf(cast) & torch.isfinite(x)).reshape(-1)
    return overflow.any(), overflow.to(torch.uint8).argmax()


def _fill(x: Tensor, missing: Tensor, feature_ndim: int, value: float) -> Tensor:
    return x.masked_fill_(missing.view(*missing.shape, *(1,) * feature_ndim), value)


def to_host(values: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """Copy all tensors to the host at once.

    Args:
        values: tensors by name, on one device.

    Returns:
        NumPy arrays by name; bfloat16 as its bits in uint16.
    """
    tensors = {name: tensor.contiguous() for name, tensor in values.items()}
    device = next((t.device for t in tensors.values() if t.device.type == "cuda"), None)
    if device is None:
        tensors = {name: tensor.cpu() for name, tensor in tensors.items()}
    else:
        flat = torch.cat([t.to(device).reshape(-1).view(torch.uint8) for t in tensors.values()])
        host = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(flat, non_blocking=True)
        torch.cuda.current_stream(device).synchronize()
        start, copied = 0, {}
        for name, tensor in tensors.items():
            size = tensor.numel() * tensor.element_size()
            copied[name] = host[start : start + size].clone().view(tensor.dtype).reshape(tensor.shape)
            start += size
        tensors = copied
    return {
        name: (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in tensors.items()
    }


def check_finite(
    spec: CaptureSpec,
    values: Mapping[str, NDArray[Any]],
    stage: str,
    rows: NDArray[np.int64],
    index: NDArray[np.int64],
) -> None:
    """Check that no activation is NaN or infinite, and that no cast made one infinite.

    Args:
        spec: what the store records.
        values: arrays from `to_host`, flags included.
        stage: name of the stage.
        rows: table rows of the batch, int64 array of shape (rows,).
        index: token index of every position, int64 array of shape (rows, tokens); -1 = missing.

    Raises:
        NonFiniteError: names stage, layer, entity, token and value. A float16 overflow is an error also with
            nonfinite="keep", because the model's value was finite.
    """
    for site in spec.selection.sites:
        finite, overflow = bool(values[f"{site.name}/finite"]), bool(values[f"{site.name}/overflow"])
        is_exact = f"{site.name}/overflow_at" in values  # else an infinity of the model counts as overflow too
        overflow = overflow and (finite or is_exact)
        if not overflow and (finite or spec.options.nonfinite == "keep"):
            continue
        array = values[site.name]
        if spec.dtypes[site.name] == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        layered = array if site.in_blocks else array[None]
        if overflow and is_exact:
            place = np.array(np.unravel_index(int(values[f"{site.name}/overflow_at"]), layered.shape))
        else:
            recorded = (index >= 0).reshape(1, *index.shape, *(1,) * len(site.feature_shape))
            place = np.argwhere(~np.isfinite(layered) & recorded)[0]
        token = spec.labels[len(spec.labels) - index.shape[1] + place[2]]  # the first columns may be absent
        layer = f"layer {spec.selection.layers[place[0]]}" if site.in_blocks else "no layer"
        if overflow:
            value = f"beyond the range of {spec.dtypes[site.name]}"
            remedy = "Record with dtype='float32' or 'bfloat16'."
        else:
            value = str(layered[tuple(place)])
            remedy = "Pass nonfinite='keep' to record it unchanged."
            if site.dtype == torch.float16:
                remedy = (
                    "The model computes in float16, whose largest value is 65504: load it in bfloat16 (dtype='bfloat16'"
                    f" in from_pretrained, boot_transformers or Checkpoint). {remedy}"
                )
        raise NonFiniteError(
            f"stage {stage!r}, site {site.name!r}, {layer}, entity {spec.entities[rows[place[1]]]!r}, token "
            f"{token!r}, feature {place[3:].tolist()}: the activation is {value}. {remedy}"
        )
