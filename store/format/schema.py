"""The registry of all variables that a store may hold, and the names that no label column may have.

A `Variable` describes one array: dims, dtype, units and feature sizes. The sizes of stage, layer, entity and token
belong to the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stratalens.store.errors import InputError, quote, suggest

if TYPE_CHECKING:
    import xarray as xr


AXES = ("stage", "layer", "entity", "token")


INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


DTYPES = ("float32", "float16", "bfloat16", "float64", "bool", *INTEGERS)


BFLOAT16_NAN = 0x7FC0


COMPRESSIONS = ("none", "zstd")


PERCENTILES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 97, 99)


_NAME = re.compile(r"(?!__)(?![.])[^/\\\x00-\x1f\x7f]{1,200}")

_CONTROLS = re.compile(r"[\x80-\x9f\ud800-\udfff]")  # an older version let these names pass


def is_folder_name(name: object) -> bool:
    """Return whether a name that was read from a store stays in the folder of the store."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name != "zarr.json"


def check_name(name: str, what: str) -> str:
    """Return `name` if a new array of a store can have it.

    A name becomes the name of a folder.

    Raises:
        InputError: the name contains a slash or a control character, or starts with a dot.

    Example:
        >>> check_name("resid_post", "site")
        'resid_post'
    """
    if not is_folder_name(name) or _CONTROLS.search(name):
        raise InputError(
            f"{what} {quote(name)} cannot name an array of a store: use 1 to 200 characters without slashes or "
            "control characters, not starting with '.' or '__'. Rename it."
        )
    return name


