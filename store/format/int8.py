"""Row-scaled int8: one float32 scale for each row, whole numbers from -127 to 127 beside it.

What lives here: the arrays that go with a scaled site, and the arithmetic. What does
not: filling (`buffers`), reading (`arrays`), and stating the error (`measured`).

A row is one vector over the last feature dim (for head sites: one head). Its scale is
the largest absolute value / 127, rounded up, so that no value lies outside; a value is
then off by at most half a scale. -128 stands for a row that was never recorded.
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
    """The variables, and behind each scaled one the arrays of its scales and errors.

    >>> from stratalens.store.format.schema import site_variable
    >>> site = site_variable("z", ["head", "d_head"], [9, 64], "int8", "blocks.{layer}.attn.hook_z")
    >>> [(v.name, v.dtype, v.dims[3:]) for v in with_scale_arrays([site])]
    [('z', 'int8', ('token', 'head', 'd_head')), ('z_scale', 'float32', ('token', 'head')), ('z_error', 'float32', ('token', 'head'))]
    """  # noqa: E501 - a doctest's output is one line
    names = {v.name for v in variables}
    found: list[Variable] = []
    for variable in variables:
        found.append(variable)
        if not variable.scaled_by or variable.scaled_by in names:
            continue
        last = variable.dims[-1]
        for name, kind, doc in (
            (variable.scaled_by, "scale", f"what the whole numbers of {variable.name} are multiplied by"),
            (variable.attrs["error"], "error", f"norm of what int8 lost of {variable.name} over {last}, by its norm"),
        ):
            attrs = {"kind": kind, "site": variable.name, "hook": variable.attrs.get("hook", "")}
            found.append(
                Variable(
                    name, variable.dims[:-1], variable.shape[:-1], doc=doc, attrs=attrs, sharded=variable.has("layer")
                )
            )
    return found


def quantise(
    values: NDArray[np.float32], where: str
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]:
    """Whole numbers, scales and relative errors of rows.

    Parameters
    ----------
    values
        [array, shape: (..., feature), float32] a row of NaN is a missing one.
    where
        For the error's message.

    Returns
    -------
    numbers, scale, error
        [array, shape: (..., feature), int8], [array, shape: (...), float32] and
        [array, shape: (...), float32], the Euclidean norm of the difference divided
        by that of the row, 0 for a row of zeros.

    Raises
    ------
    NonFiniteError
        A row holds infinity, or NaN beside numbers.

    >>> numbers, scale, error = quantise(np.array([[0.9, -2.0, 0.3]], np.float32), "x")
    >>> numbers.tolist(), bool(abs(numbers * scale[:, None] - [[0.9, -2.0, 0.3]]).max() <= scale[0] / 2)
    ([[57, -127, 19]], True)
    """
    largest = np.abs(values).max(axis=-1)
    missing = np.isnan(largest)
    if not np.isfinite(largest).all() and not (np.isnan(values) | np.isfinite(largest)[..., None]).all():
        raise NonFiniteError(
            f"{where}: a row holds infinity, or NaN beside numbers, which int8 cannot hold: record with "
            "dtype='float32', 'bfloat16' or 'float16'"
        )
    scale = (largest / np.float32(LARGEST)).astype(np.float32)
    # Rounded up, so that no quotient lies above 127; down where the product would lie above float32.
    short = scale.astype(np.float64) * LARGEST < largest
    scale = np.where(short, np.nextafter(scale, np.float32(np.inf)), scale)
    above = scale.astype(np.float64) * LARGEST > _FLOAT32_MAX
    scale = np.where(above, np.nextafter(scale, np.float32(0)), scale)
    ratio = values / np.where(scale > 0, scale, np.float32(1))[..., None]
    numbers = np.rint(ratio)
    np.clip(numbers, -LARGEST, LARGEST, out=numbers)
    # In units of the scale, so that neither square overflows.
    off, whole = ratio - numbers, np.einsum("...i,...i->...", ratio, ratio)
    lost = np.einsum("...i,...i->...", off, off)
    error = np.sqrt(lost / np.where(whole > 0, whole, np.float32(1)), dtype=np.float32)
    if missing.any():
        numbers[missing] = MISSING
    return numbers.astype(np.int8), scale, error


def summarize_errors(stages: Sequence[Any]) -> dict[str, float]:
    """Attributes of a site from (largest error, mean error, rows) of each stage, None where it was not measured.

    >>> summarize_errors([[0.5, 0.25, 1], None, [0.25, 0.125, 3]])
    {'max_relative_error': 0.5, 'mean_relative_error': 0.15625}
    """
    found = [entry for entry in stages if entry]
    rows = sum(entry[2] for entry in found)
    if not rows:
        return {}
    mean = math.fsum(entry[1] * entry[2] for entry in found) / rows
    return {"max_relative_error": max(entry[0] for entry in found), "mean_relative_error": mean}


def restore(numbers: NDArray[np.int8], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 values [shape: as numbers]; NaN where nothing was recorded."""
    values = numbers.astype(np.float32)
    values *= scale[..., None]
    return values
