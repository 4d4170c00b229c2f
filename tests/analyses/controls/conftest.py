from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from support.planted import planted, with_statistics


@pytest.fixture(scope="module")
def norm_only() -> xr.Dataset:
    """The groups differ only in the length of their activations."""
    ds = planted(stages=1, layers=1, groups=2, per_group=300, effect=0, d=24, tokens=("entity_last", "last"))
    group = np.unique(ds.trained_stage.values, return_inverse=True)[1]
    # The mean direction makes the length visible to a linear probe.
    values = (ds.resid_post.values + 2) * (1 + 0.12 * group)[None, None, :, None, None]
    return with_statistics(ds.assign(resid_post=(ds.resid_post.dims, values.astype("f4"))))


@pytest.fixture(scope="module")
def real() -> xr.Dataset:
    """The groups differ along a direction, not in length."""
    ds = planted(stages=2, layers=1, groups=2, per_group=200, effect=2.0, d=24, tokens=("last",))
    centred = ds.assign(resid_post=ds.resid_post - ds.resid_post.mean("entity"))
    return centred.assign(resid_post_l2=np.sqrt((centred.resid_post**2).sum("d_model")))