@dataclass(frozen=True)
class Variable:
    """One array of the store.

    Args:
        name: name in the dataset, and of the folder of the array.
        dims: some of stage, layer, entity and token in that order, then the feature dims. Every variable has stage
            and entity.
        shape: sizes of the feature dims only.
        dtype: one of `DTYPES`; bfloat16 is stored as its bits in uint16.
        units: units, "" for none; stored as an attribute.
        doc: one sentence; stored as the attribute `long_name`.
        attrs: further JSON attributes, for example ``{"hook": "blocks.{layer}.hook_resid_post"}``.
        sharded: whether each layer gets its own checksummed inner chunk. None: if the variable has a layer dim and
            feature dims.
        coords: labels of feature dims, for example ``{"percentile": (10, 50, 90)}``.
        compression: "none", or "zstd" for each inner chunk at level 1. Activations shrink about 1.3 times, at a
            fraction of the speed; more if prompts share their beginning.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    units: str = ""
    doc: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    sharded: bool | None = None
    coords: Mapping[str, Sequence[int]] = field(default_factory=dict)
    compression: str = "none"

    def __post_init__(self) -> None:
        for name in (self.name, *self.dims, *self.coords):
            if not is_folder_name(name):
                check_name(name, "variable")
        if self.dtype not in DTYPES:
            raise InputError(f"variable {self.name!r} has dtype {self.dtype!r}: {suggest(self.dtype, DTYPES)}")
        if self.compression not in COMPRESSIONS:
            raise InputError(f"compression is {self.compression!r}: {suggest(str(self.compression), COMPRESSIONS)}")
        axes = tuple(d for d in self.dims if d in AXES)
        if axes != self.dims[: len(axes)] or axes != tuple(a for a in AXES if a in axes):
            raise InputError(
                f"variable {self.name!r} has dims {self.dims}: they must be some of {AXES} in that order, "
                "then the feature dims"
            )
        if "stage" not in axes or "entity" not in axes:
            raise InputError(f"variable {self.name!r} has dims {self.dims}: stage and entity are needed")
        if len(self.feature_dims) != len(self.shape) or any(n < 1 for n in self.shape):
            raise InputError(
                f"variable {self.name!r} has feature dims {self.feature_dims} but shape {self.shape}: give one "
                "positive size for each feature dim"
            )
        if len(set(self.dims)) != len(self.dims):
            raise InputError(f"variable {self.name!r} has a dim twice: {self.dims}")
        if self.sharded is None:
            object.__setattr__(self, "sharded", self.has("layer") and bool(self.shape))

    @property
    def feature_dims(self) -> tuple[str, ...]:
        """Dims after stage, layer, entity and token."""
        return tuple(d for d in self.dims if d not in AXES)

    def has(self, dim: str) -> bool:
        """Return whether `dim` is one of the dims."""
        return dim in self.dims

    @cached_property
    def storage_dtype(self) -> np.dtype[Any]:
        """NumPy dtype of the bytes on disk; uint16 for bfloat16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype).newbyteorder("<")

    @property
    def scaled_by(self) -> str:
        """Name of the variable with the scale of each row; "" unless the dtype is int8."""
        return str(self.attrs.get("scale", "")) if self.dtype == "int8" else ""

    @property
    def described_attrs(self) -> dict[str, Any]:
        """The attributes with description and units, as readers of the array see them."""
        description = {"long_name": self.doc, "units": self.units}
        return {**self.attrs, **{name: text for name, text in description.items() if text}}

    @property
    def fill(self) -> Any:
        """Value of elements that were never written, in storage dtype."""
        if self.dtype == "bfloat16":
            return np.uint16(BFLOAT16_NAN)
        dtype = np.dtype(self.dtype)
        if dtype.kind == "f":
            return dtype.type(np.nan)
        if dtype.kind == "b":
            return np.False_
        return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict from which `from_json` makes an equal variable."""
        document = asdict(self)
        if self.compression == "none":
            del document["compression"]
        return document

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Variable:
        """Make a variable from the dict that `to_json` returned."""
        # A newer minor version of the format may have more keys.
        known: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        coords = {dim: tuple(values) for dim, values in data["coords"].items()}
        return cls(**{**known, "dims": tuple(data["dims"]), "shape": tuple(data["shape"]), "coords": coords})


# Statistics of a site, and the doc of each.
STATISTICS: dict[str, str] = {
    "l2": "Euclidean norm",
    "l1": "sum of absolute values",
    "mean": "mean",
    "std": "standard deviation (population)",
    "max": "largest value",
    "min": "smallest value",
    "skewness": "skewness",
    "kurtosis": "excess kurtosis",
}


# Statistics of the output: units and doc.
OUTPUTS: dict[str, tuple[str, str]] = {
    "loss": ("nat", "-log P(token p | tokens before p) at the recorded position p; NaN where p = 0"),
    "running_loss": ("nat", "mean of loss over positions 1 .. p"),
    "entropy": ("nat", "entropy of the next-token distribution"),
    "max_logprob": ("nat", "largest next-token log-probability"),
    "logsumexp": ("nat", "log of the sum of exponentiated logits"),
    "logit_max": ("", "largest logit"),
    "logit_min": ("", "smallest logit"),
    "logit_mean": ("", "mean of the logits"),
    "logit_std": ("", "standard deviation (population) of the logits"),
    "logit_l1": ("", "sum of absolute logits"),
    "logit_l2": ("", "Euclidean norm of the logits"),
    "logit_skewness": ("", "skewness of the logits"),
    "logit_kurtosis": ("", "excess kurtosis of the logits"),
}


# All statistics of the output: those of `OUTPUTS`, the percentiles, and the losses of the answer and of the entity.
OUTPUT_STATISTICS = (*OUTPUTS, "logit_percentile", "answer_loss", "entity_loss")


# Dims and coordinates that every store has or may get; `entity` is a label column.
RESERVED_LABELS = ("stage", "stage_order", "weights_fingerprint", "layer", "token", "exposure")


# Sites that have a short name in TransformerLens. A prompt table is checked against them without loading torch.
_BLOCK_SITES = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "z",
    "q",
    "k",
    "v",
)


SITE_NAMES = (
    *_BLOCK_SITES,
    *("attn_in", "mlp_in", "result", "pattern", "attn_scores", "embed", "pos_embed", "ln_final"),
    *(f"{stack}_{site}" for stack in ("encoder", "decoder") for site in (*_BLOCK_SITES, "ln_final")),
    "decoder_cross_attn_out",
)


FEATURE_DIMS = ("d_model", "d_mlp", "head", "d_head", "kv_head", "percentile")


COORDINATES = ("stage_order", "weights_fingerprint", "recorded", "exposure", "entity_text")


# Names of the store's own dims, coordinates and variables, which no label column of a prompt table may have.
RESERVED_NAMES = frozenset(
    [
        *(*AXES, *FEATURE_DIMS, *COORDINATES, *OUTPUT_STATISTICS, *SITE_NAMES),
        *(f"{site}_{statistic}" for site in SITE_NAMES for statistic in STATISTICS),
    ]
) - {"entity"}


def site_variable(
    site: str,
    feature_dims: Sequence[str],
    feature_shape: Sequence[int],
    dtype: str,
    hook: str,
    *,
    doc: str = "",
) -> Variable:
    """Describe the activations at one site.

    The variable has a layer dim if `hook` contains ``{layer}``. With dtype int8 it is scaled by row.

    >>> site_variable("resid_post", ["d_model"], [64], "float32", "blocks.{layer}.hook_out").dims
    ('stage', 'layer', 'entity', 'token', 'd_model')
    >>> site_variable("embed", ["d_model"], [64], "float32", "embed.hook_out").dims
    ('stage', 'entity', 'token', 'd_model')
    """
    layered = ("layer",) if "{layer}" in hook else ()
    scaled = {"scale": f"{site}_scale", "error": f"{site}_error"} if dtype == "int8" else {}
    return Variable(
        name=site,
        dims=("stage", *layered, "entity", "token", *feature_dims),
        shape=tuple(int(n) for n in feature_shape),
        dtype=dtype,
        doc=doc or f"activations at {hook}",
        attrs={"hook": hook, "kind": "site", **scaled},
    )


def statistic_variables(site: Variable) -> list[Variable]:
    """Describe the statistics of a site over its last feature dim, float32; at head sites, one value for each head."""
    *remaining, reduced = site.feature_dims
    dims = tuple(d for d in site.dims if d != reduced)
    return [
        Variable(
            name=f"{site.name}_{key}",
            dims=dims,
            shape=site.shape[: len(remaining)],
            doc=f"{doc} of {site.name} over {reduced}",
            attrs={"kind": "statistic", "site": site.name, "statistic": key, "hook": site.attrs.get("hook", "")},
            sharded=False,
        )
        for key, doc in STATISTICS.items()
    ]


def output_variables(percentiles: Sequence[int] = PERCENTILES) -> list[Variable]:
    """Describe the statistics of the model's output at each recorded position, float32 (stage, entity, token)."""
    dims = ("stage", "entity", "token")
    variables = [
        Variable(name=name, dims=dims, units=units, doc=doc, attrs={"kind": "output"})
        for name, (units, doc) in OUTPUTS.items()
    ]
    if percentiles:
        variables.append(
            Variable(
                name="logit_percentile",
                dims=(*dims, "percentile"),
                shape=(len(percentiles),),
                doc="percentiles of the logits",
                attrs={"kind": "output"},
                coords={"percentile": tuple(int(p) for p in percentiles)},
            )
        )
    return variables


