"""Names, order and sources of stages; invalid ones are refused before any model is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from stratalens.plugin.capture.run import capture
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError
from support.models import TwoLayers, save_checkpoint, table


def test_stages_without_names(tmp_path: Path) -> None:
    folder = str(save_checkpoint(tmp_path / "base"))
    with pytest.raises(InputError, match=r"stages is a list\. .* mapping \{name: folder\}.*: \{'base': '.*base'\}"):
        capture([folder], table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="stages is a tuple"):
        capture((TwoLayers(), TwoLayers()), table(3), tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


@pytest.mark.parametrize("name", ["", "  ", "..", ".", "a/b", "a\\b", "a\nb", "a\x00", " a", "a\u2028b", "x" * 300, 3])
def test_stage_names(name: Any) -> None:
    with pytest.raises(InputError, match="stage name"):
        check_stage_name(name)


def test_stage_names_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    def never() -> Any:
        raise AssertionError("was called")

    with pytest.raises(InputError, match="stage name"):
        capture({"fine": never, "../up": never}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="stages is empty"):
        capture({}, table(3), tmp_path / "run.zarr")
    with pytest.raises(InputError, match="does not exist"):
        capture({"fine": never, "gone": tmp_path / "gone"}, table(3), tmp_path / "run.zarr")


@pytest.mark.parametrize(("device", "message"), [("cuda", "sees no CUDA device"), ("warp", "unknown to PyTorch")])
def test_a_device_that_is_not_there_is_refused_before_anything_is_loaded(
    device: str, message: str, tmp_path: Path
) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU here")

    def load() -> Any:
        raise AssertionError("loaded")

    with pytest.raises(InputError, match=message):
        capture({"a": load}, table(4), tmp_path / "run.zarr", device=device)
    assert not (tmp_path / "run.zarr").exists()
