"""The readers of NumPy and safetensors read the values of the store from exported files."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from stratalens.store.errors import InputError
from stratalens.store.interop.export import export_array
from stratalens.store.reading.open import open_store
from support.stores import make_store


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("s") / "run.zarr", stages=3, layers=2, entities=24, dtype="bfloat16")


def test_npy_is_the_store(path, tmp_path):
    export_array(path, site="resid_post", layer=1, target=tmp_path / "a.npy")
    ds = open_store(path)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), ds.resid_post.sel(layer=1).values)
    facts = json.loads((tmp_path / "a.npy.json").read_text())
    assert facts["entity"] == ds.entity.values.tolist()
    assert facts["dims"] == ["stage", "entity", "token", "d_model"]


def test_safetensors_reads_it_with_its_labels(path, tmp_path):
    export_array(path, site="resid_post", layer=0, target=tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        np.testing.assert_array_equal(file.get_tensor("resid_post"), open_store(path).resid_post.sel(layer=0).values)
        assert json.loads(file.metadata()["stratalens"])["layer"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"site": "resid_pots", "layer": 0}, "did you mean 'resid_post'"),
        ({"site": "resid_post", "layer": 9}, "layer 9 was not recorded; valid: 0, 1"),
        ({"site": "resid_post", "layer": None}, "choose one with --layer"),
        ({"site": "resid_post", "layer": 0, "target": "a.bin"}, r"valid: \.npy, \.safetensors"),
        ({"site": "resid_post", "layer": 0, "target": "no/such/a.npy"}, "does not exist"),
    ],
)
def test_wrong_input_is_named_and_nothing_is_written(path, tmp_path, arguments, words):
    target = tmp_path / arguments.pop("target", "a.npy")
    with pytest.raises(InputError, match=words):
        export_array(path, target=target, **arguments)
    assert list(tmp_path.iterdir()) == []
