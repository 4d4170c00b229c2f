"""Forecast of a study: bytes of its stores and checkpoints, tokens and time. It writes nothing.

The forecast reads no weights. Bytes follow from the shape of the model and the
geometry of the stores, and are exact. Tokens of a large corpus are those of a
sample of its entities, scaled to all. Times come from a few short batches on
this machine with random weights; the training time is measured on models with
few blocks and extrapolated linearly.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from stratalens.plugin.capture.forecast import forecast, two_digits
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.checkpoints import boot
from stratalens.plugin.stages.stage import Stage
from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings
from stratalens.plugin.study.models.base_model import BaseModelSource
from stratalens.plugin.study.recording import stores
from stratalens.plugin.study.training.checkpoints import retained_stages, stages_still_needed
from stratalens.plugin.study.training.lora import ensure_adapter
from stratalens.plugin.study.training.schedule import plan_courses
from stratalens.plugin.study.training.throughput import measure_training_speed
from stratalens.store.errors import InputError

MAX_ENTITIES = 500  # more generated entities a stage are sampled
SAMPLED_ENTITIES = 100  # entities a stage in the sample


def check_device(settings: StudySettings) -> None:
    """Refuse settings for a GPU on a machine without one.

    Raises:
        InputError: there is no GPU; the message has the training time without one and the remedies.
    """
    if not settings.gpu or settings.device is not None or torch.cuda.is_available():
        return
    estimate = forecast_study(settings.model_copy(update={"device": "cpu"}))
    raise InputError(
        f"These settings (preset {settings.preset!r}) are for a GPU, and this machine has none: training on "
        f"{estimate['training_tokens'] / 1e6:.1f} million tokens would take about "
        f"{estimate['training_seconds'] / 3600:.0f} hours. Use --preset cpu, or set `device: cpu` in a run file to "
        "train anyway."
    )


def forecast_study(settings: StudySettings) -> dict[str, Any]:
    """Forecast a study without writing to its folder.

    Args:
        settings: the settings of the study.

    Returns:
        For one seed: stores {name: {bytes, files, rows, tokens}}, store_bytes, checkpoint_bytes (of a finished run),
        bytes (the sum of both), peak_bytes (during the run, which may remove checkpoints later), training_tokens,
        training_seconds, recording_tokens, recording_seconds, memory_bytes (buffers of the largest store). For all
        seeds: seeds, all_seeds_bytes. sampled_entities is None if the forecast counted all entities. The times do not
        include answers, self-report and analyses.

    Raises:
        InputError: a setting, table or model is wrong, as for the study itself.
    """
    sampled = settings.entities is None and settings.entities_per_stage > MAX_ENTITIES
    counted = _sample_settings(settings) if sampled else settings
    scale = settings.entities_per_stage / counted.entities_per_stage
    with TemporaryDirectory() as scratch:
        source = BaseModelSource(counted, Path(scratch) / "corpus", random_weights=True)
        corpus = source.draw_corpus()
        model, tokenizer = source.load_untrained(corpus)
        courses = plan_courses(corpus, settings.train, stage_epochs=settings.stage_epochs, after=settings.after)
        checkpoints = [UNTRAINED, *(name for course in courses for name in course.checkpoints)]
        tokenizer.save_pretrained(scratch)

        tokens = updates = 0.0
        for course in courses:
            length = sum(len(ids) for ids in tokenizer(list(course.texts))["input_ids"]) * scale
            tokens += length * course.settings.epochs
            updates += -(-len(course.texts) * scale // course.settings.batch_size) * course.settings.epochs
        per_token, per_update = measure_training_speed(model, tokenizer, courses[0].texts, settings, Path(scratch))
        sizes = dict.fromkeys(checkpoints, sum(p.numel() * p.element_size() for p in model.parameters()))
        if settings.train.method == "lora":
            adapted: Any = ensure_adapter(model, settings.train.lora, settings.seed, Path(scratch))
            adapter_size = sum(p.numel() * p.element_size() for p in adapted.parameters() if p.requires_grad)
            sizes |= dict.fromkeys(checkpoints[1:], adapter_size)
            model = adapted.merge_and_unload()

        hooked = boot(model, scratch, None, settings.device)  # finds the tokenizer as a capture does
        plans = stores.plan_stores(counted, corpus, source.contradicted, dict.fromkeys(checkpoints, Path()))
        forecasts = {
            name: forecast(
                [Stage(f"stage{number}", number, hooked) for number in range(len(plan.stages))],
                PromptTable.from_dataframe(plan.prompts),
                rows=_count_rows(name, plan, settings, scale),
                **plan.options,
            )
            for name, plan in plans.items()
        }
    store_bytes = sum(store["bytes"] for store in forecasts.values())
    checkpoint_bytes = sum(sizes[name] for name in retained_stages(settings, checkpoints))
    # While a checkpoint is trained, the run has those it still needs, the one before and the new one.
    peaks = []
    for end in range(1, len(checkpoints) + 1):
        present = {*stages_still_needed(settings, checkpoints[:end]), *checkpoints[end - 1 : end + 1]}
        peaks.append(sum(sizes[name] for name in present))
    seeds = len(settings.seeds) or 1
    return {
        "stores": {
            name: {key: store[key] for key in ("bytes", "files", "rows", "tokens")} for name, store in forecasts.items()
        },
        "store_bytes": store_bytes,
        "checkpoint_bytes": checkpoint_bytes,
        "bytes": store_bytes + checkpoint_bytes,
        "peak_bytes": store_bytes + max(*peaks, checkpoint_bytes),
        "training_tokens": round(tokens),
        "training_seconds": two_digits(tokens * per_token + updates * per_update),
        "recording_tokens": sum(store["tokens"] for store in forecasts.values()),
        "recording_seconds": two_digits(sum(store["seconds"] for store in forecasts.values())),
        "memory_bytes": max(store["memory_bytes"] for store in forecasts.values()),
        "seeds": seeds,
        "all_seeds_bytes": seeds * (store_bytes + checkpoint_bytes),
        "sampled_entities": SAMPLED_ENTITIES * settings.stages if sampled else None,
    }


def _sample_settings(settings: StudySettings) -> StudySettings:
    """Copy the settings with fewer entities, of which the store of all stages also has a sample if it had one."""
    record = settings.record
    if record.sample is not None:
        leaves_some_out = record.sample < settings.entities_per_stage
        record = record.model_copy(update={"sample": SAMPLED_ENTITIES // 2 if leaves_some_out else None})
    return settings.model_copy(update={"entities_per_stage": SAMPLED_ENTITIES, "record": record})


def _count_rows(name: str, plan: stores.StorePlan, settings: StudySettings, scale: float) -> int:
    """Count the rows of a store of the whole study, from its plan for sampled entities."""
    if name == stores.CONFLICT_STORE:
        return len(plan.prompts)
    rows = round(len(plan.prompts) * scale)
    if name == stores.STORE and settings.record.sample is not None:
        entities = min(settings.record.sample, settings.entities_per_stage)
        rows = entities * settings.stages * len(settings.record.templates)
    return rows


def flatten_forecast(forecast: dict[str, Any]) -> dict[str, Any]:
    """Put a forecast on one level, for a table.

    >>> flatten_forecast({"stores": {"run.zarr": {"bytes": 8}}, "bytes": 8})
    {'run.zarr bytes': 8, 'bytes': 8}
    """
    stores = {f"{name} {key}": value for name, store in forecast["stores"].items() for key, value in store.items()}
    return {**stores, **{key: value for key, value in forecast.items() if key != "stores"}}
