"""Named settings of a study, and the reasons for those of the demo.

The settings of `demo` were chosen on seeds 0, 101 and 102, never on its own seed 1. The report shows `DEMO_REASONS`.
"""

from __future__ import annotations

from typing import Any

from stratalens.plugin.study.config.settings import (
    AnalysisSettings,
    LastSettings,
    RecordSettings,
    SelfReportSettings,
    StudySettings,
    TrainSettings,
    validate_settings,
)
from stratalens.store.errors import InputError, suggest

DEMO_REASONS = (
    "The settings were chosen on other entities than those of this report. With 3 epochs over 5 questions in batches "
    "of 64 (72 updates a stage, learning rate 7e-4), the accuracy of first v last after the final norm was 0.60, "
    "against 0.50 with shuffled labels and 0.48 untrained: too few updates to remember much. With 150 updates a stage "
    "(4 epochs over 4 questions in batches of 32, learning rate 5e-4, 8 blocks) it was 0.83, and 0.49 with shuffled "
    "labels. Cheaper settings were tried on seed 101. The same number of updates from batches of 16 in 2 epochs gave "
    "0.52, so the model has to see an answer more often. The first 6 blocks instead of 8 gave 0.70, 3 epochs at 7e-4 "
    "gave 0.71, and both together gave 0.69 (untrained 0.49). On seed 0, 4 epochs on 8 blocks gave 0.77 and a clear "
    "order; 3 epochs at 7e-4 on 6 blocks gave 0.61 and no order. The demo therefore trains 4 epochs at 5e-4 on 6 "
    "blocks, with the entities of seed 1, on which no setting was tried."
)

# The documented run of the demo (docs/study-results/demo-seed-1): value and 95 % interval by name of the number.
DEMO_SEED = 1
DEMO_RESULTS = {
    "first v last accuracy": (0.67, 0.63, 0.70),
    "first v last accuracy after the final norm": (0.70, 0.66, 0.73),
    "early v late accuracy after the final norm": (0.58, 0.56, 0.61),
}

PRESETS: dict[str, StudySettings] = {
    "demo": StudySettings(
        preset="demo",
        layers=6,
        vocabulary="used",
        entities_per_stage=300,
        train_questions=4,
        train=TrainSettings(epochs=4, batch_size=32, learning_rate=5e-4),
    ),
    "smoke": StudySettings(
        preset="smoke",
        layers=2,
        vocabulary="used",
        entities_per_stage=24,
        train_questions=2,
        train=TrainSettings(epochs=2, batch_size=16, learning_rate=1e-3),
        self_report=SelfReportSettings(epochs=2),
        analysis=AnalysisSettings(repeats=5, permutations=100, sweep_permutations=20, probe_permutations=20, bins=2),
    ),
    "cpu": StudySettings(
        preset="cpu",
        layers=12,
        vocabulary="used",
        entities_per_stage=400,
        train=TrainSettings(epochs=4, batch_size=32, learning_rate=5e-4, save="epoch"),
        self_report=SelfReportSettings(),
        record=RecordSettings(positions=("last", "-2", "entity_last"), last=LastSettings()),
        analysis=AnalysisSettings(statistic_sets=True),
    ),
    "paper": StudySettings(
        preset="paper",
        vocabulary="full",
        entities_per_stage=2640,
        seeds=(0, 1, 2),
        gpu=True,
        train=TrainSettings(epochs=5, batch_size=256, learning_rate=5e-5, save="epoch"),
        self_report=SelfReportSettings(),
        # int8 and bfloat16 keep stores and checkpoints of a seed under 20 GB (see `stratalens forecast`).
        record=RecordSettings(dtype="bfloat16", answers="all", last=LastSettings(dtype="int8")),
        analysis=AnalysisSettings(statistic_sets=True),
        keep_checkpoints="last",
    ),
}


def get_preset(name: str, **changes: Any) -> StudySettings:
    """Return a preset, with changes.

    Raises:
        InputError: the preset or a setting is unknown, or a value is wrong.

    Example:
        >>> get_preset("smoke", seed=3).seed
        3
    """
    if name not in PRESETS:
        raise InputError(f"Unknown preset {name!r}: {suggest(name, PRESETS)}")
    return validate_settings({**PRESETS[name].model_dump(), **changes}, f"preset {name!r}")
