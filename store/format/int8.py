"""Row-scaled int8: integers from -127 to 127 and one float32 scale for each row.

A row is one vector over the last feature dim; at head sites, one head. Its scale is the largest absolute
value / 127, rounded up, so that every value fits and has an error of at most half a scale.
The integer -128 marks a row that was never recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.store.errors import NonFiniteError
from stratalens.store.format.schema import Variable

LARGEST = 127


MISSING = -128


_FLOAT32_MAX = float(np.finfo(np.float32).max)


def with_scale_arrays(variables: Sequence[Variable]) -> list[Variable]:
    """Insert the arrays of scales and errors after each variable that is scaled.

    >>> from stratalens.store.format.schema import site_variable
    >>> site = site_variable("z", ["head", "d_head"], [9, 64], "int8", "blocks.{layer}.attn.hook_z")
    >>> [(v.name, v.dtype, v.dims[3:]) for v in with_scale_arrays([site])]
    [('z', 'int8', ('token', 'head', 'd_head')), ('z_scale', 'float32', ('token', 'head')), ('z_error', 'float32', ('token', 'head'))]
    """  # noqa: E501 - a doctest's output is one line
    names = {v.name for v in variables}
    result: list[Variable] = []
    for variable in variables:
        result.append(variable)
        if not variable.scaled_by or variable.scaled_by in names:
            continue
        last = variable.dims[-1]
        for name, kind, doc in (
            (variable.scaled_by, "scale", f"what the whole numbers of {variable.name} are multiplied by"),
            (variable.attrs["error"], "error", f"norm of what int8 lost of {variable.name} over {last}, by its norm"),
        ):
            attrs = {"kind": kind, "site": variable.name, "hook": variable.attrs.get("hook", "")}
            dims, shape = variable.dims[:-1], variable.shape[:-1]
            result.append(Variable(name, dims, shape, doc=doc, attrs=attrs, sharded=variable.has("layer")))
    return result


def quantise(
    values: NDArray[np.float32], where: str
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Quantise rows to integers with a scale and a relative error for each row.

    Args:
        values: float32 array of shape (..., feature). A row of NaN is a missing row.
        where: place of the values, for the error message.

    Returns:
        numbers: int8 array of shape (..., feature).
        scale: float32 array of shape (...).
        error: float32 array of shape (...): the Euclidean norm of the difference divided by the norm of the
            row; 0 for a row of zeros.

    Raises:
        NonFiniteError: a row holds infinity, or NaN together with numbers.

    Example:
        >>> numbers, scale, error = quantise(np.array([[0.9, -2.0, 0.3]], np.float32), "x")
        >>> numbers.tolist(), bool(abs(numbers * scale[:, None] - [[0.9, -2.0, 0.3]]).max() <= scale[0] / 2)
        ([[57, -127, 19]], True)
    """
    largest = np.abs(values).max(axis=-1)
    missing = np.isnan(largest)
    if not np.isfinite(largest).all() and not (np.isnan(values) | np.isfinite(largest)[..., None]).all():
        raise NonFiniteError(
            f"{where}: a row holds infinity, or NaN together with numbers, which int8 cannot represent. Record with "
            "dtype='float32', 'bfloat16' or 'float16'"
        )
    scale = (largest / np.float32(LARGEST)).astype(np.float32)
    # Round up, so that no quotient exceeds 127; round down where the product would overflow float32.
    short = scale.astype(np.float64) * LARGEST < largest
    scale = np.where(short, np.nextafter(scale, np.float32(np.inf)), scale)
    above = scale.astype(np.float64) * LARGEST > _FLOAT32_MAX
    scale = np.where(above, np.nextafter(scale, np.float32(0)), scale)
    ratio = values / np.where(scale > 0, scale, np.float32(1))[..., None]
    numbers = np.rint(ratio)
    np.clip(numbers, -LARGEST, LARGEST, out=numbers)
    # In units of the scale, so that neither square overflows.
    difference = ratio - numbers
    square = np.einsum("...i,...i->...", ratio, ratio)
    lost = np.einsum("...i,...i->...", difference, difference)
    error = np.sqrt(lost / np.where(square > 0, square, np.float32(1)), dtype=np.float32)
    if missing.any():
        numbers[missing] = MISSING
    return numbers.astype(np.int8), scale, error


def summarize_errors(stages: Sequence[Any]) -> dict[str, float]:
    """Combine the errors of all stages into attributes of a site.

    Args:
        stages: (largest error, mean error, rows) of each stage; None where a stage was not measured.

    Example:
        >>> summarize_errors([[0.5, 0.25, 1], None, [0.25, 0.125, 3]])
        {'max_relative_error': 0.5, 'mean_relative_error': 0.15625}
    """
    measured = [entry for entry in stages if entry]
    rows = sum(entry[2] for entry in measured)
    if not rows:
        return {}
    mean = math.fsum(entry[1] * entry[2] for entry in measured) / rows
    return {"max_relative_error": max(entry[0] for entry in measured), "mean_relative_error": mean}


def restore(numbers: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return float32 values of the shape of `numbers`; NaN where nothing was recorded."""
    values = numbers.astype(np.float32)
    values *= scale[..., None]
    return values
