"""Results on disk: text of any origin is written as the strings of zarr, without a warning."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

import stratalens as sl
from stratalens.analyses.data.results import replace_place
from stratalens.analyses.results import read_results, write_results
from support.planted import planted

NAMES = np.array(["loss", "entropy"])
TEXTS = {
    "fixed width": NAMES,
    "objects": NAMES.astype(object),
    "StringDType": NAMES.astype(np.dtypes.StringDType()),
    "StringDType with missing": NAMES.astype(np.dtypes.StringDType(na_object=np.nan)),
    "pandas": pd.Index(NAMES.tolist()),
    "pandas string": pd.Index(NAMES.tolist(), dtype="string"),
}


@pytest.mark.parametrize("origin", ["coordinate", "concat", "variable"])
@pytest.mark.parametrize("kind", TEXTS)
def test_text_is_written_as_strings(tmp_path, kind, origin):
    text = TEXTS[kind]
    if origin == "concat":
        parts = [xr.Dataset({"x": ("g", [float(i)])}) for i in range(2)]
        result = xr.concat(parts, dim=pd.Index(text, name="statistic"))
    elif origin == "coordinate":
        result = xr.Dataset({"x": ("statistic", [0.0, 1.0])}, coords={"statistic": ("statistic", text, {"why": "a"})})
    else:
        result = xr.Dataset({"statistic": ("row", np.asarray(text), {"why": "a"})})
    write_results({"origin": result}, tmp_path)  # a warning would be an error
    array = zarr.open_group(tmp_path / "origin.zarr", mode="r")["statistic"]
    assert array.metadata.data_type.to_json(zarr_format=3) == "string"
    back = read_results(tmp_path)["origin"].statistic
    assert back.values.tolist() == NAMES.tolist()
    assert origin == "concat" or back.attrs == {"why": "a"}


def test_a_place_gets_the_numbers_of_a_longer_computation():
    ds, options = planted(groups=6, per_group=8, d=8, effect=0.4), {"by": "trained_stage", "repeats": 3}
    options |= {"progress": False, "cache": False}
    sweep = sl.project(ds, permutations=5, bootstrap=5, **options)
    place = {"stage": ds.stage.values[-1], "layer": 1, "token": "last"}
    one = sl.project(ds.sel({k: [v] for k, v in place.items()}), permutations=40, bootstrap=40, **options)
    both = replace_place(sweep, one)
    for name in ("rank_correlation_p", "rank_correlation_low", "inner_rank_correlation", "coordinate", "r2_null"):
        xr.testing.assert_equal(both[name].sel(place), one[name].squeeze(("stage", "layer", "token")))
        elsewhere = {"stage": ds.stage.values[-1], "layer": 0}
        xr.testing.assert_identical(both[name].sel(elsewhere), sweep[name].sel(elsewhere))
    assert float(both.rank_correlation_p.sel(place)) != float(sweep.rank_correlation_p.sel(place))
    xr.testing.assert_identical(both.inner_rank_correlation_p_max, sweep.inner_rank_correlation_p_max)
    assert both.attrs == sweep.attrs
