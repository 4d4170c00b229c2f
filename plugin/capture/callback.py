"""Recording while a model trains: a callback for Hugging Face's Trainer.

It stands on its own: any Trainer run streams its checkpoints into a store,
without ever writing them to disk. Checkpoints that are on disk already go
through `stratalens.capture` directly.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import TrainerCallback

from stratalens.plugin.capture.run import capture
from stratalens.plugin.compat import remove_forward_wrapper
from stratalens.plugin.stages.checkpoints import boot
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError, LabelWarning

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from stratalens.plugin.prompts.table import PromptTable


Steps = int | Sequence[int] | Callable[[int], bool]


class RecordingCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Record activations at chosen steps of a training run, each as one stage of a store.

    The model that trains is not touched: a copy of its weights is hooked,
    recorded and freed, in eval mode, with the random state put back
    afterwards, so a run with this callback ends in the same weights as one
    without. A resumed run skips the stages that the store has already.

    Args:
        table: the prompts to record.
        path: the store, made at the first recording.
        steps: every so many steps (int), at these steps (list), or where a
            function of the step says so. Step 0 is before the first update.
        start: record step 0 as well (only with an int).
        end: record the last step as well.
        tokenizer: of the model; None takes the Trainer's processing_class.
        name: stage name for a step; must differ from step to step.
        **options: further arguments of `stratalens.capture` (sites, layers,
            positions, dtype, statistics, batch_size, device, ...).

    Raises:
        InputError: no tokenizer, a stage name given twice, weights that are
            sharded over processes; all that `capture` refuses.

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
                f"steps={steps}: give a positive number of steps, a list of steps, or a function of the step"
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

    def wanted(self, step: int) -> bool:
        """Whether `step` is one of the chosen steps."""
        if callable(self.steps):
            return bool(self.steps(step))
        if isinstance(self.steps, int):
            return step % self.steps == 0 and (step > 0 or self.start)
        return step in self.steps

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record before the first update, or where a resumed run takes up."""
        if self.wanted(state.global_step):
            self._record(state, kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Record after an update."""
        if self.wanted(state.global_step):
            self._record(state, kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the end."""
        if self.end:
            self._record(state, kwargs)

    def _record(self, state: TrainerState, given: dict[str, Any]) -> None:
        if not state.is_world_process_zero:
            return
        step = int(state.global_step)
        stage = check_stage_name(self.name(step))
        if stage in self.recorded:
            if self.recorded[stage] == step:
                return  # the last step was also a chosen one
            raise InputError(
                f"the stage name {stage!r} was given to step {self.recorded[stage]} and to step {step}; "
                "let name= return another name for every step"
            )
        tokenizer = self.tokenizer or given.get("processing_class")
        if tokenizer is None:
            raise InputError(
                "RecordingCallback needs the model's tokenizer: pass tokenizer=, or Trainer(processing_class=)"
            )
        model = given["model"]
        cpu, devices = torch.get_rng_state(), _cuda_states()
        try:
            with TemporaryDirectory() as folder, warnings.catch_warnings():
                # TransformerLens loads the tokenizer once more, by its folder
                tokenizer.save_pretrained(folder)
                warnings.simplefilter("ignore", LabelWarning)  # stages of later steps are not there yet
                capture(
                    {stage: lambda: _hooked_copy(model, folder)},
                    self.table,
                    self.path,
                    progress=False,
                    **self.options,
                )
        finally:
            torch.set_rng_state(cpu)
            if devices:
                torch.cuda.set_rng_state_all(devices)
        self.recorded[stage] = step


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]


def _hooked_copy(model: nn.Module, tokenizer_folder: str) -> nn.Module:
    """The model's weights as they are now, in a hooked model of their own."""
    inner = getattr(model, "module", model)  # out of DataParallel and its kin
    for name, parameter in inner.named_parameters():
        if type(parameter.data) is not torch.Tensor or (parameter.numel() == 0 and parameter.ndim == 1):
            raise InputError(
                f"parameter {name!r} is sharded over processes, so no process has the whole model to record. "
                "Save checkpoints instead and record them with stratalens.capture."
            )
    twin: Any = copy.deepcopy(inner)
    remove_forward_wrapper(twin)
    if hasattr(twin, "merge_and_unload"):  # LoRA and its kin: into the weights
        twin = twin.merge_and_unload()
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    twin.train(False)
    hooked: Any = boot(twin, tokenizer_folder, None, None)
    hooked.cfg.model_name = str(getattr(twin.config, "name_or_path", "") or type(twin).__name__)
    return cast(nn.Module, hooked)
