"""Training speed of this machine, measured on a few steps of models with few blocks."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback

from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.training.lora import ensure_adapter
from stratalens.plugin.study.training.trainer import make_trainer

BATCH_SIZES = (4, 12)  # the difference of two timed batches excludes the fixed cost of an update
BLOCKS = (1, 3)  # the difference of two timed models is the cost of two blocks


def measure_training_speed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: StudySettings,
    scratch: Path,
) -> tuple[float, float]:
    """Measure the training speed of a model.

    Args:
        model: the model; only its shape matters.
        tokenizer: its tokenizer.
        texts: training texts.
        settings: the settings of the study.
        scratch: folder for the files of the Trainer.

    Returns:
        Seconds a token and seconds an update, extrapolated linearly to all blocks.
    """
    blocks = int(model.config.num_hidden_layers)
    depths = BLOCKS if blocks > BLOCKS[1] else (blocks,)
    timed = [_measure_speed(_make_shallow_model(model, depth), tokenizer, texts, settings, scratch) for depth in depths]
    further = (blocks - depths[0]) / (BLOCKS[1] - BLOCKS[0])
    (token, update), (token_more, update_more) = timed[0], timed[-1]
    return token + max(0.0, token_more - token) * further, update + max(0.0, update_more - update) * further


def _make_shallow_model(model: PreTrainedModel, blocks: int) -> PreTrainedModel:
    """Make a model of the same shape with fewer blocks and random weights."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):  # one entry a block
        config.layer_types = config.layer_types[:blocks]
    with torch.random.fork_rng(devices=[]):
        return type(model)(config)


def _measure_speed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: StudySettings,
    scratch: Path,
) -> tuple[float, float]:
    """Measure seconds a token and an update, on the second step of two batch sizes."""

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        started = seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    if settings.train.method == "lora":
        model = ensure_adapter(model, settings.train.lora, settings.seed, scratch)
    measured: list[tuple[int, float]] = []
    for rows in BATCH_SIZES:
        sample = (list(texts) * (2 * rows // len(texts) + 1))[: 2 * rows]
        tokens = sum(len(ids) for ids in tokenizer(sample)["input_ids"]) // 2
        training = settings.train.model_copy(update={"epochs": 1, "batch_size": rows, "save": "no"})
        trainer = make_trainer(model, tokenizer, sample, training, scratch / "trainer", settings.seed, settings.device)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        measured.append((tokens, clock.seconds))
    (few, short), (many, long) = measured
    per_token = max(0.0, (long - short) / (many - few))
    if per_token == 0.0:  # the clock is too coarse for the difference: count all time as time of tokens
        return long / many, 0.0
    return per_token, max(0.0, short - few * per_token)