def answer_variable() -> Variable:
    """Describe the mean loss of the answer's tokens after the prompt, float32 (stage, entity)."""
    return Variable(
        name="answer_loss",
        dims=("stage", "entity"),
        units="nat",
        doc="mean loss of the answer's tokens, run behind the prompt",
        attrs={"kind": "output"},
    )


def entity_variable() -> Variable:
    """Describe the mean loss of the entity's tokens in the prompt, float32 (stage, entity)."""
    return Variable(
        name="entity_loss",
        dims=("stage", "entity"),
        units="nat",
        doc="mean loss of the entity's tokens in the prompt; NaN without an entity, or where it is the first token",
        attrs={"kind": "output"},
    )


def recorded_variable(group: int) -> Variable:
    """Describe the flag that marks the recorded rows of one group of variables, bool (stage, entity)."""
    return Variable(
        name="recorded" if group == 0 else f"recorded_{group}",
        dims=("stage", "entity"),
        dtype="bool",
        doc="whether this row was recorded at this stage (missing is not zero)",
        attrs={"kind": "flag"},
    )


def with_recorded_flag(variable: Variable, group: int) -> Variable:
    """Add the name of its `recorded` flag to the attributes of a variable."""
    return replace(variable, attrs={**variable.attrs, "recorded": recorded_variable(group).name})


def site_names(ds: xr.Dataset) -> list[str]:
    """List the variables that may be activations: at least one vector for each entity.

    A variable without the attribute `kind` counts too, so datasets from other sources have sites.
    """
    return [
        str(name)
        for name, variable in ds.data_vars.items()
        if variable.attrs.get("kind", "site") == "site" and "entity" in variable.dims and {*variable.dims} - {*AXES}
    ]
