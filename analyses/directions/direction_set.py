"""Directions: named unit vectors at places of a model, with the provenance of the store they come from."""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.data.array_types import Array, Data
from stratalens.analyses.data.results import SOURCE_ATTRS, carried_attrs, vectors
from stratalens.store.errors import InputError, join_names, suggest
from stratalens.store.format.schema import SITE_NAMES

_PLACES = ("stage", "layer")
# Dims of a caller's array that name directions, and are no features.
_NAMES = ("direction", "entity", "random", "dose")
_FEATURE_DIM = re.compile(r"d_\w+|head|kv_head|\w+_dim\d*")
_LISTS = ("entities", "shuffled")


@dataclass(frozen=True, eq=False)
class Directions:
    """Named unit vectors at places of a model, made by `stratalens.directions`.

    Attributes:
        data: Dataset over the dims (stage, layer, direction, features); a source without stages has no dim stage, a
            site outside the blocks has no dim layer:

            - vector (stage, layer, direction, features): float32 unit vectors, NaN where the source has length zero.
            - scale (stage, layer, direction): float64, length of the source vector; of principal components the
              standard deviation of the activations.

            Coordinates: token (direction), the position of the activations; weights_fingerprint (stage); the labels
            of the source, such as pair_first and pair_second. Attributes: site, hook, model, method and others.

    Example:
        >>> axis = directions(xr.DataArray([[3.0, 4.0]], dims=("layer", "d_model"), coords={"layer": [2]}),
        ...     site="resid_post", name="axis")
        >>> axis
        Directions(1 direction: axis; site resid_post; layers 2; 2 features)
        >>> axis.vectors.values.round(3).tolist(), axis.scale.values.tolist()
        ([[[0.6000000238418579, 0.800000011920929]]], [[5.0]])
    """

    data: xr.Dataset

    @property
    def vectors(self) -> xr.DataArray:
        """float32 unit vectors (stage, layer, direction, features)."""
        return self.data["vector"]

    @property
    def scale(self) -> xr.DataArray:
        """float64 lengths of the source vectors (stage, layer, direction)."""
        return self.data["scale"]

    @property
    def site(self) -> str:
        """Short name of the site, or its full TransformerLens name."""
        return str(self.data.attrs["site"])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the directions."""
        return tuple(str(name) for name in self.data["direction"].values)

    @property
    def stage(self) -> tuple[str, ...]:
        """Names of the stages; empty where the source has none."""
        return tuple(str(name) for name in np.atleast_1d(self.data["stage"].values)) if "stage" in self.data else ()

    @property
    def layer(self) -> tuple[int, ...]:
        """Block indices; empty for a site outside the blocks."""
        return tuple(int(layer) for layer in self.data["layer"].values) if "layer" in self.data.dims else ()

    @property
    def token(self) -> tuple[str, ...]:
        """Position of the activations that each direction comes from; empty where the source does not say."""
        return tuple(str(name) for name in self.data["token"].values) if "token" in self.data.coords else ()

    @property
    def fingerprints(self) -> dict[str, str]:
        """Weights fingerprint of each stage; empty where the source does not have them."""
        if "weights_fingerprint" not in self.data.coords:
            return {}
        values = np.atleast_1d(self.data["weights_fingerprint"].values)
        return dict(zip(self.stage, map(str, values), strict=True))

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the feature dims."""
        return tuple(str(d) for d in self.data["vector"].dims if d not in (*_PLACES, "direction"))

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Sizes of the feature dims."""
        return tuple(self.data.sizes[d] for d in self.features)

    @property
    def entities(self) -> frozenset[str]:
        """Values of `entity_id` whose activations made the directions; empty where this is unknown."""
        return frozenset(str(name) for name in self.data.attrs.get("entities", ()))

    def sel(self, **labels: Any) -> Directions:
        """Select by stage, layer, direction or token, as in xarray; a single label keeps its dim.

        Raises:
            InputError: an unknown label.
        """
        data = self.data
        for dim, wanted in labels.items():
            known = (
                [v.item() if isinstance(v, np.generic) else v for v in np.atleast_1d(data[dim].values)]
                if (dim in data.coords and dim in (*_PLACES, "direction", "token"))
                else None
            )
            if known is None:
                valid = [d for d in (*_PLACES, "direction", "token") if d in data.coords]
                raise InputError(f"directions have no {dim!r} to select by: {suggest(str(dim), valid)}")
            chosen = [wanted] if isinstance(wanted, str) or np.ndim(wanted) == 0 else list(wanted)
            for label in chosen:
                if label not in known:
                    raise InputError(
                        f"{dim}={label!r} is not among the directions: {suggest(str(label), map(str, known))}"
                    )
            axis = "direction" if dim == "token" else dim
            index = [i for label in chosen for i, value in enumerate(known) if value == label]
            data = data.isel({axis: index}) if axis in data.dims else data
        return Directions(data)

    def at(self, stage: str | None, layer: int | None) -> Array:
        """Unit vectors at one place.

        Args:
            stage: name of a stage; None where there is one or none.
            layer: block index; None for a site outside the blocks.

        Returns:
            float32 array of shape (directions, features), features flattened.
        """
        data = self.data["vector"]
        if "stage" in data.dims:
            names = list(self.stage)
            data = data.isel(stage=names.index(stage) if stage is not None else 0)
        if "layer" in data.dims:
            data = data.isel(layer=list(self.layer).index(layer) if layer is not None else 0)
        return np.ascontiguousarray(data.values.reshape(data.sizes["direction"], -1), dtype=np.float32)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a new labelled zarr group, or to a file that ends in .safetensors; replaces an earlier one.

        Raises:
            InputError: the folder does not exist, or `path` is something else.
        """
        from stratalens.analyses.directions.direction_files import write_directions

        write_directions(self.data, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Directions:
        """Read what `save` wrote.

        Raises:
            InputError: `path` does not exist or does not contain directions.
        """
        from stratalens.analyses.directions.direction_files import read_directions

        return cls(read_directions(path))

    def __len__(self) -> int:
        return self.data.sizes["direction"]

    def __repr__(self) -> str:
        count = f"{len(self)} direction{'s' if len(self) != 1 else ''}: {join_names(self.names, 3)}"
        stages = f"; stages {join_names(self.stage, 4)}" if self.stage else ""
        layers = f"; layers {join_names(self.layer, 6)}" if self.layer else ""
        width = " x ".join(map(str, self.feature_shape))
        return f"Directions({count}; site {self.site}{stages}{layers}; {width} features)"


def directions(
    x: Data | Directions | str | os.PathLike[str],
    site: str | None = None,
    *,
    pairs: str | Sequence[tuple[object, object]] = "all",
    name: str | None = None,
    entities: Sequence[object] | None = None,
) -> Directions:
    """Make named unit vectors from probes, centroids, principal components or any vectors.

    A direction of a probe points to the later group (`pair_second`). A direction of centroids is the difference of
    two of them, from the first to the second group of a pair.

    Args:
        x: result of `probe` (or another result with `coef`), `centroids` or `pca`; a DataArray with a feature dim,
            whose vectors are taken as they are; a path that `Directions.save` wrote.
        site: short name of the site, or its full TransformerLens name; None takes that of `x`.
        pairs: of centroids: "all" pairs of groups, or a list of (from, to).
        name: name of the direction where `x` has a single one without a label.
        entities: values of `entity_id` whose activations made `x`; None takes those of a probe. An intervention then
            scores the other entities.

    Returns:
        Directions. Dims stage and layer stay. The other labels are joined into the dim `direction`, whose names are
        those of the caller's coordinate `direction`, the pairs, or the components.

    Raises:
        InputError: no vectors, an unknown site or pair, joint tokens, or two directions of one name.

    Example:
        >>> centroids = xr.Dataset(
        ...     {"centroid": (("layer", "group", "d_model"), [[[0.0, 0.0], [0.0, 2.0]]])},
        ...     coords={"layer": [3], "group": ["old", "new"]}, attrs={"site": "resid_post"})
        >>> axis = directions(centroids)
        >>> axis.names, axis.vectors.values.tolist(), axis.scale.values.tolist()
        (('old v new',), [[[0.0, 1.0]]], [[2.0]])
    """
    if isinstance(x, Directions):
        return x
    if isinstance(x, str | os.PathLike):
        return Directions.load(x)
    if not isinstance(x, xr.Dataset | xr.DataArray):
        raise InputError(
            f"directions takes a result of probe, centroids or pca, a DataArray or a path; got {type(x).__name__}"
        )
    if x.attrs.get("tokens") == "joint":
        raise InputError("a probe of joint tokens has no direction at one position; fit it with tokens='each'")
    attrs: dict[str, Any] = {**carried_attrs(x), "site": _site(x, site)}
    if "shuffled" in x.attrs:
        attrs["shuffled"] = x.attrs["shuffled"]
    lengths: xr.DataArray | None = None
    if isinstance(x, xr.Dataset) and "centroid" in x and "coef" not in x:
        array, features = _differences(x, pairs)
    else:
        array, listed = vectors(x)
        features = _feature_dims(array, listed)
        if isinstance(x, xr.Dataset) and "vector" in x and "variance" in x:
            lengths = x["variance"] ** 0.5
    if entities is None and isinstance(x, xr.Dataset):
        entities = _fitted_entities(x)
    if entities is not None:
        attrs["entities"] = sorted({str(entity) for entity in entities})
    data = _arrange(array, features, lengths, name)
    return Directions(data.assign_attrs({k: v for k, v in attrs.items() if k in (*SOURCE_ATTRS, *_LISTS)}))


def _fitted_entities(probes: xr.Dataset) -> list[str] | None:
    """Entities that a probe was fitted on; None of another result. Of pairs of groups, those of these groups."""
    if not {"entity_fold", "entity_id"} <= set(probes.variables):
        return None
    fitted = probes["entity_fold"].values >= 0
    target = str(probes.attrs.get("target", ""))
    if target in probes.coords and {"pair_first", "pair_second"} <= set(probes.coords):
        labels = probes[target].values.astype(str)
        ends = {str(g) for side in ("pair_first", "pair_second") for g in np.atleast_1d(probes[side].values)}
        if ends <= set(labels.tolist()):  # not those of one group against the rest
            fitted = fitted & np.isin(labels, sorted(ends))
    return [str(entity) for entity in probes["entity_id"].values[fitted]]


def _site(x: Data, site: Any) -> str:
    if site is not None:
        if not isinstance(site, str) or not site:
            raise InputError(f"site={site!r} is not a name. Pass a short name such as 'resid_post'.")
        return site
    known = x.attrs.get("site") or (x.name if isinstance(x, xr.DataArray) and x.name in SITE_NAMES else None)
    if not known:
        raise InputError("the vectors do not say which site they belong to; pass site=, for example site='resid_post'")
    return str(known)


def _feature_dims(array: xr.DataArray, listed: Sequence[Hashable]) -> list[Hashable]:
    """Return the feature dims: those with a name of features, else all that are no labels."""
    features = [d for d in listed if d not in _NAMES]
    typical = [d for d in features if _FEATURE_DIM.fullmatch(str(d))]
    if not features:
        raise InputError(
            f"the vectors have no feature dim (dims: {', '.join(map(str, array.dims))}); name it as in the store, "
            "for example d_model"
        )
    return typical or features


def _differences(
    result: xr.Dataset, pairs: str | Sequence[tuple[object, object]]
) -> tuple[xr.DataArray, list[Hashable]]:
    """Differences between the centroids of pairs of groups."""
    array, listed = vectors(result)
    features = _feature_dims(array, listed)
    labels = [v.item() if isinstance(v, np.generic) else v for v in array["group"].values]
    texts = [str(label) for label in labels]
    if isinstance(pairs, str):
        if pairs != "all":
            raise InputError(f"pairs={pairs!r} is not valid for centroids. Pass 'all' or a list of (from, to).")
        chosen = list(combinations(range(len(labels)), 2))
    else:
        chosen = []
        unchecked: Sequence[Any] = pairs
        for pair in unchecked:
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"pairs contains {pair!r}; pass a list of (from, to)")
            for group in pair:
                if str(group) not in texts:
                    raise InputError(f"pairs names {group!r}, which is no group: {suggest(str(group), texts)}")
            chosen.append((texts.index(str(pair[0])), texts.index(str(pair[1]))))
    if not chosen:
        raise InputError("a direction of centroids needs two groups; the result has one")
    first, second = (array.isel(group=[pair[side] for pair in chosen]) for side in (0, 1))
    ends = [(texts[a], texts[b]) for a, b in chosen]
    bare = [c for c in array.coords if "group" in array[c].dims]
    difference = second.drop_vars(bare) - first.drop_vars(bare)
    difference = difference.rename(group="pair").assign_coords(
        pair=[f"{a} v {b}" for a, b in ends],
        pair_first=("pair", [a for a, _ in ends]),
        pair_second=("pair", [b for _, b in ends]),
    )
    return difference, features


