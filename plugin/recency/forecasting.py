"""What a study will need before it is begun: bytes of its stores and checkpoints, tokens, time. Nothing is kept.

Sizes are exact (the stores' own geometry); times come from two short batches
on this machine, so that a long run is not begun where it cannot end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stratalens.recency.corpus.contradictions import conflict_prompts
from stratalens.recency.corpus.entities import Corpus
from stratalens.recency.models.base import Base
from stratalens.recency.parts import UNTRAINED
from stratalens.recency.recording.stores import (
    CONFLICT_STORE,
    LAST_STORE,
    STORE,
    conflict_recording,
    last_recording,
    main_recording,
    recorded_stages,
)
from stratalens.recency.settings import StudySettings
from stratalens.recency.training.adapters import current_or_new, is_adapter
from stratalens.recency.training.schedule import plan
from stratalens.recency.training.trainer import make_trainer
from stratalens.store.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCHES = (4, 12)  # rows of the two timed batches; their difference leaves out what a step costs by itself


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
    """Forecast a study; the base model is loaded, nothing is written where the study would be.

    Returns:
        stores {name: {bytes, files, rows, tokens}}, store_bytes, checkpoint_bytes, bytes (of both), training_tokens,
        training_seconds, recording_tokens, recording_seconds, memory_bytes (of the larger store's buffers). The
        time of the analyses is not in it.

    Raises:
        InputError: as the study itself: settings, tables, models.
    """
    from stratalens.checkpoints import boot
    from stratalens.forecast import forecast
    from stratalens.prompts import PromptTable
    from stratalens.stages import Stage

    with TemporaryDirectory() as scratch:
        source = Base(settings, Path(scratch) / "corpus")
        corpus = source.corpus()
        model, tokenizer = source.start(corpus)
        courses = plan(corpus, settings.train, stage_epochs=settings.stage_epochs, after=settings.after)
        checkpoints = [UNTRAINED, *(name for course in courses for name in course.checkpoints)]
        stages = len(recorded_stages(settings, dict.fromkeys(checkpoints, Path())))
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        tokenizer.save_pretrained(scratch)

        trained: Any = model
        if settings.train.method == "lora":
            trained = current_or_new(model, settings.train.lora, settings.seed, Path(scratch))
        changed = sum(p.numel() * p.element_size() for p in trained.parameters() if p.requires_grad)
        per_checkpoint = changed if is_adapter(trained) else whole
        tokens = sum(_tokens(tokenizer, course.texts) * course.settings.epochs for course in courses)
        updates = sum(-(-len(c.texts) // c.settings.batch_size) * c.settings.epochs for c in courses)
        per_token, per_update = _training_speed(trained, tokenizer, corpus, settings, Path(scratch))
        if is_adapter(trained):
            model = trained.merge_and_unload()

        hooked = boot(model, scratch, None, settings.device)  # as a recording finds its tokenizer
        wanted = {STORE: (stages, corpus.prompts(), main_recording(settings))}
        if settings.record.last is not None:
            last = corpus.prompts(settings.record.last.templates).drop(columns="answer")
            wanted[LAST_STORE] = (1, last, last_recording(settings))
        if source.contradicted:
            frame = conflict_prompts(source.contradicted)
            wanted[CONFLICT_STORE] = (len(checkpoints), frame, conflict_recording(settings))
        stores = {
            name: forecast(
                [Stage(f"stage{number}", number, hooked) for number in range(count)],
                PromptTable.from_dataframe(frame),
                **options,
            )
            for name, (count, frame, options) in wanted.items()
        }
    store_bytes = sum(store["bytes"] for store in stores.values())
    kept = ("bytes", "files", "rows", "tokens")
    checkpoint_bytes = whole + per_checkpoint * (len(checkpoints) - 1)
    return {
        "stores": {name: {key: held[key] for key in kept} for name, held in stores.items()},
        "store_bytes": store_bytes,
        "checkpoint_bytes": checkpoint_bytes,
        "bytes": store_bytes + checkpoint_bytes,
        "training_tokens": round(tokens),
        "training_seconds": round(tokens * per_token + updates * per_update, 1),
        "recording_tokens": sum(store["tokens"] for store in stores.values()),
        "recording_seconds": round(sum(store["seconds"] for store in stores.values()), 1),
        "memory_bytes": max(store["memory_bytes"] for store in stores.values()),
    }


def flat(told: dict[str, Any]) -> dict[str, Any]:
    """The forecast on one level, for a table.

    >>> flat({"stores": {"run.zarr": {"bytes": 8}}, "bytes": 8})
    {'run.zarr bytes': 8, 'bytes': 8}
    """
    stores = {f"{name} {key}": value for name, held in told["stores"].items() for key, value in held.items()}
    return {**stores, **{key: value for key, value in told.items() if key != "stores"}}


def _tokens(tokenizer: PreTrainedTokenizerBase, lines: Sequence[str]) -> int:
    return sum(len(ids) for ids in tokenizer(list(lines))["input_ids"])


def _training_speed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    settings: StudySettings,
    scratch: Path,
) -> tuple[float, float]:
    """Seconds a token and seconds an update, from the second step of a small and of a larger batch."""
    from transformers import TrainerCallback

    texts = [question.text for question in next(iter(corpus.train.values()))]
    measured: list[tuple[int, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                measured.append((count, time.perf_counter() - self.began))

    for rows in BATCHES:
        some = (texts * (2 * rows // len(texts) + 1))[: 2 * rows]
        count = _tokens(tokenizer, some) // 2
        how = settings.train.model_copy(update={"epochs": 1, "batch_size": rows, "save": "no"})
        trainer = make_trainer(model, tokenizer, some, how, scratch / "trainer", settings.seed, settings.device)
        trainer.add_callback(Clock())
        trainer.train()
    (few, short), (many, long) = measured
    per_token = max(0.0, (long - short) / (many - few))
    if per_token == 0.0:  # too fast to be told apart: all of it to the tokens
        return long / many, 0.0
    return per_token, max(0.0, short - few * per_token)
