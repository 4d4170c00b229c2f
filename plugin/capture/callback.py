"""RecordingCallback: record while a model trains with Hugging Face's Trainer, without writing checkpoints to disk."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from transformers import TrainerCallback, TrainerState

from stratalens.plugin.capture.options import CaptureOptions
from stratalens.plugin.capture.run import capture_stages
from stratalens.plugin.capture.training_copy import hooked_copy
from stratalens.plugin.prompts.table import PromptTable
from stratalens.plugin.stages.label_warnings import caller_level
from stratalens.plugin.stages.stage import check_stage_name
from stratalens.store.errors import InputError, LabelWarning, MismatchError, RecordingWarning, suggest

Steps = int | Sequence[int] | Callable[[int], bool]
OnError = Literal["raise", "warn"]


class RecordingCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """A callback that records activations at chosen steps of a training run, each as one stage of a store.

    It hooks, records and frees a copy of the weights in evaluation mode, and restores the random state. A run with this
    callback therefore ends in the same weights as a run without it. A resumed run skips the stages that the store has
    already.

    Every stage has the weights of the step in its name. The last step is recorded before `load_best_model_at_end` loads
    the best model. A step that did not change the weights (learning rate 0, a skipped update) is recorded as it is.

    A run that starts at step 0 again is another run. It is not recorded into the stages of the first one: give it
    another `path`, or a `name` that differs. A resumed run continues the stages of the first one.

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
        on_error: "warn" lets the training continue after a step that could not be recorded, with a RecordingWarning;
            `failures` keeps the reason. "raise" raises the error, which ends the training.
        **options: further arguments of `stratalens.capture` (sites, layers, positions, dtype, statistics, prepend_bos,
            batch_size, device, ...). `allow_same_weights` is True unless you pass it.

    Attributes:
        recorded: stage name to step, of the current run.
        failures: step to the reason why it was not recorded, of the current run.

    Raises:
        InputError: an argument is not valid. With on_error="raise", also: there is no tokenizer, two steps have the
            same stage name, the weights are sharded over processes, the model puts virtual tokens before the prompts
            (prompt tuning), or `capture` refuses its arguments.
        MismatchError: with on_error="raise", the store has the stages of another run.

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
        on_error: OnError = "warn",
        **options: Any,
    ) -> None:
        if isinstance(steps, int) and steps < 1:
            raise InputError(
                f"steps={steps} is not valid. Pass a positive number of steps, a list of steps, or a function of the "
                "step."
            )
        if on_error not in ("raise", "warn"):
            raise InputError(f"on_error={on_error!r}: {suggest(str(on_error), ('raise', 'warn'))}")
        # What is wrong here is raised here: in the training it would only be a warning.
        if not isinstance(table, PromptTable):
            raise InputError(
                f"the table is {type(table).__name__}, not a PromptTable. "
                "Read it with stratalens.PromptTable.read('prompts.csv')."
            )
        names = [field.name for field in fields(CaptureOptions)]
        for option in options:
            if option not in names:
                raise InputError(f"unknown argument {option!r} of RecordingCallback: {suggest(option, names, 40)}")
        self.table = table
        self.path = path
        self.steps = steps
        self.start = start
        self.end = end
        self.tokenizer = tokenizer
        self.name = name
        self.on_error = on_error
        chosen: dict[str, Any] = {"progress": False, "allow_same_weights": True, **options}
        self.options = CaptureOptions(**chosen)
        self.recorded: dict[str, int] = {}
        self.failures: dict[int, str] = {}
        self._identity: tuple[str, str] | None = None  # path and name of step 0 of the current run
        self._running = False
        self._resumed = False
        self._refused = False  # this run is another one than that of the store

    def is_chosen(self, step: int) -> bool:
        """Decide whether `step` is one of the chosen steps."""
        if callable(self.steps):
            return bool(self.steps(step))
        if isinstance(self.steps, int):
            return step % self.steps == 0 and (step > 0 or self.start)
        return step in self.steps

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record before the first update, or at the first step of a resumed run, if it is a chosen step."""
        if state.is_world_process_zero:
            self._running = True
            self._guard(int(state.global_step), self._start_run)
        self._record(state, kwargs, is_last=False)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record after an update, if it is a chosen step or the last one."""
        self._record(state, kwargs, control.should_training_stop or 0 < state.max_steps <= state.global_step)

    def on_epoch_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record the last step where another callback ends the training early."""
        if self.end and control.should_training_stop:
            self._record(state, kwargs, is_last=True)

    on_evaluate = on_epoch_end
    on_save = on_epoch_end

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Record the last step if that has not happened, unless the Trainer has loaded other weights since."""
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        step = int(state.global_step)
        if best is None or str(best).endswith(f"-{step}"):
            self._record(state, kwargs, is_last=True)
        elif self.end and self._wants(state) and step not in self.recorded.values():
            self._guard(step, _refuse_best_model)
        self._running = False

    def _start_run(self, step: int) -> None:
        """Forget the stages of an earlier `train()`, and refuse to mix them with those of another run.

        Raises:
            MismatchError: this callback has recorded another run under the same names.
        """
        try:
            first_name = self.name(0)
        except Exception:  # a name of the chosen steps alone
            first_name = ""
        identity = (os.fspath(self.path), first_name)
        # A Trainer that searches for its batch size starts again at step 0 with the same weights.
        is_restart = not any(self.recorded.values()) and self.is_chosen(0)
        is_other_run = step == 0 and identity == self._identity and bool(self.recorded) and not is_restart
        self.recorded, self.failures, self._identity = {}, {}, identity
        self._resumed, self._refused = step > 0, is_other_run
        if is_other_run:
            raise MismatchError(
                f"this callback has recorded another run into {self.path}. Set another callback.path, or a "
                "callback.name that differs from run to run, before each trainer.train()."
            )

    def _wants(self, state: TrainerState) -> bool:
        """Whether this process records, and has not been refused at this step or in this run."""
        is_open = self._running and not self._refused and int(state.global_step) not in self.failures
        return bool(state.is_world_process_zero) and is_open

    def _record(self, state: TrainerState, context: dict[str, Any], is_last: bool) -> None:
        if not self._wants(state):
            return

        def record(step: int) -> None:
            if (is_last and self.end) or self.is_chosen(step):
                self._record_step(step, context)

        self._guard(int(state.global_step), record)

    def _guard(self, step: int, function: Callable[[int], None]) -> None:
        """Call a function of the step; an error of it becomes a warning unless the caller wants it raised."""
        try:
            function(step)
        except Exception as error:
            if self.on_error == "raise":
                raise
            reason = f"{type(error).__name__}: {error}"
            self._refused = self._refused or (isinstance(error, MismatchError) and not self._resumed)
            scope = "this run is not recorded from here on" if self._refused else f"step {step} was not recorded"
            self.failures[step] = reason
        else:
            return
        # Here and not in the except clause, whose traceback still holds the copy of the weights.
        warnings.warn(
            f"{scope}, the training continues. {reason} (RecordingCallback(..., on_error='raise') raises the error.)",
            RecordingWarning,
            stacklevel=caller_level(),
        )

    def _record_step(self, step: int, context: dict[str, Any]) -> None:
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
                options = replace(self.options, tokenizer=tokenizer)
                twin = partial(hooked_copy, model, folder, None if is_fast else tokenizer)
                capture_stages({stage: twin}, self.table, self.path, options)
        finally:
            torch.set_rng_state(cpu)
            if devices:
                torch.cuda.set_rng_state_all(devices)
        self.recorded[stage] = step


def _refuse_best_model(step: int) -> None:
    raise InputError(
        f"the training ended after an evaluation at step {step}, and the Trainer has loaded the best model since. Put "
        "RecordingCallback after the callback that ends the training (callbacks=[EarlyStoppingCallback(), recording])."
    )


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
