"""Stores of random activations, and a ragged Dataset."""

import numpy as np
import pytest
import xarray as xr

from stratalens.store.reading.open import open_store
from support.stores import make_store

STAGES, LAYERS, ENTITIES, TOKENS, D = 3, 2, 40, ("entity_last", "last"), 8


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_store(
        tmp_path_factory.mktemp("store") / "run.zarr",
        STAGES,
        LAYERS,
        ENTITIES,
        TOKENS,
        D,
        labels={"number": np.arange(ENTITIES) * 10},
        block_size=8,
    )


@pytest.fixture(params=["auto", None], ids=["dask", "lazy"])
def ds(path, request):
    return open_store(path, chunks=request.param)


@pytest.fixture(scope="module")
def values(path):
    """Return the activations (stage, layer, entity, token, d_model) in memory, as zarr-python alone reads them."""
    import zarr

    return zarr.open_group(path, mode="r")["resid_post"][...]


@pytest.fixture(scope="module")
def stores(tmp_path_factory, path):
    folder = tmp_path_factory.mktemp("dtypes")
    labels = {"number": np.arange(ENTITIES) * 10}
    return {"float32": path} | {
        dtype: make_store(folder / dtype, STAGES, LAYERS, ENTITIES, TOKENS, D, labels=labels, block_size=8, dtype=dtype)
        for dtype in ("bfloat16", "int8")
    }


@pytest.fixture
def ragged():
    """Return all positions of three prompts with 4, 2 and 3 tokens, two layers, in memory."""
    values = np.random.default_rng(0).standard_normal((1, 2, 3, 4, 5)).astype(np.float32)
    for row, length in enumerate((4, 2, 3)):
        values[:, :, row, : 4 - length] = np.nan
    array = xr.DataArray(
        values,
        dims=("stage", "layer", "entity", "token", "d_model"),
        name="resid_post",
        coords={"stage": ["m"], "layer": [0, 3], "entity": ["a", "b", "c"], "token": [-4, -3, -2, -1]},
        attrs={"kind": "site", "hook": "blocks.{layer}.hook_out"},
    )
    return array.to_dataset()
