"""Results on disk: text of any origin is written as the strings of zarr, without a warning."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from stratalens.analyses.results import read_results, write_results

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
