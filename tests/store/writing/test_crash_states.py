"""States that a kill or a loss of power may leave, at any change of the disk, of every operation that writes.

`STRATALENS_CRASH_STATES=1000` judges as many states of each operation; `support.crash_states` has a command line.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.crash_disk import Disk
from support.crash_recorder import Recorder
from support.crash_scenarios import Scenario, scenarios
from support.crash_states import find_faults

STATES = int(os.environ.get("STRATALENS_CRASH_STATES", "10"))

SCENARIOS = list(scenarios())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_no_crash_loses_or_falsifies_anything(scenario: Scenario) -> None:
    states, faults = find_faults(scenario, STATES, seed=1)
    assert states >= min(STATES, 6)
    assert not faults


@pytest.mark.parametrize("scenario", SCENARIOS[::3], ids=lambda scenario: scenario.name)
def test_no_loss_of_power_after_a_kill_loses_anything(scenario: Scenario) -> None:
    _, faults = find_faults(scenario, max(4, STATES // 2), seed=2, twice=True)
    assert not faults


def test_the_model_of_a_disk_loses_what_was_not_made_durable(tmp_path: Path) -> None:
    import random

    place, start = tmp_path / "place", tmp_path / "empty"
    place.mkdir()
    start.mkdir()
    recorder = Recorder(str(place))
    with recorder.on():
        (place / "a.part").write_bytes(b"new")
        (place / "a.part").replace(place / "a")
        with (place / "b").open("wb") as file:
            file.write(b"durable")
            file.flush()
            os.fsync(file.fileno())
        folder = os.open(place, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        (place / "c").mkdir()
    disk = Disk(start)
    for operation in recorder.log:
        disk.apply(operation)
    choose = random.Random(0)
    assert disk.after_crash("kill", choose) == {"a": b"new", "b": b"durable", "c": None}
    assert disk.after_crash("none", choose) == {"a": b"", "b": b"durable"}  # a rename without fsync of the file
    assert disk.after_crash("names", choose) == {"a": b"", "b": b"durable", "c": None}
