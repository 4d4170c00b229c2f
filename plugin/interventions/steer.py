"""steer(), ablate() and patch(): interventions on a model inside a `with` block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.results import vectors
from stratalens.analyses.directions.direction_set import Directions
from stratalens.analyses.directions.direction_set import directions as make_directions
from stratalens.plugin.interventions.edit_hooks import Intervention
from stratalens.plugin.interventions.edited_positions import EditedPositions
from stratalens.plugin.interventions.edits import Add, Edit, Replace, SetCoordinate, orthonormal
from stratalens.plugin.interventions.model_fit import (
    check_lengths,
    check_width,
    refuse_training,
    site_hooks,
    stage_of_weights,
)
from stratalens.plugin.models.adapters import Adapter, adapt
from stratalens.store.errors import InputError, NonFiniteError, NotRecordedError, join_names, no_site_error, suggest
from stratalens.store.format.schema import site_names

PositionNames = str | int | Sequence[str | int]


def steer(
    model: Any,
    directions: Directions | Data,
    dose: float | Sequence[float] | Mapping[str, float] = 1.0,
    positions: PositionNames = "all",
    *,
    other_stage: bool = False,
) -> Intervention:
    """Add dose x direction to the activations of a model, inside a `with` block.

    The hooks are on the model only inside, also where an exception ends the block. Generation is steered too: each
    forward pass of it counts, so that "last" means the newest token. With a key-value cache, a pass after the prompt
    has no other position. Several directions are added together, and every layer of the directions is steered.

    Args:
        model: TransformerBridge, HookedTransformer or HookedRootModule.
        directions: result of `stratalens.directions`. Of several stages, those of the model's weights are used.
        dose: length of the added vector, since directions have unit length; one number, or one for each direction.
        positions: "all"; "last", "-1", "-2", ..., which count from the last token that is not padding; or any names,
            whose indices `batch` of the returned object announces before every forward pass.
        other_stage: accept directions of another checkpoint than the model's.

    Returns:
        A context manager with `batch(positions)` and `hooks`, the names of the hook points.

    Raises:
        InputError: an argument is invalid, the model is in training mode, or (while the model runs) the dose makes an
            activation NaN or infinite.
        MismatchError: the directions do not fit the model's weights or width.

    Example:
        >>> from transformer_lens.hook_points import HookPoint
        >>> from transformer_lens.HookedRootModule import HookedRootModule
        >>> class Tiny(HookedRootModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.embed, self.hook_embed = torch.nn.Embedding.from_pretrained(torch.zeros(9, 2)), HookPoint()
        ...         self.setup()
        ...
        ...     def forward(self, tokens):
        ...         return self.hook_embed(self.embed(tokens))
        >>> axis = make_directions(xr.DataArray([3.0, 4.0], dims="d_model"), site="embed")
        >>> model = Tiny()
        >>> with steer(model, axis, dose=10, positions="last"):
        ...     model(torch.tensor([[1, 2]])).tolist()
        [[[0.0, 0.0], [6.0, 8.0]]]
        >>> model(torch.tensor([[1, 2]])).tolist()
        [[[0.0, 0.0], [0.0, 0.0]]]
    """
    adapter, vectors, named, at = _fit(model, directions, other_stage)
    doses = _doses(dose, vectors)
    edits: dict[str, Edit] = {}
    for layer, hook in at.items():
        unit = torch.from_numpy(vectors.at(named, layer))
        total = doses[0] * unit[0]
        for number, own in zip(doses[1:], unit[1:], strict=True):
            total = total + number * own
        edits[hook] = Add(total)
    what = f"dose {join_names(f'{value:g}' for value in doses)} of {join_names(map(repr, vectors.names))}"
    return Intervention(adapter, edits, EditedPositions(positions), _width(vectors), what)


def ablate(
    model: Any,
    directions: Directions | Data,
    positions: PositionNames = "all",
    *,
    to: float | Sequence[float] | Data | None = None,
    other_stage: bool = False,
) -> Intervention:
    """Remove directions from the activations of a model, inside a `with` block.

    The space that the directions span is projected out; `to` gives the coordinates in it another value, such as those
    of the mean of a group.

    Args:
        model: TransformerBridge, HookedTransformer or HookedRootModule.
        directions: as for `steer`.
        positions: as for `steer`.
        to: None projects out. A number, or one for each direction, is the coordinate along it. A DataArray or result
            with one vector at each layer, such as `centroids.sel(group="s1", token="last")`, gives its coordinates.
        other_stage: accept directions of another checkpoint than the model's.

    Returns:
        A context manager, as from `steer`.

    Raises:
        InputError: as for `steer`; also if the directions are linearly dependent.
        MismatchError: the directions do not fit the model's weights or width.
    """
    adapter, vectors, named, at = _fit(model, directions, other_stage)
    edits: dict[str, Edit] = {}
    for layer, hook in at.items():
        unit = torch.from_numpy(vectors.at(named, layer))
        basis = _basis(unit, vectors)
        edits[hook] = SetCoordinate(basis, None if to is None else _targets(to, unit, basis, named, layer))
    what = f"ablating {join_names(map(repr, vectors.names))}"
    return Intervention(adapter, edits, EditedPositions(positions), _width(vectors), what)


def patch(
    model: Any,
    ds: xr.Dataset,
    *,
    stage: str | None = None,
    rows: int | str | Sequence[int] | Sequence[str] | None = None,
    positions: PositionNames = "last",
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    along: Directions | Data | None = None,
) -> Intervention:
    """Replace activations of a model by recorded ones, inside a `with` block.

    The recorded activations may come from other rows, and from another stage than the model's. `along` replaces only
    the part along directions (an interchange in a subspace).

    Args:
        model: TransformerBridge, HookedTransformer or HookedRootModule.
        ds: result of `open_store`.
        stage: stage of the recorded activations; None if there is one.
        rows: row of the store for every sequence of the batch, as numbers or prompt ids; a single one is used for all
            sequences; None takes all rows, in order.
        positions: names of recorded positions. "last", "-1", ... count from the end of each sequence; announce others
            with `batch`, as for `steer`.
        site: a recorded site.
        layers: block indices; None for all recorded ones.
        along: directions, of any stage; None replaces the whole activation.

    Returns:
        A context manager, as from `steer`.

    Raises:
        InputError: an unknown stage, row, position, site or layer; the model is in training mode.
        NotRecordedError: a row was not recorded at this stage.
    """
    adapter = adapt(model)
    refuse_training(adapter)
    where = EditedPositions(positions)
    if where.names is None:
        raise InputError("positions='all' cannot be patched; name recorded positions, for example positions=('last',)")
    values, layer_names = recorded_values(ds, site, stage, rows, where.names, layers)
    at = site_hooks(adapter, site, layer_names)
    chosen = None if along is None else make_directions(along)
    edits: dict[str, Edit] = {}
    for number, (layer, hook) in enumerate(at.items()):
        basis = None
        if chosen is not None:
            own = stage if stage in chosen.stage else (chosen.stage[0] if len(chosen.stage) == 1 else None)
            if own is None and chosen.stage:
                raise InputError(
                    f"the directions have stages {join_names(chosen.stage)}; choose one: along.sel(stage=)"
                )
            if layer is not None and layer not in chosen.layer:
                raise InputError(f"the directions have no layer {layer}; pass layers={list(chosen.layer)}")
            basis = _basis(torch.from_numpy(chosen.at(own, layer)), chosen)
        edits[hook] = Replace(torch.from_numpy(values[number]), basis)
    return Intervention(adapter, edits, where, values.shape[-1], f"patching {site}")


def recorded_values(
    ds: Any,
    site: str,
    stage: str | None,
    rows: int | str | Sequence[int] | Sequence[str] | None,
    tokens: Sequence[str],
    layers: Sequence[int] | None,
) -> tuple[Array, list[int]]:
    """Read recorded activations.

    Returns:
        values: float32 array of shape (layers, rows, tokens, features), one layer for a site outside the blocks.
        layers: block indices, empty for such a site.

    Raises:
        InputError: an unknown stage, row, position, site or layer.
        NotRecordedError: a row was not recorded at this stage.
    """
    if not isinstance(ds, xr.Dataset) or site not in ds:
        raise no_site_error(site, site_names(ds) if isinstance(ds, xr.Dataset) else ())
    array = ds[site]
    known = [str(name) for name in np.atleast_1d(ds["stage"].values)] if "stage" in ds.coords else []
    if stage is None and len(known) > 1:
        raise InputError(f"the store has stages {join_names(known)}; choose one: stage={known[-1]!r}")
    if stage is not None and stage not in known:
        raise InputError(f"stage={stage!r} is not in the store: {suggest(str(stage), known)}")
    numbers = _row_numbers(ds, rows)
    recorded = ds.get(str(array.attrs.get("recorded", "recorded")))
    if "stage" in array.dims:
        array = array.isel(stage=known.index(stage) if stage is not None else 0)
        if recorded is not None and "stage" in recorded.dims:
            recorded = recorded.isel(stage=known.index(stage) if stage is not None else 0)
    if recorded is not None and not bool(recorded.values[numbers].all()):
        names = [str(ds["entity"].values[i]) for i in numbers if not recorded.values[i]]
        raise NotRecordedError(f"rows {join_names(names)} were never recorded at this stage; record them first")
    labels = [str(name) for name in np.atleast_1d(ds["token"].values)]
    alias = {"-1": "last", "last": "-1"}
    places = []
    for token in tokens:
        name = token if token in labels else alias.get(token, token)
        if name not in labels:
            raise InputError(f"position {token!r} was not recorded: {suggest(token, labels)}")
        places.append(labels.index(name))
    array = array.isel(entity=numbers, token=places)
    blocks: list[int] = []
    if "layer" in array.dims:
        have = [int(layer) for layer in array["layer"].values]
        blocks = have if layers is None else [int(layer) for layer in layers]
        if unknown := [layer for layer in blocks if layer not in have]:
            raise InputError(f"layer {unknown[0]} was not recorded: valid: {join_names(have)}")
        array = array.isel(layer=[have.index(layer) for layer in blocks]).transpose("layer", "entity", "token", ...)
    else:
        array = array.transpose("entity", "token", ...).expand_dims("layer")
    values = np.ascontiguousarray(array.values, dtype=np.float32)
    values = values.reshape(*values.shape[:3], -1)
    if not np.isfinite(values).all():
        raise NonFiniteError(f"recorded activations of {site} are NaN or infinite at these rows and positions")
    return values, blocks


def _row_numbers(ds: xr.Dataset, rows: Any) -> NDArray[np.int64]:
    count = ds.sizes["entity"]
    if rows is None:
        return np.arange(count)
    listed = [rows] if isinstance(rows, int | str | np.integer) else list(rows)
    names = {str(name): number for number, name in enumerate(ds["entity"].values)} if "entity" in ds.coords else {}
    numbers = []
    for row in listed:
        if isinstance(row, str):
            if row not in names:
                raise InputError(f"row {row!r} is not in the store: {suggest(row, names)}")
            numbers.append(names[row])
        elif 0 <= int(row) < count:
            numbers.append(int(row))
        else:
            raise InputError(f"row {row} is not in the store; it has rows 0 to {count - 1}")
    if not numbers:
        raise InputError("rows is empty; name one row of the store for every sequence")
    return np.array(numbers, dtype=np.int64)


def _fit(
    model: Any, directions: Directions | Data, other_stage: bool
) -> tuple[Adapter, Directions, str | None, dict[int | None, str]]:
    """Check directions against a model; return the adapter, the directions, their stage and the hook of each layer."""
    adapter, chosen = adapt(model), make_directions(directions)
    refuse_training(adapter)
    at = site_hooks(adapter, chosen.site, chosen.layer)
    check_width(adapter, chosen)
    stage = stage_of_weights(adapter, chosen, other_stage)
    for layer in at:
        check_lengths(chosen.at(stage, layer), chosen, f"layer {layer}" if layer is not None else chosen.site)
    return adapter, chosen, stage, at


def _width(directions: Directions) -> int:
    return math.prod(directions.feature_shape)


def _doses(dose: Any, directions: Directions) -> list[float]:
    if isinstance(dose, Mapping):
        if unknown := [name for name in dose if name not in directions.names]:
            raise InputError(f"dose names {unknown[0]!r}: {suggest(str(unknown[0]), directions.names)}")
        listed = [dose.get(name, 0.0) for name in directions.names]
    elif isinstance(dose, Sequence | np.ndarray) and not isinstance(dose, str):
        listed = list(dose)
        if len(listed) != len(directions):
            raise InputError(f"{len(listed)} doses for {len(directions)} directions; give one number, or one for each")
    else:
        listed = [dose] * len(directions)
    return [finite_number(value, "dose") for value in listed]


def finite_number(value: Any, name: str) -> float:
    """Return a finite float.

    Raises:
        InputError: anything else.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise InputError(f"{name}={value!r} is not a finite number")
    return number


def _basis(unit: torch.Tensor, directions: Directions) -> torch.Tensor:
    try:
        return orthonormal(unit)
    except ValueError:
        raise InputError(
            f"the directions {join_names(directions.names)} are linearly dependent, so the space that they span is "
            "not well defined; select some of them: directions.sel(direction=[...])"
        ) from None


def _targets(to: Any, unit: torch.Tensor, basis: torch.Tensor, stage: str | None, layer: int | None) -> torch.Tensor:
    """Coordinates along the basis: those of a vector, or the ones that give each direction its number."""
    if isinstance(to, xr.Dataset | xr.DataArray):
        array, features = vectors(to)
        for dim, label in (("stage", stage), ("layer", layer)):
            if dim in array.dims:
                known = array[dim].values.tolist() if dim in array.coords else []
                if label not in known:
                    raise InputError(f"to= has no {dim} {label!r}; it has {join_names(known)}")
                array = array.isel({dim: known.index(label)})
        array = array.squeeze([d for d in array.dims if d not in features and array.sizes[d] == 1])
        if extra := [str(d) for d in array.dims if d not in features]:
            raise InputError(f"to= has several vectors at one place (dims {join_names(extra)}); select one of each")
        vector = torch.from_numpy(np.asarray(array.values, dtype=np.float32).reshape(-1))
        if len(vector) != basis.shape[1]:
            raise InputError(f"to= has {len(vector)} features, the directions have {basis.shape[1]}")
        return basis @ vector
    listed = list(to) if isinstance(to, Sequence | np.ndarray) else [to] * len(unit)
    if len(listed) != len(unit):
        raise InputError(f"to= has {len(listed)} numbers for {len(unit)} directions; give one, or one for each")
    numbers = torch.tensor([finite_number(value, "to") for value in listed])
    if len(unit) == 1:
        return numbers
    solution: torch.Tensor = torch.linalg.solve((unit @ basis.T).double(), numbers.double())
    return solution.float()
