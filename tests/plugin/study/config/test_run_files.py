"""Run files of documented studies stay valid: those of finished runs and those that are written down before a run."""

from pathlib import Path

import pytest
import yaml

from stratalens.plugin.study.config.settings import read_settings

RESULTS = Path(__file__).parents[4] / "docs" / "study-results"
FILES = sorted(
    file
    for file in RESULTS.glob("**/*.yaml")
    if "cells" not in yaml.safe_load(file.read_text(encoding="utf-8"))  # the factorial, which has several runs
)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_a_documented_run_file_can_be_run(file):
    settings = read_settings(file)
    assert settings.stages == 6


def test_runs_that_are_planned_use_no_tuning_seed():
    tuning = {0, 100, 101, 102}
    for folder in ("deep", "panels"):
        for file in (RESULTS / folder).glob("*.yaml"):
            settings = read_settings(file)
            assert not tuning & set(settings.seeds or (settings.seed,)), file
