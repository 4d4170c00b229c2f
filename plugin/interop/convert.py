"""Activations of a store as a torch Dataset, and as TransformerLens's ActivationCache."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from stratalens.plugin.interop.torch_dataset import ActivationDataset
from stratalens.plugin.interop.torch_reader import ALIGNED, ArrayReader, as_tensor, is_nan
from stratalens.store.errors import InputError, NotRecordedError, no_site_error, not_floats_error, quote, suggest
from stratalens.store.format.schema import site_names
from stratalens.store.reading.selection import stored_selection
from stratalens.store.state.missing_rows import reasons_for


def torch_dataset(
    ds: xr.Dataset,
    *,
    site: str = "resid_post",
    layer: int | Sequence[int] | None = None,
    stage: str | Sequence[str] | None = None,
    token: str | int | Sequence[str] | Sequence[int] | None = None,
    label: str | None = None,
    skip_missing: bool = False,
    aligned: bool = False,
) -> ActivationDataset:
    """Return the activations of a site as a torch Dataset.

    A sample is the activation of one (stage, entity, token) at one layer, a tensor of the site's
    feature dims in the dtype of `open_store`. With `aligned`, a sample is one (entity, token) at several
    stages and layers, as crosscoders and model diffing need it. To select rows, use `ds.isel(entity=...)`
    before. In stores of all positions, offsets before the start of a shorter prompt are
    not samples.

        data = sl.torch_dataset(sl.open_store("run.zarr"), site="resid_post", layer=12)
        batches = data.batches(4096)                                  # complete blocks, shuffled; read by threads
        loader = DataLoader(batches, batch_size=None, num_workers=2)    # the same, read by other processes
        loader = DataLoader(data, batch_size=64, shuffle=True)          # random access

        data = sl.torch_dataset(ds, stage=["base", "chat"], layer=12, aligned=True)
        x = next(iter(data.batches(4096)))                            # (4096, 2, d_model): batch, stage, features
        scale = data.normalization().scale                            # (stage,)

    Args:
        ds: result of `open_store`, or any Dataset with the same dims.
        site: variable with dims (stage, layer, entity, token, features...).
        layer: block index; None if the Dataset has one layer, or the site has none. With `aligned`, also several, and
            None takes all.
        stage: one or several; None takes all. Without `aligned` they are one long list of samples.
        token: one or several of the recorded positions; None takes all.
        label: numeric label column; samples become (activations, label).
        skip_missing: leave out rows that were not recorded instead of an error. A row that was not recorded at one of
            the stages of aligned samples is left out at all of them.
        aligned: samples have the dims stage and layer before the features. As in xarray, one label leaves its dim out
            and a list keeps it.

    Raises:
        InputError: an unknown site, layer, stage, token or label.
        NotRecordedError: rows that were not recorded, without `skip_missing`, or no row that all stages have.
    """
    _check_site(ds, site)
    ds = _select(ds, "token", token)
    has_layers = "layer" in (*ds[site].dims, *ds[site].coords)
    if layer is not None and not has_layers:
        raise InputError(f"site {site!r} is outside the blocks and has no layers; leave layer={layer} out")
    if aligned:
        ds = _select_aligned(_select_aligned(ds, "stage", stage), "layer", layer)
    elif layer is not None and np.ndim(layer) > 0:
        raise InputError(
            f"layer={quote(layer)}: a sample has one layer; for samples with several layers pass aligned=True"
        )
    else:
        ds = _select(ds, "stage", stage)
        ds = _select_one(ds, "layer", layer) if has_layers else ds
    reader = ArrayReader(ds[site], f"{site} of {_source(ds)}", ALIGNED if aligned else ())
    shape = (ds[site].sizes.get("stage", 1), ds[site].sizes["entity"])
    recorded = _recorded_rows(ds, site, shape, skip_missing=skip_missing)
    if recorded is not None and "stage" in reader.aligned:
        recorded = np.logical_and.reduce(recorded, axis=0, keepdims=True)
    # In stores of all positions, shorter prompts have no tokens at the first offsets. These are not missing rows.
    is_ragged = "token" in ds.coords and ds["token"].dtype.kind == "i"
    valid = _valid_samples(ds, reader, recorded) if is_ragged or skip_missing else None
    if reader.aligned and valid is not None and not len(valid):
        raise NotRecordedError(
            f"{reader.description}: no row was recorded at all of the selected stages and layers; select fewer of them "
            "with stage=[...], or record the missing rows"
        )
    return ActivationDataset(reader, valid=valid, labels=_label_values(ds, label))


def to_activation_cache(
    ds: xr.Dataset,
    *,
    stage: str | None = None,
    entity: str | Sequence[str],
    sites: Sequence[str] | None = None,
    model: Any = None,
) -> Any:
    """Return recorded activations of prompts as a `transformer_lens.ActivationCache`.

    Keys are the recorded hook names, and TransformerLens's name of each site if it differs,
    so that `cache["resid_post", 3]` works. Values have shape (batch, positions, features...).
    The positions are the recorded ones, in the order of `ds.token`. In stores of all positions
    they are the complete prompt, and of several prompts the shorter ones start with NaN.

    Args:
        ds: result of `open_store`.
        stage: one checkpoint; None if the Dataset has only one.
        entity: one prompt id, or several, which become the batch.
        sites: names of sites; None takes all that hold activations.
        model: for the methods of ActivationCache that use its weights.

    Raises:
        InputError: an unknown stage, entity or site, or several stages.
        NotRecordedError: a prompt that was not recorded at this stage.
    """
    from transformer_lens import ActivationCache

    recorded_sites = [str(name) for name in ds.data_vars if ds[name].attrs.get("kind") == "site"]
    chosen = recorded_sites if sites is None else list(sites)
    if not chosen:
        raise InputError(f"{_source(ds)} holds no site; record one: capture(..., sites=('resid_post',))")
    for site in chosen:
        _check_site(ds, site)
        if site not in recorded_sites or "hook" not in ds[site].attrs:
            raise InputError(f"{site!r} holds no activations of a hook; {suggest(site, recorded_sites)}")
    ds = _select_one(_select(ds, "entity", _prompt_ids(ds, entity)), "stage", stage)
    values: dict[str, NDArray[Any]] = {}
    for site in chosen:
        _recorded_rows(ds, site, (1, ds.sizes["entity"]), skip_missing=False)
        values |= _values_by_hook(ds[site])
    if ds["token"].dtype.kind == "i":
        values = _drop_absent_positions(values)
    return ActivationCache({hook: as_tensor(array) for hook, array in values.items()}, model)


def _prompt_ids(ds: xr.Dataset, entity: Any) -> list[str]:
    names: list[Any] = [entity] if isinstance(entity, str) or not isinstance(entity, Iterable) else list(entity)
    if numbers := [name for name in names if not isinstance(name, str)]:
        raise InputError(
            f"entity={numbers[0]!r}: rows are named by their prompt_id, such as {str(ds['entity'].values[0])!r}. "
            "For row number n give entity=ds.entity.values[n]; for all prompts about one entity give "
            "entity=ds.entity.values[ds.entity_id == 'its id']"
        )
    if not names:
        raise InputError("entity names no prompt; give at least one prompt id of ds.entity")
    return names


def _values_by_hook(array: xr.DataArray) -> dict[str, NDArray[Any]]:
    """Return hook name -> values of shape (entities, tokens, features...).

    A site has one entry for each layer and each of its names.
    """
    from stratalens.plugin.models.sites import SHORT_NAMES

    templates = [array.attrs["hook"], *SHORT_NAMES.get(str(array.name), ())[:1]]
    if "token" not in array.dims:
        array = array.expand_dims("token")
    if "layer" in array.coords and "layer" not in array.dims:
        array = array.expand_dims("layer")
    has_layers = "layer" in array.dims
    features = [dim for dim in array.dims if dim not in ("layer", "entity", "token")]
    values = array.transpose(*(["layer"] if has_layers else []), "entity", "token", *features).to_numpy()
    if not has_layers:
        return dict.fromkeys(templates, values)
    layers = array["layer"].values.tolist()
    return {template.format(layer=layer): values[index] for index, layer in enumerate(layers) for template in templates}


def _drop_absent_positions(values: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Drop the first offsets, which none of the prompts has."""
    first = next(iter(values.values()))
    present = ~np.isnan(first.reshape(*first.shape[:2], -1)).all(axis=-1)
    start = int(present.any(axis=0).argmax())
    return {hook: array[:, start:] for hook, array in values.items()}


