"""Crash states: every prefix of the changes that an operation makes, with what was not durable lost.

An operation is recorded once. A prefix of its changes is replayed on a model of a disk, and one state that a crash may
leave is built and judged: it is opened, verified, compared with the truth and with the calls that had returned. Then
the operation runs again, and the end must equal that of a run without a crash, byte for byte.

    PYTHONPATH=src:tests python -m support.crash_states [--states N] [--twice] [--seed S] [SCENARIO ...]

`--twice` kills the operation, runs it again, and crashes the second run. The exit code is 0 if every state holds.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from support.crash_disk import MODES, Disk, State, build
from support.crash_recorder import Operation, Recorder
from support.crash_scenarios import BrokenPromiseError, Scenario, contents, ignore, scenarios


@dataclass(frozen=True)
class CrashState:
    """A state after a crash: its files, what had returned before, and where the crash was."""

    files: State
    acks: frozenset[str]
    place: str


def record_changes(scenario: Scenario, root: Path) -> list[Operation]:
    """Run the operation of a scenario and return its changes."""
    recorder = Recorder(str(root))
    with recorder.on():
        scenario.act(root, recorder.ack)
    return recorder.log


def crash_states(scenario: Scenario, work: Path, choose: random.Random, twice: bool) -> Iterator[CrashState]:
    """Yield states after crashes of a scenario, without end; `work` holds the folders start and whole."""
    live = work / "live"
    shutil.copytree(work / "start", live)
    log = record_changes(scenario, live)
    shutil.copytree(live, work / "whole")
    points = [(moment, mode) for moment in range(len(log) + 1) for mode in MODES]
    while True:
        choose.shuffle(points)
        for moment, mode in points:
            disk = Disk(work / "start")
            operations = log[:moment]
            for operation in operations:
                disk.apply(operation)
            place = f"after {moment} of {len(log)} changes, {mode}"
            if twice:
                shutil.rmtree(live)
                build(disk.after_crash("kill", choose), live)
                again = record_changes(scenario, live)
                second = choose.randrange(len(again) + 1)
                for operation in again[:second]:
                    disk.apply(operation, run=1)
                operations = [*operations, *again[:second]]
                place = f"killed after {moment} of {len(log)} changes, then after {second} of {len(again)}, {mode}"
            acks = frozenset(operation[1] for operation in operations if operation[0] == "ack")
            yield CrashState(disk.after_crash(mode, choose), acks, place)


def fault(scenario: Scenario, root: Path, acks: Collection[str], whole: Path) -> str:
    """Return what is wrong with a state, or "" if everything holds."""
    try:
        scenario.check(root, acks)
        scenario.act(root, ignore)
        after, expected = scenario.files(root), scenario.files(whole)
        different = sorted(key for key in {*after, *expected} if after.get(key) != expected.get(key))
        return f"the end differs from that of a run without a crash in {different[:4]}" if different else ""
    except BrokenPromiseError as error:
        return str(error)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {last.name}: {str(error)[:300]}"


def find_faults(scenario: Scenario, states: int, seed: int, twice: bool = False) -> tuple[int, list[str]]:
    """Judge states after crashes of one scenario.

    Args:
        scenario: the operation.
        states: number of different states; fewer if the operation does not have as many.
        seed: chooses the states.
        twice: crash the run that follows a kill.

    Returns:
        Number of states that were judged, and a description of each fault.
    """
    choose = random.Random(f"{seed} {scenario.name} {twice}")
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        work = Path(folder)
        (work / "start").mkdir()
        scenario.prepare(work / "start")
        seen: set[int] = set()
        faults: list[str] = []
        repeated = 0
        for state in crash_states(scenario, work, choose, twice):
            mark = hash((tuple(sorted(state.files.items())), state.acks))
            if mark in seen:
                repeated += 1
                if repeated > 20 * states:
                    break
                continue
            seen.add(mark)
            root = work / "state"
            shutil.rmtree(root, ignore_errors=True)
            build(state.files, root)
            if problem := fault(scenario, root, state.acks, work / "whole"):
                faults.append(f"{scenario.name}, {state.place}: {problem.replace(str(root), '')}")
            if len(seen) == states:
                break
    return len(seen), faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--states", type=int, default=100, help="of each scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--twice", action="store_true")
    arguments = parser.parse_args()
    total = failed = 0
    for scenario in scenarios():
        if arguments.names and scenario.name not in arguments.names:
            continue
        count, faults = find_faults(scenario, arguments.states, arguments.seed, arguments.twice)
        total, failed = total + count, failed + len(faults)
        sys.stdout.write(f"{scenario.name}: {count} states, {len(faults)} faults\n")
        sys.stdout.writelines(f"    {text}\n" for text in faults[:5])
        sys.stdout.flush()
    sys.stdout.write(f"{total} states, {failed} faults\n")
    return int(failed > 0)


__all__ = ["contents", "find_faults", "scenarios"]

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
