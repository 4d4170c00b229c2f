"""Forecasts of a study: from a sample of its entities, and as a refusal of a machine without a GPU."""

import pytest
import torch

from stratalens.plugin.study import forecast as forecasting
from stratalens.plugin.study.config.presets import get_preset
from stratalens.plugin.study.config.settings import RecordSettings, StudySettings, TrainSettings
from stratalens.plugin.study.forecast import forecast_study
from stratalens.plugin.study.run import run_study
from stratalens.store.errors import InputError
from support.tiny_study import save_base


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return StudySettings(
        model=str(save_base(tmp_path_factory.mktemp("base"), layers=1)),
        stages=3,
        entities_per_stage=12,
        train_questions=2,
        seeds=(4, 7),
        device="cpu",
        train=TrainSettings(epochs=1, batch_size=16, learning_rate=1e-2, precision="float32", optimizer="adamw"),
        record=RecordSettings(positions=("last",)),
        keep_checkpoints="last",
    )


def test_a_forecast_from_a_sample_is_that_of_all_entities(settings, monkeypatch):
    whole = forecast_study(settings)
    monkeypatch.setattr(forecasting, "MAX_ENTITIES", 5)
    monkeypatch.setattr(forecasting, "SAMPLED_ENTITIES", 4)
    part = forecast_study(settings)
    assert whole["sampled_entities"] is None
    assert part["sampled_entities"] == 12
    for name in ("store_bytes", "checkpoint_bytes", "bytes", "peak_bytes", "memory_bytes", "all_seeds_bytes", "seeds"):
        assert part[name] == whole[name], name
    assert part["stores"]["run.zarr"]["rows"] == whole["stores"]["run.zarr"]["rows"]
    assert part["training_tokens"] == pytest.approx(whole["training_tokens"], rel=0.1)
    assert part["recording_tokens"] == pytest.approx(whole["recording_tokens"], rel=0.1)
    assert (
        whole["checkpoint_bytes"] * 4
        == forecast_study(settings.model_copy(update={"keep_checkpoints": "all"}))["checkpoint_bytes"]
    )


def test_a_forecast_counts_both_stores_of_a_run_with_a_sample(settings, monkeypatch):
    record = RecordSettings(positions=("last",), sample=12)
    sampled = settings.model_copy(update={"entities_per_stage": 14, "record": record})
    whole = forecast_study(sampled)
    rows = {name: store["rows"] for name, store in whole["stores"].items()}
    assert rows == {"run.zarr": 4 * 36, "ends.zarr": 2 * 42}
    monkeypatch.setattr(forecasting, "MAX_ENTITIES", 5)
    monkeypatch.setattr(forecasting, "SAMPLED_ENTITIES", 7)
    part = forecast_study(sampled)
    assert {name: store["rows"] for name, store in part["stores"].items()} == rows
    assert part["store_bytes"] == whole["store_bytes"]


def test_a_preset_for_a_gpu_is_refused_without_one(settings, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert get_preset("paper").gpu
    wanting = settings.model_copy(update={"gpu": True, "device": None})
    with pytest.raises(InputError, match=r"this machine has none: training on .* million tokens .* hours.*device: cpu"):
        run_study(wanting, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out").exists()
