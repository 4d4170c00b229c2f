"""Fuzzers of the command line: seeded bad input of four kinds, and what no input may cause.

No case may end in a traceback, in an exit code other than 0, 1, 2 and 130, in more than 1 GB or 20 s, in a changed or
new file outside its folder, in a control character on the terminal, or in a message of more than 20,000 characters.

    PYTHONPATH=src:tests python -m support.fuzz [--cases N] [--seed S] [--first K] [KIND ...]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from typer.testing import CliRunner, Result

from stratalens.plugin.cli.app import app
from support.fuzz_cases import KINDS, Seeds, cases

SECONDS, BYTES, MESSAGE = 20, 10**9, 20_000
EXIT_CODES = (0, 1, 2, 130)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f-\x9f]")


class HungError(BaseException):
    """A case that takes too long; no handler of the product catches it."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise HungError in the block if it takes more processor seconds, or six times as many by the clock."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise HungError

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, seconds), (signal.SIGALRM, signal.ITIMER_REAL, 6 * seconds))
    before = [signal.signal(number, stop) for number, _, _ in timers]
    try:
        for _, timer, limit in timers:
            signal.setitimer(timer, limit)
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@dataclass(frozen=True)
class Outcome:
    """What one case did.

    Attributes:
        name: kind and number of the case.
        line: its command line.
        exit_code: the exit code of the command.
        fault: what must not happen, or "".
    """

    name: str
    line: list[str]
    exit_code: int
    fault: str


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _tree(folder: Path, *without: Path) -> dict[str, bytes | None]:
    """Return files and folders below a folder, except those in some others."""
    paths = (path for path in sorted(folder.rglob("*")) if not {path, *path.parents} & {*without})
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


def _judge(result: Result, before: int) -> str:
    error = result.exception
    if isinstance(error, HungError):
        return f"it takes more than {SECONDS} s"
    if error is not None and not isinstance(error, SystemExit):
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno} {last.name}: {str(error)[:200]}"
    if result.exit_code not in EXIT_CODES:
        return f"exit code {result.exit_code}"
    if _peak_bytes() - before > BYTES:
        return f"it takes {(_peak_bytes() - before) / 1e9:.1f} GB"
    if match := CONTROL.search(result.output):
        return f"the control character {match[0]!r} reaches the terminal"
    if result.exit_code and len(result.stderr) > MESSAGE:
        return f"a message of {len(result.stderr)} characters"
    if result.exit_code == 2 and not result.stderr.strip():
        return "wrong input without a message"
    return ""


def run_cases(kind: str, seeds: Seeds, work: Path, count: int, seed: int = 0, first: int = 0) -> Iterator[Outcome]:
    """Run cases of one kind in this process, each in a fresh folder with the good inputs.

    Args:
        kind: one of `KINDS`.
        seeds: the good inputs.
        work: an empty folder.
        count: number of cases.
        seed: chooses the cases.
        first: number of the first case.
    """
    here = Path.cwd()
    (work / "outside.txt").write_text("mine")
    home = work / "home"  # libraries keep their settings there
    home.mkdir(exist_ok=True)
    runner = CliRunner(env={"HOME": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "NO_COLOR": "1"})
    for number, (make_case, choose) in enumerate(cases(kind, seed)):
        if number >= first + count:
            return
        if number < first:
            continue
        place = work / "in" / "place"
        shutil.rmtree(work / "in", ignore_errors=True)
        seeds.copy_to(place)
        line = make_case(seeds, place, choose)
        outside, memory = _tree(work, place, home), _peak_bytes()
        os.chdir(place)
        try:
            with warnings.catch_warnings(), time_limit(SECONDS):
                warnings.simplefilter("ignore")
                result = runner.invoke(app, line)
            fault = _judge(result, memory)
        except HungError:
            fault = f"it takes more than {SECONDS} s"
        finally:
            os.chdir(here)
        if not fault and _tree(work, place, home) != outside:
            fault = f"files outside its folder: {sorted(set(_tree(work, place, home)) ^ set(outside))[:3]}"
        yield Outcome(f"{kind} {seed}.{number}", line, result.exit_code, fault)


def main() -> int:
    from support.crash_scenarios import record
    from support.models import save_checkpoint

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--cases", type=int, default=500, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        save_checkpoint(top / "model", "llama", seed=0)
        (top / "seeds").mkdir()
        seeds = Seeds(top / "seeds", top / "model", record)
        for kind in options.kinds:
            work = top / kind.replace(" ", "-")
            work.mkdir()
            codes: dict[int, int] = {}
            for outcome in run_cases(kind, seeds, work, options.cases, options.seed, options.first):
                codes[outcome.exit_code] = codes.get(outcome.exit_code, 0) + 1
                if outcome.fault:
                    failed += 1
                    shown = [text[:80] for text in outcome.line]
                    sys.stdout.write(f"{outcome.name} {shown}: {outcome.fault}\n")
                    sys.stdout.flush()
            sys.stdout.write(f"{kind}: {sum(codes.values())} cases, exit codes {dict(sorted(codes.items()))}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{failed} faults\n")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
