"""A capture checks its sites before it records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import stratalens as sl
from stratalens.plugin.capture import checks
from stratalens.store.errors import CheckWarning, InputError
from stratalens.store.state.info import info
from support import models


@pytest.fixture(autouse=True)
def no_cached_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_verdicts", {})


def doubled_without_cache(kind: str = "llama") -> Any:
    """Return a model whose values depend on `use_cache`."""
    model = models.bridge(kind)
    factor = [1.0]

    def see_cache(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        factor[0] = 1.0 if kwargs.get("use_cache") else 2.0

    def change(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * factor[0]

    model.original_model.register_forward_pre_hook(see_cache, with_kwargs=True)
    model.original_model.get_input_embeddings().register_forward_hook(change)
    return model


def test_the_verdict_is_in_the_store(tmp_path: Path) -> None:
    sl.capture(models.bridge("llama"), models.table(5), tmp_path / "run.zarr", sites=("resid_post", "z"))
    verdict = info(tmp_path / "run.zarr")["recorded_with"]["check"]
    assert verdict["ok"] is True
    assert verdict["checks"]["Hugging Face module: z"]["verdict"] == "equal"
    assert not any(name.endswith("mlp_out") for name in verdict["checks"])  # not recorded


def test_a_wrong_model_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"resid_post: the hooks do not give .* check 'cache on = off'"):
        sl.capture(doubled_without_cache(), models.table(5), tmp_path / "run.zarr")
    assert not (tmp_path / "run.zarr").exists()


def test_a_wrong_model_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(CheckWarning, match="cache on = off"):
        sl.capture(doubled_without_cache(), models.table(5), tmp_path / "run.zarr", check="warn")
    assert info(tmp_path / "run.zarr")["recorded_with"]["check"]["ok"] is False


def test_without_the_check(tmp_path: Path) -> None:
    sl.capture(doubled_without_cache(), models.table(5), tmp_path / "run.zarr", check=False)
    assert "check" not in info(tmp_path / "run.zarr")["recorded_with"]


def test_an_unknown_mode(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="check='no': valid are"):
        sl.capture(models.bridge("llama"), models.table(5), tmp_path / "run.zarr", check="no")  # type: ignore[arg-type]


def test_a_second_capture_of_the_same_kind_does_not_check_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sl.capture({"a": models.bridge("llama")}, models.table(5), tmp_path / "run.zarr")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("checked again")

    monkeypatch.setattr(checks, "run_checks", refuse)
    sl.capture({"a": models.bridge("llama", seed=1)}, models.table(7), tmp_path / "other.zarr")
    monkeypatch.setattr(checks, "_verdicts", {})
    sl.capture({"b": models.bridge("llama", seed=1)}, models.table(5), tmp_path / "run.zarr")  # the store knows
    with pytest.raises(AssertionError, match="checked again"):
        sl.capture({"a": models.bridge("llama")}, models.table(5), tmp_path / "third.zarr", sites=("z",))