def _check_site(ds: xr.Dataset, site: str) -> None:
    if not isinstance(ds, xr.Dataset):
        raise InputError(
            f"expected a Dataset, got {type(ds).__name__}: open the store with stratalens.open_store(path)"
        )
    if site not in ds.data_vars:
        raise no_site_error(site, site_names(ds), _source(ds))
    if "entity" not in ds[site].dims:
        raise InputError(f"{site!r} has dims {ds[site].dims}; keep entity a dim: ds.sel(entity=[...])")
    # `open_store(dtype="bits")` returns integers because the caller asked for them.
    if ds[site].dtype.kind not in "fV" and stored_selection(ds[site].variable) is None:
        raise not_floats_error(site, ds[site].dtype)


def _select(ds: xr.Dataset, dim: str, names: Any) -> xr.Dataset:
    """Select one or several labels of a dim, which stays; None selects all."""
    if names is None:
        return ds
    if dim not in ds.dims:
        present = ds[dim].values.item() if dim in ds.coords else "none"
        if present != names:
            raise InputError(f"{dim} {names!r} does not exist here: the Dataset was narrowed to {dim} {present!r}")
        return ds
    index_of = {name: index for index, name in enumerate(ds[dim].values.tolist())}
    wanted = [names] if np.ndim(names) == 0 else list(names)
    for name in wanted:
        if name not in index_of:
            raise InputError(f"unknown {dim} {name!r} in {_source(ds)}: {suggest(str(name), map(str, index_of))}")
    return ds.isel({dim: [index_of[name] for name in wanted]})