def _arrange(
    array: xr.DataArray, features: Sequence[Hashable], lengths: xr.DataArray | None, name: str | None
) -> xr.Dataset:
    """Bring vectors into the dims (stage, layer, direction, features), with unit length."""
    for dim in _PLACES:  # a selected stage or layer is a coordinate without a dim
        if dim in array.coords and dim not in array.dims:
            array = array.expand_dims(dim)
            lengths = lengths.expand_dims(dim) if lengths is not None else None
    places = [d for d in _PLACES if d in array.dims]
    others = [d for d in array.dims if d not in (*places, *features)]
    array = array.transpose(*places, *others, *features)
    shape, width = [array.sizes[d] for d in places], [array.sizes[d] for d in features]
    values = np.asarray(array.values, dtype=np.float64).reshape(*shape, -1, int(np.prod(width)))
    length = np.sqrt((values**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = (values / length[..., None]).astype(np.float32)
    unit[~np.isfinite(unit).all(axis=-1)] = np.nan
    if lengths is not None:
        length = np.asarray(lengths.transpose(*places, *others).values, dtype=np.float64).reshape(length.shape)
    names, labels = _names(array, others, name)
    coords: dict[Hashable, Any] = {d: array[d].values for d in places if d in array.coords}
    if "stage" in places:
        coords |= {
            c: ("stage", np.atleast_1d(array[c].values))
            for c in ("stage_order", "weights_fingerprint")
            if c in array.coords and array[c].dims in (("stage",), ())
        }
    coords |= {"direction": names, **{label: ("direction", values) for label, values in labels.items()}}
    dims = (*places, "direction")
    return xr.Dataset(
        {
            "vector": ((*dims, *features), unit.reshape(*shape, len(names), *width)),
            "scale": (dims, length),
        },
        coords=coords,
    )


def _names(array: xr.DataArray, others: Sequence[Hashable], name: str | None) -> tuple[Array, Mapping[Hashable, Array]]:
    """Names of the directions, and their labels by dim or coordinate of the source."""
    sizes = [array.sizes[d] for d in others]
    places = np.indices(sizes).reshape(len(others), int(np.prod(sizes)))
    labels: dict[Hashable, Array] = {}
    for dim, index in zip(others, places, strict=True):
        own = array[dim].values if dim in array.coords else np.arange(array.sizes[dim])
        labels[dim] = _plain(own)[index]
        for coordinate in array.coords:
            if array[coordinate].dims == (dim,) and coordinate not in (dim, "direction"):
                labels[coordinate] = _plain(array[coordinate].values)[index]
    if "token" in array.coords and "token" not in labels and array["token"].ndim == 0:
        labels["token"] = np.full(places.shape[1], str(array["token"].item()), object)
    spoken = [d for d in others if array.sizes[d] > 1] or [d for d in others if d != "token"][:1]
    texts = [_describe(spoken, labels, i) for i in range(places.shape[1])]
    if not spoken:
        texts = [name or str(array.coords["pair"].item() if "pair" in array.coords else "direction")]
    elif name is not None and len(texts) == 1:
        texts = [name]
    if repeated := sorted({text for text in texts if texts.count(text) > 1}):
        raise InputError(f"two directions are called {repeated[0]!r}; give every direction its own name")
    labels.pop("direction", None)
    return np.array(texts, object), labels


def _plain(values: Array) -> Array:
    """Labels of a coordinate: text as objects, numbers as they are."""
    return np.asarray(values) if np.asarray(values).dtype.kind in "fiub" else np.array([str(v) for v in values], object)


def _describe(dims: Sequence[Hashable], labels: Mapping[Hashable, Array], index: int) -> str:
    words = []
    for dim in dims:
        value = labels[dim][index]
        plain = dim in ("direction", "pair", "group", "entity")
        words.append(f"at {value}" if dim == "token" else str(value) if plain else f"{dim} {value}")
    tokens = [word for word in words if word.startswith("at ")]
    return " ".join([", ".join(word for word in words if word not in tokens), *tokens]).strip()
