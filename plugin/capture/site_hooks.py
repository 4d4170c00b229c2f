"""Hooks on the sites of one model: gather the wanted positions where the activation is, hand them to the host.

A `SiteHooks` catches one batch at a time: every hook copies its few positions into one
preallocated tensor per site and returns None, so the forward pass runs as if
nobody watched. Statistics and casts happen on that tensor, on the model's device;
then everything goes to the host in one copy. What is recorded is in recipe.py,
which rows and where they go in recorder.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.capture.statistics import activation_statistics
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.models.hooks import attach, detach
from stratalens.plugin.models.sites import Site
from stratalens.store.errors import InputError, NonFiniteError

TORCH_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "int8": torch.float32,  # scaled by row in the store's buffer
}


class SiteHooks:
    """Catches the recipe's sites on one model.

    Not re-entrant: `begin`, one forward pass, `caught`, in this order.
    """

    def __init__(self, adapter: Adapter, recipe: CaptureSpec) -> None:
        self.adapter = adapter
        self.recipe = recipe
        self._handles: list[tuple[Any, Any]] = []
        self._room: dict[str, Tensor] = {}  # one flat tensor per site, reused from batch to batch
        self._staged: dict[str, Tensor] = {}
        self._seen: dict[str, int] = {}
        self._index: NDArray[np.int64] | None = None
        self._wanted: dict[tuple[torch.device, torch.Size], Tensor] = {}

    def attach(self) -> None:
        """Put a hook on every point of every site; all or none."""
        try:
            for site in self.recipe.selection.sites:
                for place, point in enumerate(self.recipe.selection.points(self.adapter)[site.name]):
                    self._handles.append((point, attach(point, self._catcher(site, place))))
        except BaseException:
            self.detach()
            raise

    def detach(self) -> None:
        """Take off exactly the hooks that `attach` put on."""
        while self._handles:
            point, handle = self._handles.pop()
            detach(point, handle)

    def start_batch(self, index: NDArray[np.int64]) -> None:
        """Announce the next batch.

        Args:
            index: token index of every position, (rows, token) int64, -1 = missing.
        """
        self._index = index
        self._staged.clear()
        self._seen.clear()
        self._wanted.clear()

    def abandon(self) -> None:
        """Forget the batch, after a forward pass that failed."""
        self._index = None
        self._staged.clear()

    def _catcher(self, site: Site, place: int) -> Any:
        count = len(self.recipe.selection.layers) if site.in_blocks else 1

        def catch(value: Tensor) -> None:
            if self._index is None:
                raise InputError(
                    "the model ran inside the recorder without an announced batch. "
                    "Call rec.batch(rows, positions) before every forward pass."
                )
            rows, columns = self._index.shape
            if value.shape[0] not in (1, rows) or value.ndim != 2 + len(site.feature_shape):
                raise InputError(
                    f"site {site.name!r} gave shape {list(value.shape)} for a batch announced with {rows} rows. "
                    "rec.batch(rows, ...) must list one table row per sequence."
                )
            if place == 0 or site.name not in self._staged:
                self._staged[site.name] = self._make_room(site, (count, rows, columns), value.dtype)
            value, chosen = value.detach(), self._where(value)
            room = self._staged[site.name][place].view(-1, *site.feature_shape)
            if value.is_contiguous() and value.dtype == room.dtype and value.device == room.device:
                torch.index_select(value.view(-1, *site.feature_shape), 0, chosen, out=room)
            else:
                length = value.shape[1]
                room.copy_(value[chosen // length, chosen % length])
            self._seen[site.name] = self._seen.get(site.name, 0) + 1

        return catch

    def _make_room(self, site: Site, leading: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        shape = (*leading, *site.feature_shape)
        size = int(np.prod(shape))
        room = self._room.get(site.name)
        if room is None or room.numel() < size or room.dtype != dtype:
            room = self._room[site.name] = torch.empty(size, dtype=dtype, device=self.adapter.device)
        return room[:size].view(shape)

    def _where(self, value: Tensor) -> Tensor:
        """Which vectors of an activation are wanted, counted through its rows and tokens."""
        key = value.device, value.shape[:2]
        if key not in self._wanted:
            assert self._index is not None
            token = np.maximum(self._index, 0)
            if token.max(initial=0) >= value.shape[1]:
                raise IndexError(f"token {token.max()} of a sequence of {value.shape[1]} tokens")
            row = np.arange(len(token))[:, None] if value.shape[0] == len(token) else 0
            self._wanted[key] = torch.from_numpy((row * value.shape[1] + token).reshape(-1)).to(value.device)
        return self._wanted[key]

    def collect(self) -> dict[str, Tensor]:
        """Values of every variable of the sites, on the model's device; -1 positions are NaN.

        Activations have shape (layer, row, token, *features) or (row, token, *features), in
        storage dtype; statistics lose the last feature axis. Two flags per site tell the host
        what to look for: `<site>/finite`, `<site>/overflow`.

        Raises:
            InputError: a site did not fire in the forward pass just run.
        """
        assert self._index is not None
        recipe, values = self.recipe, {}
        gone = torch.from_numpy(self._index < 0).to(self.adapter.device)
        for site in recipe.selection.sites:
            expected = len(recipe.selection.layers) if site.in_blocks else 1
            if self._seen.get(site.name, 0) != expected:
                raise InputError(
                    f"site {site.name!r} fired {self._seen.get(site.name, 0)} times in a forward pass, expected "
                    f"{expected}: once per recorded layer. Run the whole model once per rec.batch()."
                )
            x = self._staged[site.name] if site.in_blocks else self._staged[site.name][0]
            missing = bool((self._index < 0).any())
            if missing:
                x.masked_fill_(gone.view(*gone.shape, *(1,) * len(site.feature_shape)), 0)
            wanted = recipe.site_statistics
            # One pass for both flags: NaN goes through both ends, and a cast keeps the order.
            ends = torch.stack(torch.aminmax(x))
            values[f"{site.name}/finite"] = torch.isfinite(ends).all()
            for name, statistic in activation_statistics(x).items() if wanted else ():
                if name in wanted:
                    values[f"{site.name}_{name}"] = _blank(statistic, gone, site, 1) if missing else statistic
            cast = x.to(TORCH_DTYPES[recipe.dtypes[site.name]])
            values[f"{site.name}/overflow"] = torch.isinf(ends.to(cast.dtype)).any()
            if missing:
                cast = _blank(cast.clone() if cast is x else cast, gone, site, 0)
            values[site.name] = cast
        self._index = None
        return values


def _blank(x: Tensor, gone: Tensor, site: Site, reduced: int) -> Tensor:
    return x.masked_fill_(gone.view(*gone.shape, *(1,) * (len(site.feature_shape) - reduced)), torch.nan)


def to_host(values: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    """All tensors as NumPy arrays, in one copy from the device; bfloat16 as its bits in uint16."""
    tensors = {k: v.contiguous() for k, v in values.items()}
    device = next((t.device for t in tensors.values() if t.device.type == "cuda"), None)
    if device is not None:
        flat = torch.cat([t.to(device).reshape(-1).view(torch.uint8) for t in tensors.values()])
        host = torch.empty(flat.shape, dtype=torch.uint8, pin_memory=True)
        host.copy_(flat, non_blocking=True)
        torch.cuda.current_stream(device).synchronize()
        start, moved = 0, {}
        for name, t in tensors.items():
            size = t.numel() * t.element_size()
            moved[name] = host[start : start + size].clone().view(t.dtype).reshape(t.shape)
            start += size
        tensors = moved
    else:
        tensors = {k: t.cpu() for k, t in tensors.items()}
    return {k: (t.view(torch.uint16) if t.dtype == torch.bfloat16 else t).numpy() for k, t in tensors.items()}


def check_finite(
    recipe: CaptureSpec,
    values: Mapping[str, NDArray[Any]],
    stage: str,
    rows: NDArray[np.int64],
    index: NDArray[np.int64],
) -> None:
    """Raise for the first activation that is not finite, or that a cast made infinite.

    Args:
        recipe: what is recorded.
        values: what `to_host` returned, flags included.
        stage: name of the stage.
        rows: table rows of the batch.
        index: token index of every position, -1 = missing.

    Raises:
        NonFiniteError: names stage, layer, entity, token and value. A float16 overflow is an
            error also with nonfinite="keep": the model had a number there.
    """
    for site in recipe.selection.sites:
        finite, overflow = bool(values[f"{site.name}/finite"]), bool(values[f"{site.name}/overflow"])
        if (finite or recipe.nonfinite == "keep") and not (finite and overflow):
            continue
        array = values[site.name]
        if recipe.dtypes[site.name] == "bfloat16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        layered = array if site.in_blocks else array[None]
        bad = ~np.isfinite(layered) & (index >= 0).reshape(1, *index.shape, *(1,) * len(site.feature_shape))
        place = np.argwhere(bad)[0]
        layer = f"layer {recipe.selection.layers[place[0]]}" if site.in_blocks else "no layer"
        what, mend = str(layered[tuple(place)]), "Pass nonfinite='keep' to record it as it is."
        if finite:
            what = f"beyond the range of {recipe.dtypes[site.name]}"
            mend = "Record with dtype='float32' or 'bfloat16'."
        raise NonFiniteError(
            f"stage {stage!r}, site {site.name!r}, {layer}, entity {recipe.entities[rows[place[1]]]!r}, token "
            f"{recipe.labels[place[2]]!r}, feature {place[3:].tolist()}: the activation is {what}. {mend}"
        )
