"""How fast this machine trains a model, from a few steps of models of its shape with few blocks."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratalens.plugin.study.config.settings import StudySettings
from stratalens.plugin.study.training.lora import ensure_adapter
from stratalens.plugin.study.training.trainer import make_trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


BATCHES = (4, 12)  # rows of the two timed batches; their difference leaves out what a step costs by itself


BLOCKS = (1, 3)  # blocks of the two timed models; their difference is what two blocks cost


def measure_training_speed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    settings: StudySettings,
    scratch: Path,
) -> tuple[float, float]:
    """Seconds a token and seconds an update of the whole model, blocks beyond the timed ones in a straight line."""
    blocks = int(model.config.num_hidden_layers)
    depths = BLOCKS if blocks > BLOCKS[1] else (blocks,)
    timed = [_measure_speed(_make_shallow_model(model, depth), tokenizer, texts, settings, scratch) for depth in depths]
    further = (blocks - depths[0]) / (BLOCKS[1] - BLOCKS[0])
    (token, update), (token_more, update_more) = timed[0], timed[-1]
    return token + max(0.0, token_more - token) * further, update + max(0.0, update_more - update) * further


def _make_shallow_model(model: PreTrainedModel, blocks: int) -> PreTrainedModel:
    """A model of the same shape with so many blocks and random weights."""
    import torch

    config = copy.deepcopy(model.config)
    config.num_hidden_layers = blocks
    if getattr(config, "layer_types", None):  # one for every block, where they differ
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
    """Seconds a token and seconds an update, from the second step of a small and of a larger batch."""
    from transformers import TrainerCallback

    measured: list[tuple[int, float]] = []

    class Clock(TrainerCallback):  # type: ignore[misc, unused-ignore]
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 2:
                measured.append((count, time.perf_counter() - self.began))

    if settings.train.method == "lora":
        model = ensure_adapter(model, settings.train.lora, settings.seed, scratch)
    for rows in BATCHES:
        some = (list(texts) * (2 * rows // len(texts) + 1))[: 2 * rows]
        count = sum(len(ids) for ids in tokenizer(some)["input_ids"]) // 2
        how = settings.train.model_copy(update={"epochs": 1, "batch_size": rows, "save": "no"})
        trainer = make_trainer(model, tokenizer, some, how, scratch / "trainer", settings.seed, settings.device)
        trainer.add_callback(Clock())
        trainer.train()
    (few, short), (many, long) = measured
    per_token = max(0.0, (long - short) / (many - few))
    if per_token == 0.0:  # too fast to be told apart: all of it to the tokens
        return long / many, 0.0
    return per_token, max(0.0, short - few * per_token)
