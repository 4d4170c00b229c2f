"""What a run says about its progress, on a terminal and piped."""

from __future__ import annotations

import sys

import pytest

from stratalens.plugin import terminal as module
from stratalens.plugin.cli import output as console
from stratalens.plugin.terminal import PhaseProgress

LINE = "      balance between stages, largest difference of shares: 0.16 (occupation = politician)"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_is_folded_between_words_on_a_narrow_terminal_only(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "60")
    PhaseProgress({"corpus": 1.0}).say(LINE)
    said = capsys.readouterr().err
    console.print_status(LINE)  # the command line folds in the same way
    assert capsys.readouterr().err == said
    lines = said.splitlines()
    if not terminal:
        assert lines == [LINE]
        return
    assert len(lines) == 2
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("        ")  # deeper than the line that it belongs to
    assert " ".join(lines).split() == LINE.split()


def test_a_second_count_within_a_phase_has_its_own_pace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    watch = PhaseProgress({"recording": 0.5, "analyses": 0.5})
    with watch.phase("recording", "recording"):
        for now[0], done, total in ((0.0, 0, 100), (20.0, 100, 100), (20.0, 0, 4), (30.0, 1, 4)):
            watch.update(f"{done} of {total}", done, total)
    said = capsys.readouterr().err
    assert "100 of 100; about 20 s left in all" in said
    assert "1 of 4; about 1 min 30 s left in all" in said  # 3 more of 10 s, then analyses as long as all of 60 s
