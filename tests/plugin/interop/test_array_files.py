"""Files of activations as arrays: formats, names of places, and messages about what cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stratalens.plugin.interop.array_files import read_arrays, site_of_name
from stratalens.plugin.interop.array_sources import to_numpy
from stratalens.store.errors import InputError

X = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


def save(path: Path, array: np.ndarray = X, *, name: str = "resid_post") -> str:
    if path.suffix == ".npz":
        np.savez(path, **{name: array})
    elif path.suffix == ".safetensors":
        save_file({name: torch.from_numpy(np.ascontiguousarray(array))}, path)
    else:
        np.save(path, array)
    return str(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_every_format_and_dtype(suffix: str, dtype: str, tmp_path: Path) -> None:
    exact = X.astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))
    path = tmp_path / f"a{suffix}"
    if suffix == ".safetensors":
        save_file({"resid_post": torch.from_numpy(X).to(getattr(torch, dtype))}, path)
        exact = torch.from_numpy(X).to(getattr(torch, dtype)).double().numpy()
    else:
        save(path, exact)
    arrays, table = read_arrays([str(path)])
    assert table is None
    array = arrays["resid_post"]
    assert array.shape == (5, 4)
    np.testing.assert_array_equal(to_numpy(array[1:4, :]).astype(float), exact[1:4].astype(float))


def test_npz_is_mapped_unless_it_is_compressed(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", z=np.asfortranarray(X), q=X[:0], **{"é" * 40: X})
    arrays, _ = read_arrays([str(tmp_path / "a.npz")])
    assert all(isinstance(array, np.memmap) for name, array in arrays.items() if name != "q")
    np.testing.assert_array_equal(arrays["z"], X)
    np.testing.assert_array_equal(arrays["é" * 40], X)
    np.savez_compressed(tmp_path / "b.npz", z=X)
    np.testing.assert_array_equal(read_arrays([str(tmp_path / "b.npz")])[0]["z"], X)


def places(value: Any) -> Any:
    return {key: places(child) for key, child in value.items()} if isinstance(value, dict) else tuple(value.shape)


@pytest.mark.parametrize(
    ("files", "options", "expected"),
    [
        (["a.npy"], {}, {"resid_post": (5, 4)}),
        (["a.npy"], {"site": "mlp_out"}, {"mlp_out": (5, 4)}),
        (["z=a.npy"], {}, {"z": (5, 4)}),
        (["b.npy", "a.npy"], {}, {"resid_post": {"b": (5, 4), "a": (5, 4)}}),
        (["b.npy", "a.npy"], {"stages": ["s0", "s1"]}, {"resid_post": {"s0": (5, 4), "s1": (5, 4)}}),
        (["a.npy"], {"stages": ["s0", "s1"]}, {"resid_post": (5, 4)}),
        (["z:s0=a.npy", "z:s1=b.npy"], {}, {"z": {"s0": (5, 4), "s1": (5, 4)}}),
        (["z:s0:3=a.npy", "z:s0:1=b.npy"], {}, {"z": {"s0": {1: (5, 4), 3: (5, 4)}}}),
        (["z=a.npy", "q=b.npy"], {}, {"z": (5, 4), "q": (5, 4)}),
        (["hooks.safetensors"], {}, {"resid_post": {0: (5, 4), 10: (5, 4)}, "ln_final": (5, 4)}),
        (["mine=hooks.safetensors"], {}, InputError),
        (["layers.npz"], {}, {"layer": {2: (5, 4), 11: (5, 4)}}),
    ],
)
def test_places(files: list[str], options: Any, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.npy", "b.npy"):
        save(Path(name))
    x = torch.from_numpy(X)
    names = ("blocks.10.hook_resid_post", "blocks.0.hook_resid_post", "ln_final.hook_out")
    save_file({name: x.clone() for name in names}, "hooks.safetensors")
    np.savez("layers.npz", **{"layer.2": X, "layer.11": X})
    if expected is InputError:
        with pytest.raises(InputError, match="are both mine"):
            read_arrays(files, **options)
        return
    assert places(read_arrays(files, **options)[0]) == expected


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.3.hook_out", ("resid_post", 3)),
        ("blocks.12.attn.hook_z", ("z", 12)),
        ("hook_embed", ("embed", None)),
        ("", ("", None)),
        ("a.b.7", ("a.b", 7)),
        ("x.y", ("x.y", None)),
    ],
)
def test_names_of_tensors(name: str, place: tuple[str, int | None]) -> None:
    assert site_of_name(name) == place


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path) -> None:
    assert list(read_arrays([save(tmp_path / "lr=0.1.npy")])[0]) == ["resid_post"]


def test_a_hugging_face_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {
            "prompt": datasets.Value("string"),
            "score": datasets.Value("float32"),
            "words": datasets.List(datasets.Value("string")),
            "resid_post": datasets.List(datasets.Value("float32")),
            "heads": datasets.Array2D((2, 4), "float32"),
        }
    )
    columns = {"prompt": list("abcde"), "score": [0.5] * 5, "words": [["x"]] * 5, "resid_post": X.tolist()}
    columns["heads"] = [[row, row] for row in X.tolist()]
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "ds")
    arrays, table = read_arrays([str(tmp_path / "ds")])
    assert {name: array.shape for name, array in arrays.items()} == {"resid_post": (5, 4), "heads": (5, 2, 4)}
    np.testing.assert_array_equal(arrays["resid_post"][1:3], X[1:3])
    np.testing.assert_array_equal(arrays["heads"][2:5, 1], X[2:5])
    assert table is not None
    assert list(table) == ["prompt", "score", "words"]
    ragged = {"prompt": ["a", "b"], "x": [[1.0], [1.0, 2.0]]}
    datasets.Dataset.from_dict(ragged).save_to_disk(tmp_path / "ragged")
    with pytest.raises(InputError, match="different shapes in rows 0 to 1"):
        read_arrays([str(tmp_path / "ragged")])[0]["x"][0:2]
    datasets.Dataset.from_dict({"prompt": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(InputError, match="no column has arrays of floats; columns: prompt"):
        read_arrays([str(tmp_path / "text")])
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(columns)}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InputError, match="it has splits; name one of them"):
        read_arrays([str(tmp_path / "splits")])


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ([], {}, "no files"),
        (["b.npy"], {}, r"no such file; did you mean 'a\.npy'"),
        (["no/b.npy"], {}, "no such file"),
        (["a.txt"], {}, r"unknown suffix '\.txt'; valid: \.npy"),
        (["text.npy"], {}, r"is not a readable \.npy file"),
        (["objects.npy"], {}, r"objects\.npy is not a readable \.npy file"),
        (["text.safetensors"], {}, r"is not a readable \.safetensors file"),
        (["text.npz"], {}, r"is not a readable \.npz file"),
        (["ints.safetensors"], {}, "has dtype I64; activations are F64"),
        (["folder"], {}, "not the folder of a Hugging Face dataset"),
        (["z:s0:x=a.npy"], {}, "layer 'x' is no block index"),
        (["z:=a.npy"], {}, "write SITE=FILE"),
        (["z:s0:1:2=a.npy"], {}, "write SITE=FILE"),
        (["z=a.npy", "z=a.npy"], {}, "are both z; say what each file is"),
        (["z=a.npy", "z:s0=a.npy"], {}, "some files name a stage and others do not"),
        (["z:s0=a.npy", "z:s0:1=a.npy"], {}, "some arrays are one layer and others are not"),
        (["a.npy", "a.npy"], {"stages": ["s0", "s1", "s2"]}, "2 files, but stages names 3"),
    ],
)
def test_wrong_files_are_named(
    files: list[str], options: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a.npy"))
    for name in ("a.txt", "text.npy", "text.npz", "text.safetensors"):
        Path(name).write_text("text")
    np.save("objects.npy", np.array([{}], object))
    save_file({"x": torch.zeros(2, dtype=torch.int64)}, "ints.safetensors")
    Path("folder").mkdir()
    with pytest.raises(InputError, match=words):
        read_arrays(files, **options)
