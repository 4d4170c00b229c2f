"""From a store to other libraries: torch Datasets for training, TransformerLens's ActivationCache.

What lives here: which part of a Dataset is meant, checked, and its conversion.
What does not: how torch Datasets read (`torch_data.py`, `torch_batches.py`), and export to files
(`stratalens.store.interop.export`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from stratalens.plugin.interop.torch_dataset import ActivationDataset, ShuffledBatches
from stratalens.plugin.interop.torch_reader import Source, as_tensor, is_nan
from stratalens.store.errors import InputError, NotRecordedError, no_site_error, not_floats_error, suggest
from stratalens.store.format.schema import site_names
from stratalens.store.reading.selection import stored_selection

__all__ = ["ActivationDataset", "ShuffledBatches", "to_activation_cache", "torch_dataset"]


def torch_dataset(
    ds: xr.Dataset,
    *,
    site: str = "resid_post",
    layer: int | None = None,
    stage: str | Sequence[str] | None = None,
    token: str | int | Sequence[str] | Sequence[int] | None = None,
    label: str | None = None,
    skip_missing: bool = False,
) -> ActivationDataset:
    """Activations of one site and layer as a torch Dataset, for training SAEs or probes.

    A sample is the activation of one (stage, entity, token), a tensor of the
    site's feature dims in the dtype that `open_store` gives. Narrow the rows
    beforehand with `ds.isel(entity=...)`. In stores of all positions, offsets
    before the start of a shorter prompt are no samples.

        data = sl.torch_dataset(sl.open_store("run.zarr"), site="resid_post", layer=12)
        batches = data.batches(4096)                                  # whole blocks, shuffled; read by threads
        loader = DataLoader(batches, batch_size=None, num_workers=2)    # the same, read by other processes
        loader = DataLoader(data, batch_size=64, shuffle=True)          # random access

    Args:
        ds: what `open_store` returned, or any Dataset with the same dims.
        site: variable with dims (stage, layer, entity, token, features...).
        layer: block index; None where only one is there, or the site has none.
        stage: one or several; None takes all, as one long list of samples.
        token: one or several of the recorded positions; None takes all.
        label: numeric label column; samples become (activations, label).
        skip_missing: leave out what was not recorded instead of refusing.

    Raises:
        InputError: an unknown site, layer, stage, token or label.
        NotRecordedError: rows that were not recorded, without `skip_missing`.
    """
    ds = _narrowed(ds, site, stage, token)
    if "layer" in ds[site].dims:
        ds = ds.isel(layer=_layer(ds, site, layer))
    elif layer is not None and "layer" not in ds[site].coords:
        raise InputError(f"site {site!r} lies outside the blocks and has no layers; leave layer={layer} out")
    source = Source(ds[site], f"{site} of {_source(ds)}")
    recorded = _recorded(ds, site, source.shape[:2], skip_missing=skip_missing)
    # in stores of all positions shorter prompts lack the far offsets, which is no gap in the recording
    ragged = "token" in ds.coords and ds["token"].dtype.kind == "i"
    valid = _existing(ds, source, recorded) if ragged or skip_missing else None
    return ActivationDataset(source, valid=valid, labels=_label(ds, label))


def to_activation_cache(
    ds: xr.Dataset,
    *,
    stage: str | None = None,
    entity: str | Sequence[str],
    sites: Sequence[str] | None = None,
    model: Any = None,
) -> Any:
    """What was recorded of one or several prompts, as a `transformer_lens.ActivationCache`.

    Keys are the hook names: those that were recorded, and TransformerLens's own
    name of each site where it differs, so that `cache["resid_post", 3]` works.
    Values have shape (batch, positions, features...); the positions are the
    recorded ones, in the order of `ds.token`. In stores of all positions they
    are the prompt; of several prompts the shorter ones are NaN at their start.

    Args:
        ds: what `open_store` returned.
        stage: which checkpoint; None where only one is there.
        entity: prompt id, or several: the batch.
        sites: which sites; None takes all that hold activations.
        model: for those methods of ActivationCache that use its weights.

    Raises:
        InputError: an unknown stage, entity or site, or several stages.
        NotRecordedError: a prompt that was not recorded at this stage.
    """
    from transformer_lens import ActivationCache

    held = [str(name) for name in ds.data_vars if ds[name].attrs.get("kind") == "site"]
    chosen = held if sites is None else list(sites)
    if not chosen:
        raise InputError(f"{_source(ds)} holds no site; record one: capture(..., sites=('resid_post',))")
    for site in chosen:
        _check_site(ds, site)
        if site not in held or "hook" not in ds[site].attrs:
            raise InputError(f"{site!r} holds no activations of a hook; {suggest(site, held)}")
    names: list[Any] = [entity] if isinstance(entity, str) or not isinstance(entity, Iterable) else list(entity)
    if numbers := [name for name in names if not isinstance(name, str)]:
        raise InputError(
            f"entity={numbers[0]!r}: rows are named by their prompt_id, such as {str(ds['entity'].values[0])!r}. "
            f"For row number n give entity=ds.entity.values[n]; for all prompts about one entity give "
            f"entity=ds.entity.values[ds.entity_id == 'its id']"
        )
    if not names:
        raise InputError("entity names no prompt; give at least one prompt id of ds.entity")
    ds = ds.isel(entity=_places(ds, "entity", names))
    if "stage" in ds.dims:
        if stage is None and ds.sizes["stage"] > 1:
            stages = ", ".join(map(repr, ds["stage"].values.tolist()))
            raise InputError(f"stage is missing, and there are several: {stages}")
        ds = ds.isel(stage=0 if stage is None else _places(ds, "stage", [stage])[0])
    elif stage is not None:
        _check_scalar(ds, "stage", stage)
    values: dict[str, NDArray[Any]] = {}
    for site in chosen:
        _recorded(ds, site, (1, len(names)), skip_missing=False)
        for hooks, array in _by_hook(ds[site]):
            values.update(dict.fromkeys(hooks, array))
    if ds["token"].dtype.kind == "i":
        values = _without_absent_positions(values)
    return ActivationCache({hook: as_tensor(array) for hook, array in values.items()}, model)


def _by_hook(array: xr.DataArray) -> list[tuple[list[str], NDArray[Any]]]:
    """(hook names, values (entity, token, features...)) of every layer of a site."""
    from stratalens.plugin.models.sites import SHORT_NAMES

    templates = [array.attrs["hook"], *SHORT_NAMES.get(str(array.name), ())[:1]]
    if "token" not in array.dims:
        array = array.expand_dims("token")
    if "layer" not in array.dims:
        array = array.expand_dims("layer") if "layer" in array.coords else array
    layered = "layer" in array.dims
    features = [dim for dim in array.dims if dim not in ("layer", "entity", "token")]
    array = array.transpose(*(["layer"] if layered else []), "entity", "token", *features)
    values = array.to_numpy()
    if not layered:
        return [(list(dict.fromkeys(templates)), values)]
    return [
        (list(dict.fromkeys(template.format(layer=layer) for template in templates)), values[i])
        for i, layer in enumerate(array["layer"].values.tolist())
    ]


def _without_absent_positions(values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Without the leading offsets that none of the prompts has."""
    first = next(iter(values.values()))
    present = ~np.isnan(first.reshape(*first.shape[:2], -1)).all(axis=-1)
    start = int(present.any(axis=0).argmax())
    return {hook: array[:, start:] for hook, array in values.items()}


