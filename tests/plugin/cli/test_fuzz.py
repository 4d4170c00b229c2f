"""Two hundred seeded bad run files, tables, arguments and stores: each command ends in one clear message or works.

`python -m support.fuzz` runs as many as you like.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from stratalens.plugin.cli.app import app
from support.crash_scenarios import record
from support.fuzz import run_cases
from support.fuzz_cases import COMMANDS, KINDS, Seeds


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory, checkpoints: Path) -> Seeds:
    return Seeds(tmp_path_factory.mktemp("seeds"), checkpoints / "base", record)


def test_the_inputs_work_before_they_are_spoiled(seeds: Seeds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds.copy_to(tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    Path("run.yaml").write_text(yaml.safe_dump(seeds.run_file()))
    for line in (["forecast", "run.yaml"], *([name, *COMMANDS[name]] for name in ("import", "label", "analyze"))):
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_ends_in_a_message(kind: str, seeds: Seeds, tmp_path: Path) -> None:
    outcomes = list(run_cases(kind, seeds, tmp_path, 50, seed=7))
    assert [outcome for outcome in outcomes if outcome.fault] == []
    assert sum(outcome.exit_code in (1, 2) for outcome in outcomes) >= 10
