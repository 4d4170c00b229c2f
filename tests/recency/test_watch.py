"""What a run says about its progress, on a terminal and piped."""

from __future__ import annotations

import sys

import pytest

from stratalens.recency.watch import Watch

LINE = "      balance between stages, largest difference of shares: 0.16 (occupation = politician)"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_is_folded_between_words_on_a_narrow_terminal_only(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "60")
    Watch({"corpus": 1.0}).say(LINE)
    lines = capsys.readouterr().err.splitlines()
    if not terminal:
        assert lines == [LINE]
        return
    assert len(lines) == 2
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("        ")  # deeper than the line that it belongs to
    assert " ".join(lines).split() == LINE.split()
