"""Crash states: every prefix of the changes that an operation makes, with what was not durable lost.

An operation is recorded once. A prefix of its changes is replayed on a model of a disk, and one state that a crash may
leave is built and judged: it is opened, verified, compared with the truth and with the calls that had returned. Then
the operation runs again, and the end must equal that of a run without a crash, byte for byte.

    PYTHONPATH=src:tests python -m support.crash_states [--states N] [--shards K] [--counts FILE] [--twice] [NAME ...]

The model is strict: a name is durable only once its folder is fsynced. `--twice` ends the operation by a kill or a loss
of power, runs it again, and crashes this second run; then it runs a third time. `--counts` makes the command
resumable: the file has a line for each scenario and shard, and different shards count a state once. The exit code is 0
if every state holds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

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
    recorder = Recorder(str(root), unseen=scenario.unseen)
    with recorder.on():
        scenario.act(root, recorder.ack)
    return recorder.log


def crash_states(scenario: Scenario, work: Path, choose: random.Random, twice: bool) -> Iterator[CrashState]:
    """Yield states after crashes of a scenario, without end; `work` holds the folders start and whole."""
    live, modes = work / "live", MODES[:1] if scenario.unseen else MODES
    shutil.copytree(work / "start", live)
    log = record_changes(scenario, live)
    shutil.copytree(live, work / "whole")
    points = [(moment, mode) for moment in range(len(log) + 1) for mode in modes]
    points += [(len(log), mode) for mode in MODES if mode not in modes]
    while True:
        choose.shuffle(points)
        for moment, mode in points:
            disk = Disk(work / "start")
            operations = log[:moment]
            for operation in operations:
                disk.apply(operation)
            place = f"after {moment} of {len(log)} changes, {mode}"
            if twice:
                first = choose.choice(modes) if choose.random() < 0.5 else "kill"
                shutil.rmtree(live)
                build(disk.after_crash(first, choose), live)
                if first != "kill":
                    disk = Disk(live)  # what a loss of power left is what the disk has
                again = record_changes(scenario, live)
                second = choose.randrange(len(again) + 1)
                for operation in again[:second]:
                    disk.apply(operation, run=1)
                operations = [*operations, *again[:second]]
                place = f"{first} after {moment} of {len(log)} changes, then {mode} after {second} of {len(again)}"
            acks = frozenset(operation[1] for operation in operations if operation[0] == "ack")
            yield CrashState(disk.after_crash(mode, choose), acks, place)


def mark_of(state: CrashState) -> str:
    """Return what distinguishes a state from others in every process; times in a history do not count."""
    digest = blake2b(digest_size=8)
    for key, content in sorted(state.files.items()):
        shown = str(len(content or b"")).encode() if key.endswith("history.jsonl") else content
        digest.update(repr((key, shown)).encode())
    digest.update(repr(sorted(state.acks)).encode())
    return digest.hexdigest()


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


def find_faults(
    scenario: Scenario, states: int, seed: int, twice: bool = False, seen: set[str] | None = None
) -> tuple[int, list[str]]:
    """Judge states after crashes of one scenario.

    Args:
        scenario: the operation.
        states: number of different states; fewer if the operation does not have as many.
        seed: chooses the states.
        twice: crash the run that follows a crash.
        seen: marks of the states that were judged before; those of this call are added.

    Returns:
        Number of states that were judged, and a description of each fault.
    """
    choose = random.Random(f"{seed} {scenario.name} {twice}")
    shared_memory = Path("/dev/shm")
    seen = set() if seen is None else seen
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as folder:
        work = Path(folder)
        (work / "start").mkdir()
        scenario.prepare(work / "start")
        faults: list[str] = []
        judged = repeated = 0
        for state in crash_states(scenario, work, choose, twice):
            mark = mark_of(state)
            if mark in seen:
                repeated += 1
                if repeated > (2 if twice else 20) * states:
                    break
                continue
            seen.add(mark)
            root = work / "state"
            shutil.rmtree(root, ignore_errors=True)
            build(state.files, root)
            if problem := fault(scenario, root, state.acks, work / "whole"):
                faults.append(f"{scenario.name}, {state.place}: {problem.replace(str(root), '')}")
            judged += 1
            if judged == states:
                break
    return judged, faults


class Counts:
    """Results of a long run, one JSON line for each scenario and shard, so that an interrupted run resumes."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        self.shards: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def seen(self, name: str, twice: bool) -> set[str]:
        return {mark for s in self.shards if (s["scenario"], s["twice"]) == (name, twice) for mark in s["marks"]}

    def has(self, name: str, twice: bool, seed: int) -> bool:
        return any((s["scenario"], s["twice"], s["seed"]) == (name, twice, seed) for s in self.shards)

    def exhausted(self, name: str, twice: bool, seed: int) -> bool:
        """Return whether the shard before had hardly a state that no other shard has."""
        return any(
            len(s["marks"]) < 5
            for s in self.shards
            if (s["scenario"], s["twice"], s["seed"]) == (name, twice, seed - 1)
        )

    def add(self, shard: dict[str, Any]) -> None:
        self.shards.append(shard)
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(shard) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--states", type=int, default=100, help="of each scenario and shard")
    parser.add_argument("--shards", type=int, default=1, help="how often each scenario is run, with other seeds")
    parser.add_argument("--seed", type=int, default=0, help="of the first shard")
    parser.add_argument("--counts", type=Path, help="file of results; shards that it has are not run again")
    parser.add_argument("--twice", action="store_true")
    arguments = parser.parse_args()
    twice, counts = arguments.twice, Counts(arguments.counts)
    for seed in range(arguments.seed, arguments.seed + arguments.shards):
        for scenario in scenarios():
            name = scenario.name
            if counts.has(name, twice, seed) or (arguments.names and name not in arguments.names):
                continue
            before = counts.seen(name, twice)
            if counts.exhausted(name, twice, seed):
                continue
            seen = set(before)
            judged, faults = find_faults(scenario, arguments.states, seed, twice, seen)
            marks = sorted(seen - before)
            counts.add({"scenario": name, "twice": twice, "seed": seed, "marks": marks, "faults": faults})
            sys.stdout.write(f"{name}: {judged} states, {len(faults)} faults\n")
            sys.stdout.writelines(f"    {text}\n" for text in faults[:5])
            sys.stdout.flush()
    total, failed = (sum(len(shard[part]) for shard in counts.shards) for part in ("marks", "faults"))
    sys.stdout.write(f"{total} different states, {failed} faults\n")
    return int(failed > 0)


__all__ = ["contents", "find_faults", "scenarios"]

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
