"""`stratalens demo`: the study at the smallest size that honestly shows the effect on two CPU cores."""

from __future__ import annotations

from pathlib import Path

from stratalens.recency.models.smollm import find_gguf
from stratalens.recency.presets import DEMO_REASONS, preset
from stratalens.recency.study import Outcome, run_study

QUICK_NOTE = (
    "This is the quick setting: so few entities, questions and training steps that it proves nothing. It shows the "
    "line from training to report; for the effect itself run `stratalens demo`."
)


def run_demo(out: str | Path = "demo", *, seed: int = 1, quick: bool = False) -> Outcome:
    """Fine-tune SmolLM2-135M through six stages, record every stage, analyse, report.

    Leaves run.zarr, report.html and summary.json in `out`, beside the corpus,
    the checkpoints and run.yaml. A second run with the same seed reuses what
    is finished. It should take minutes on two idle cores (`quick`: about two).

    Args:
        out: folder for everything.
        seed: of entities, partition and training order of the data.
        quick: a tiny setting that shows the line and proves nothing.

    Raises:
        InputError: the weights are not installed (the message has the pip
            command), or `out` holds another run.
    """
    find_gguf()  # before anything is written
    settings = preset("smoke" if quick else "demo", seed=seed)
    notes = (QUICK_NOTE,) if quick else (DEMO_REASONS,)
    return run_study(settings, out, notes=notes, proves_nothing=quick)