def _select_one(ds: xr.Dataset, dim: str, name: Any) -> xr.Dataset:
    """Select one label of a dim, which goes; None selects the only one."""
    if name is None and ds.sizes.get(dim, 1) > 1:
        labels = ", ".join(map(repr, ds[dim].values.tolist()))
        raise InputError(f"{dim} is missing, and there are several: {labels}")
    return _select(ds, dim, name).squeeze(dim) if dim in ds.dims else _select(ds, dim, name)


def _select_aligned(ds: xr.Dataset, dim: str, names: Any) -> xr.Dataset:
    """Select labels of a dim of aligned samples: one label drops the dim, a list keeps it, None keeps all."""
    if names is None:
        return ds
    if np.ndim(names) == 0:
        return _select_one(ds, dim, names)
    if not len(names):
        raise InputError(f"{dim}=[] selects nothing; name at least one {dim}, or leave it out for all")
    return _select(ds, dim, names)


def _recorded_rows(
    ds: xr.Dataset, site: str, shape: tuple[int, ...], *, skip_missing: bool
) -> NDArray[np.bool_] | None:
    """Return which rows exist, bool array of shape (stages, entities).

    None if the Dataset has no such flag.

    Raises:
        NotRecordedError: rows that were not recorded, without `skip_missing`.
    """
    flag = ds[site].attrs.get("recorded", "recorded")
    if flag not in ds:
        return None
    recorded = np.asarray(ds[flag].values, dtype=bool).reshape(shape)
    if skip_missing or recorded.all():
        return recorded
    stages = np.atleast_1d(ds["stage"].values).tolist() if "stage" in ds.coords else ["?"]
    missing = (~recorded).sum(axis=1).tolist()
    gaps = ", ".join(
        f"{name!r} ({count} of {shape[1]} rows)" for name, count in zip(stages, missing, strict=True) if count
    )
    raise NotRecordedError(
        f"{site} of {_source(ds)}: rows were not recorded at stage {gaps}; select the recorded rows, for example "
        "ds.sel(stage=[...]), or in torch_dataset leave the others out with skip_missing=True"
        f"{reasons_for(ds['recorded'].attrs if 'recorded' in ds else {}, stages)}"
    )


def _valid_samples(ds: xr.Dataset, reader: ArrayReader, recorded: NDArray[np.bool_] | None) -> NDArray[np.int64] | None:
    """Return the flat indices of the samples that exist, or None if all exist.

    This reads the site's L2 norms if they were recorded, a fraction of the site's
    bytes, else the site itself.
    """
    norms = ds.get(f"{reader.site}_l2")
    if norms is not None and norms.sizes["entity"] == reader.shape[1]:
        tested = ArrayReader(norms, reader.description, reader.aligned)
    else:
        tested = reader
    exists = np.ones(reader.shape, dtype=bool)
    if recorded is not None:
        exists &= recorded[:, :, None]
    for stage, start, stop in tested.blocks():
        if exists[stage, start:stop].any():
            values = tested.read(stage, slice(start, stop))
            is_absent = is_nan(values.reshape(*values.shape[:2], len(tested.parts), -1)).all(axis=-1)
            exists[stage, start:stop] &= ~is_absent.any(axis=-1)  # a sample needs all of its parts
    return None if exists.all() else np.flatnonzero(exists)


def _label_values(ds: xr.Dataset, label: str | None) -> NDArray[Any] | None:
    if label is None:
        return None
    columns = [str(name) for name in ds.coords if ds[name].dims == ("entity",)]
    if label not in columns:
        raise InputError(f"unknown label {label!r}: {suggest(label, columns)}")
    values: NDArray[Any] = ds[label].values
    if values.dtype.kind not in "biuf":
        raise InputError(
            f"label {label!r} is text, and torch holds numbers; add a column of codes: "
            f"codes, names = pandas.factorize(ds[{label!r}]); ds = ds.assign_coords(code=('entity', codes))"
        )
    return values


def _source(ds: xr.Dataset) -> str:
    return str(ds.attrs.get("path", "the dataset"))
