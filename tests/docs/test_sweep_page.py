"""The worked examples of docs/sweep.md, run as they are written, and the numbers they promise."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from support.paths import DOCS

PAGE = DOCS / "sweep.md"


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    names: dict[str, Any] = {}
    blocks = re.findall(r"```{code-cell} python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 4
    for number, block in enumerate(blocks):
        exec(compile(block, f"docs/sweep.md, block {number + 1}", "exec"), names)
    return names


def test_the_mean_cosine_is_that_of_all_pairs(names: dict[str, Any]) -> None:
    x = names["x"][0, 1, :, 0].astype(float)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    pairs = cosine[np.triu_indices(len(x), 1)]
    assert float(names["anisotropy"].sel(stage="untrained", layer=1, token="last")) == pytest.approx(
        pairs.mean(), abs=1e-5
    )
    assert names["anisotropy"].chunks is not None


def test_the_label_is_readable_where_it_was_put(names: dict[str, Any]) -> None:
    accuracy = names["accuracy"].isel(token=0)
    assert (accuracy.sel(stage=["halfway", "trained"], layer=[2, 3]) > 0.8).all()
    assert (accuracy.sel(layer=[0, 1]) < 0.75).all()
    assert (accuracy.sel(stage="untrained") < 0.75).all()


def test_the_dimensions_are_those_of_the_eigenvalues(names: dict[str, Any]) -> None:
    x = names["x"][2, 3, :, 0].astype(float)
    values = np.linalg.eigvalsh(np.cov(x.T))
    result = names["spread"].sel(stage="trained", layer=3).squeeze()
    assert float(result.dimensions) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-4)
    assert names["spread"].widest.dims == ("stage", "token")
