"""What a study will need before it is begun: bytes of its stores and checkpoints, tokens, time. Nothing is kept.

No weights are read: bytes follow from the shape of the model and the geometry
of the stores, and are exact. Tokens of a large corpus are those of a sample of
its entities, times their number; times are those of a few short batches on this
machine with random weights, for training of models of few blocks, extended in a
straight line. So a long run is not begun where it cannot end.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stratalens.plugin.study.config.settings import UNTRAINED, StudySettings
from stratalens.plugin.study.corpus.conflicts import conflict_prompts
from stratalens.plugin.study.models.base_model import BaseModelSource
from stratalens.plugin.study.recording.stores import (
    CONFLICT_STORE,
    LAST_STORE,
    STORE,
    conflict_store_options,
    last_store_options,
    recorded_stages,
    stage_store_options,
)
from stratalens.plugin.study.training.checkpoints import retained_stages, stages_still_needed
from stratalens.plugin.study.training.lora import ensure_adapter
from stratalens.plugin.study.training.schedule import plan_courses
from stratalens.plugin.study.training.throughput import measure_training_speed
from stratalens.store.errors import InputError

SAMPLED_ENTITIES = 100  # entities a stage that stand for all, where there are many


MAX_ENTITIES = 500  # entities a stage that are still all looked at


def check_device(settings: StudySettings) -> None:
    """Refuse settings made for a GPU on a machine without one.

    Raises:
        InputError: there is no GPU; how long it would take here is said, and how to insist.
    """
    import torch

    if not settings.gpu or settings.device is not None or torch.cuda.is_available():
        return
    told = forecast_study(settings.model_copy(update={"device": "cpu"}))
    raise InputError(
        f"These settings (preset {settings.preset!r}) are made for a GPU, and there is none: here "
        f"{told['training_tokens'] / 1e6:.1f} million tokens of training would take about "
        f"{told['training_seconds'] / 3600:.0f} hours. Take --preset cpu, or insist by `device: cpu` in a run file."
    )


def forecast_study(settings: StudySettings) -> dict[str, Any]:
    """Forecast a study; nothing is written where the study would be.

    Returns:
        of one seed: stores {name: {bytes, files, rows, tokens}}, store_bytes, checkpoint_bytes (that are kept), bytes
        (of both), peak_bytes (while it runs, where checkpoints are removed), training_tokens, training_seconds,
        recording_tokens, recording_seconds, memory_bytes (of the larger store's buffers); and seeds, all_seeds_bytes,
        sampled_entities (None where all were looked at). The time of answers, self-report and analyses is not in it.

    Raises:
        InputError: as the study itself: settings, tables, models.
    """
    from stratalens.plugin.capture.forecast import forecast, two_digits
    from stratalens.plugin.prompts.table import PromptTable
    from stratalens.plugin.stages.checkpoints import boot
    from stratalens.plugin.stages.stage import Stage

    many = settings.entities is None and settings.entities_per_stage > MAX_ENTITIES
    looked_at = settings.model_copy(update={"entities_per_stage": SAMPLED_ENTITIES}) if many else settings
    scale = settings.entities_per_stage / looked_at.entities_per_stage
    with TemporaryDirectory() as scratch:
        source = BaseModelSource(looked_at, Path(scratch) / "corpus", random_weights=True)
        corpus = source.draw_corpus()
        model, tokenizer = source.load_untrained(corpus)
        courses = plan_courses(corpus, settings.train, stage_epochs=settings.stage_epochs, after=settings.after)
        checkpoints = [UNTRAINED, *(name for course in courses for name in course.checkpoints)]
        stages = len(recorded_stages(settings, dict.fromkeys(checkpoints, Path())))
        tokenizer.save_pretrained(scratch)

        lengths = [sum(len(ids) for ids in tokenizer(list(c.texts))["input_ids"]) * scale for c in courses]
        tokens = sum(n * course.settings.epochs for n, course in zip(lengths, courses, strict=True))
        updates = sum(-(-len(c.texts) * scale // c.settings.batch_size) * c.settings.epochs for c in courses)
        per_token, per_update = measure_training_speed(model, tokenizer, courses[0].texts, settings, Path(scratch))
        sizes = dict.fromkeys(checkpoints, sum(p.numel() * p.element_size() for p in model.parameters()))
        if settings.train.method == "lora":
            adapted: Any = ensure_adapter(model, settings.train.lora, settings.seed, Path(scratch))
            changed = sum(p.numel() * p.element_size() for p in adapted.parameters() if p.requires_grad)
            sizes |= dict.fromkeys(checkpoints[1:], changed)
            model = adapted.merge_and_unload()

        hooked = boot(model, scratch, None, settings.device)  # as a recording finds its tokenizer
        wanted = {STORE: (stages, corpus.prompts(), stage_store_options(settings))}
        if settings.record.last is not None:
            wide = corpus.prompts(settings.record.last.templates).drop(columns="answer")
            wanted[LAST_STORE] = (1, wide, last_store_options(settings))
        if source.contradicted:
            frame = conflict_prompts(source.contradicted)
            wanted[CONFLICT_STORE] = (len(checkpoints), frame, conflict_store_options(settings))
        stores = {
            name: forecast(
                [Stage(f"stage{number}", number, hooked) for number in range(count)],
                PromptTable.from_dataframe(frame),
                rows=len(frame) if name == CONFLICT_STORE else round(len(frame) * scale),
                **options,
            )
            for name, (count, frame, options) in wanted.items()
        }
    kept = ("bytes", "files", "rows", "tokens")
    store_bytes = sum(store["bytes"] for store in stores.values())
    checkpoint_bytes = sum(sizes[name] for name in retained_stages(settings, checkpoints))
    meanwhile = [
        sum(
            sizes[name] for name in {*stages_still_needed(settings, checkpoints[:end]), *checkpoints[end - 1 : end + 1]}
        )
        for end in range(1, len(checkpoints) + 1)
    ]
    seeds = len(settings.seeds) or 1
    return {
        "stores": {name: {key: held[key] for key in kept} for name, held in stores.items()},
        "store_bytes": store_bytes,
        "checkpoint_bytes": checkpoint_bytes,
        "bytes": store_bytes + checkpoint_bytes,
        "peak_bytes": store_bytes + max(*meanwhile, checkpoint_bytes),
        "training_tokens": round(tokens),
        "training_seconds": two_digits(tokens * per_token + updates * per_update),
        "recording_tokens": sum(store["tokens"] for store in stores.values()),
        "recording_seconds": two_digits(sum(store["seconds"] for store in stores.values())),
        "memory_bytes": max(store["memory_bytes"] for store in stores.values()),
        "seeds": seeds,
        "all_seeds_bytes": seeds * (store_bytes + checkpoint_bytes),
        "sampled_entities": SAMPLED_ENTITIES * settings.stages if many else None,
    }


def flatten_forecast(told: dict[str, Any]) -> dict[str, Any]:
    """The forecast on one level, for a table.

    >>> flatten_forecast({"stores": {"run.zarr": {"bytes": 8}}, "bytes": 8})
    {'run.zarr bytes': 8, 'bytes': 8}
    """
    stores = {f"{name} {key}": value for name, held in told["stores"].items() for key, value in held.items()}
    return {**stores, **{key: value for key, value in told.items() if key != "stores"}}