def _narrowed(ds: xr.Dataset, site: str, stage: Any, token: Any) -> xr.Dataset:
    _check_site(ds, site)
    for dim, wanted in (("stage", stage), ("token", token)):
        if wanted is None:
            continue
        if dim not in ds.dims:
            _check_scalar(ds, dim, wanted)
            continue
        names = [wanted] if isinstance(wanted, str | int) else list(wanted)
        ds = ds.isel({dim: _places(ds, dim, names)})
    return ds


def _check_site(ds: xr.Dataset, site: str) -> None:
    if not isinstance(ds, xr.Dataset):
        raise InputError(
            f"expected a Dataset, got {type(ds).__name__}: open the store with stratalens.open_store(path)"
        )
    if site not in ds.data_vars:
        raise no_site_error(site, site_names(ds), _source(ds))
    if "entity" not in ds[site].dims:
        raise InputError(f"{site!r} has dims {ds[site].dims}; keep entity a dim: ds.sel(entity=[...])")
    # The bits of `open_store(dtype="bits")` were asked for by name.
    if ds[site].dtype.kind not in "fV" and stored_selection(ds[site].variable) is None:
        raise not_floats_error(site, ds[site].dtype)


def _check_scalar(ds: xr.Dataset, dim: str, wanted: Any) -> None:
    if dim not in ds.coords or ds[dim].values.item() != wanted:
        held = ds[dim].values.item() if dim in ds.coords else "none"
        raise InputError(f"{dim} {wanted!r} is not there: the Dataset was narrowed to {dim} {held!r}")


