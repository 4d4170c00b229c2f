"""RecordingCallback: record while a model trains with Hugging Face's Trainer, without writing checkpoints to disk."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import nn
from transformers import TrainerCallback, TrainerState

from stratalens.plugin.capture.run import capture
from stratalens.plugin.compat import remove_forward_wrapper
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.checkpoints import boot
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError, LabelWarning

Steps = int | Sequence[int] | Callable[[int], bool]


class RecordingCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """A callback that records activations at chosen steps of a training run, each as one stage of a store.

    It hooks, records and frees a copy of the weights in evaluation mode, and restores the random state. A run with this
    callback therefore ends in the same weights as a run without it. A resumed run skips the stages that the store has
    already.

    Args:
        table: the prompts to record.
        path: the store, created at the first recording.
        steps: record every `steps` steps (int), at these steps (list), or where a function of the step returns True.
            Step 0 is before the first update.
        start: record step 0 as well (only with an int).
        end: record the last step as well.
        tokenizer: of the model; None takes the Trainer's processing_class. The token ids of a prompt are
            `tokenizer(prompt).input_ids`, as in training data that the same call has made.
        name: stage name for a step; must differ from step to step.
        **options: further arguments of `stratalens.capture` (sites, layers, positions, dtype, statistics, prepend_bos,
            batch_size, device, ...).

    Raises:
        InputError: there is no tokenizer, two steps have the same stage name, the weights are sharded over processes,
            or `capture` refuses its arguments.

    Example (not run here: it needs a model and data)::

        trainer.add_callback(RecordingCallback(table, "run.zarr", steps=100, positions=("last",)))
        trainer.train()
        ds = stratalens.open_store("run.zarr")
    """

    def __init__(
        self,
        table: PromptTable,
        path: str | os.PathLike[str],
        steps: Steps,
        *,
        start: bool = True,
        end: bool = True,
        tokenizer: Any = None,
        name: Callable[[int], str] = "step{}".format,
        **options: Any,
    ) -> None:
        if isinstance(steps, int) and steps < 1:
            raise InputError(
                f"steps={steps} is not valid. Pass a positive number of steps, a list of steps, or a function of the "
                "step."
            )
        self.table = table
        self.path = path
        self.steps = steps
        self.start = start
        self.end = end
        self.tokenizer = tokenizer
        self.name = name
        self.options = options
        self.recorded: dict[str, int] = {}

    def is_chosen(self, step: int) -> bool:
        """Decide whether `step` is one of the chosen steps."""
        if callable(self.steps):
            return bool(self.steps(step))
        if isinstance(self.steps, int):
            return step % self.steps == 0 and (step > 0 or self.start)
        return step in self.steps

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record at a chosen step: before the first update, at the first step of a resumed run, or after an update."""
        if self.is_chosen(state.global_step):
            self._record(state, kwargs)

    on_step_end = on_train_begin

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record after the last step."""
        if self.end:
            self._record(state, kwargs)

    def _record(self, state: TrainerState, context: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        step = int(state.global_step)
        stage = check_stage_name(self.name(step))
        if stage in self.recorded:
            if self.recorded[stage] == step:
                return  # the last step was also a chosen one
            raise InputError(
                f"steps {self.recorded[stage]} and {step} have the same stage name {stage!r}. "
                "Pass a function name= that returns another name for every step."
            )
        tokenizer = self.tokenizer or context.get("processing_class")
        if tokenizer is None:
            raise InputError(
                "RecordingCallback needs the model's tokenizer. Pass tokenizer=, or Trainer(processing_class=)."
            )
        model = context["model"]
        is_fast = bool(getattr(tokenizer, "is_fast", False))
        cpu, devices = torch.get_rng_state(), _cuda_states()
        try:
            with TemporaryDirectory() as folder, warnings.catch_warnings():
                if is_fast:
                    tokenizer.save_pretrained(folder)  # TransformerLens loads it from a folder
                # The stages of later steps do not exist yet, so their labels would look wrong.
                warnings.filterwarnings("ignore", "label column", LabelWarning)
                capture(
                    {stage: lambda: _hooked_copy(model, folder, None if is_fast else tokenizer)},
                    self.table,
                    self.path,
                    progress=False,
                    tokenizer=tokenizer,
                    **self.options,
                )
        finally:
            torch.set_rng_state(cpu)
            if devices:
                torch.cuda.set_rng_state_all(devices)
        self.recorded[stage] = step


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def _hooked_copy(model: nn.Module, tokenizer_folder: str, tokenizer: Any) -> nn.Module:
    """Copy the model's current weights into a separate hooked model; the folder counts where `tokenizer` is None."""
    inner = getattr(model, "module", model)  # without the wrapper of DataParallel or DistributedDataParallel
    for name, parameter in inner.named_parameters():
        if type(parameter.data) is not torch.Tensor or (parameter.numel() == 0 and parameter.ndim == 1):
            raise InputError(
                f"parameter {name!r} is sharded over processes, so no process has the whole model to record. "
                "Save checkpoints instead and record them with stratalens.capture."
            )
    twin: Any = copy.deepcopy(inner)
    remove_forward_wrapper(twin)
    if hasattr(twin, "merge_and_unload"):  # adapters such as LoRA: merge them into the weights
        twin = twin.merge_and_unload()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    twin.train(False)
    hooked: Any = boot(twin, tokenizer_folder, tokenizer, None)
    hooked.cfg.model_name = str(getattr(twin.config, "name_or_path", "") or type(twin).__name__)
    return cast(nn.Module, hooked)
