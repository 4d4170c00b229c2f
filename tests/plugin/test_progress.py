"""Progress lines on a terminal and in a pipe, and progress bars of other libraries."""

from __future__ import annotations

import re
import sys

import pytest
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

from stratalens.plugin import progress as module
from stratalens.plugin.cli import output as console
from stratalens.plugin.progress import PhaseProgress, suppress_progress_bars
from stratalens.plugin.study.run import SHARES

LINE = "      balance between stages, largest difference of shares: 0.16 (occupation = politician)"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_is_wrapped_between_words_on_a_narrow_terminal_only(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "60")
    PhaseProgress({"corpus": 1.0}).say(LINE)
    output = capsys.readouterr().err
    console.print_status(LINE)  # the command line wraps in the same way
    assert capsys.readouterr().err == output
    lines = output.splitlines()
    if not terminal:
        assert lines == [LINE]
        return
    assert len(lines) == 2
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("        ")  # deeper than the first line
    assert " ".join(lines).split() == LINE.split()


def test_a_second_count_within_a_phase_has_its_own_pace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = PhaseProgress({"recording": 0.5, "analyses": 0.5})
    with progress.phase("recording", "recording"):
        for now[0], done, total in ((0.0, 0, 100), (20.0, 100, 100), (20.0, 0, 4), (30.0, 1, 4)):
            progress.update(f"{done} of {total}", done, total)
    output = capsys.readouterr().err
    assert "100 of 100; about 20 s left in all" in output
    assert "1 of 4; about 1 min 30 s left in all" in output  # 3 more of 10 s, then analyses for 60 s


@pytest.mark.parametrize("reused", [False, True])
def test_the_time_left_is_known_before_the_second_count_of_a_phase(
    reused: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {  # seconds of the counts of each phase, as in the demo
        "corpus": [1 if reused else 12],
        "training": [1 if reused else 420],
        "recording": [66, 66],
        "analyses": [50],
        "report": [6],
    }
    now, errors = [0.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = PhaseProgress(SHARES)
    end = sum(sum(counts[name]) for name in SHARES)
    for name, seconds in counts.items():
        with progress.phase(name, name):
            for count in seconds:
                start = now[0]
                for step in range(7):
                    now[0] = start + count * step / 6
                    progress.update(name, step, 6)
                    minutes = re.search(r"about (?:(\d+) min ?)?(?:(\d+) s )?left in all", capsys.readouterr().err)
                    if minutes and name not in ("corpus", "training" if reused else ""):
                        left = 60 * int(minutes[1] or 0) + int(minutes[2] or 0)
                        errors.append(left - (end - now[0]))
    assert len(errors) >= 12
    assert max(map(abs, errors)) < (
        90 if reused else 30
    )  # a run that reuses its training cannot expect the second count


@pytest.mark.parametrize("downloads", [True, False])
@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_are_hidden_inside_and_restored_afterwards(downloads: bool, shown: bool) -> None:
    def state() -> tuple[bool, bool]:
        return logging.is_progress_bar_enabled(), not are_progress_bars_disabled()

    before = state()
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        expected = state()
        with suppress_progress_bars(downloads=downloads):
            assert state() == (False, shown and not downloads)
        assert state() == expected
    finally:
        (logging.enable_progress_bar if before[0] else logging.disable_progress_bar)()