def _places(ds: xr.Dataset, dim: str, names: Sequence[Any]) -> list[int]:
    """Index of every name along a dim."""
    held = ds[dim].values.tolist()
    index = {name: place for place, name in enumerate(held)}
    for name in names:
        if name not in index:
            raise InputError(f"unknown {dim} {name!r} in {_source(ds)}: {suggest(str(name), map(str, held))}")
    return [index[name] for name in names]


def _layer(ds: xr.Dataset, site: str, layer: int | None) -> int:
    held = ds["layer"].values.tolist()
    if layer is None:
        if len(held) > 1:
            raise InputError(f"layer is missing, and {site!r} has several: {', '.join(map(str, held))}")
        return 0
    return _places(ds, "layer", [layer])[0]


def _recorded(ds: xr.Dataset, site: str, shape: tuple[int, ...], *, skip_missing: bool) -> NDArray[np.bool_] | None:
    """Which rows exist, (stages, entities), or None where nothing says it; refuses gaps unless told to skip."""
    flag = ds[site].attrs.get("recorded", "recorded")
    if flag not in ds:
        return None
    flags = np.asarray(ds[flag].values, dtype=bool).reshape(shape)
    if skip_missing or flags.all():
        return flags
    stages = np.atleast_1d(ds["stage"].values).tolist() if "stage" in ds.coords else ["?"]
    gaps = ", ".join(
        f"{name!r} ({count} of {shape[1]} rows)"
        for name, count in zip(stages, (~flags).sum(axis=1).tolist(), strict=True)
        if count
    )
    raise NotRecordedError(
        f"{site} of {_source(ds)}: rows were not recorded at stage {gaps}; narrow to those that were, for example "
        "ds.sel(stage=[...]), or in torch_dataset leave them out with skip_missing=True"
    )


def _existing(ds: xr.Dataset, source: Source, recorded: NDArray[np.bool_] | None) -> NDArray[np.int64] | None:
    """Flat indices of the samples that exist, or None if all do.

    Read from the site's L2 norms where they were recorded (a fraction of the
    site's bytes), else from the site itself.
    """
    name = f"{source.site}_l2"
    tested = Source(ds[name], source.what) if name in ds and ds[name].sizes["entity"] == source.shape[1] else source
    exists = np.ones(source.shape, dtype=bool) if recorded is None else recorded[:, :, None].repeat(source.shape[2], 2)
    for stage, start, stop in tested.blocks():
        if exists[stage, start:stop].any():
            values = tested.read(stage, slice(start, stop))
            exists[stage, start:stop] &= ~is_nan(values.reshape(*values.shape[:2], -1)).all(axis=-1)
    return None if exists.all() else np.flatnonzero(exists)


def _label(ds: xr.Dataset, label: str | None) -> NDArray[Any] | None:
    if label is None:
        return None
    columns = [str(name) for name in ds.coords if ds[name].dims == ("entity",)]
    if label not in columns:
        raise InputError(f"unknown label {label!r}: {suggest(label, columns)}")
    values: NDArray[Any] = ds[label].values
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"label {label!r} is text, and torch holds numbers; give its codes a name: "
            f"codes, names = pandas.factorize(ds[{label!r}]); ds = ds.assign_coords(code=('entity', codes))"
        )
    return values


def _source(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("path", "the dataset"))
