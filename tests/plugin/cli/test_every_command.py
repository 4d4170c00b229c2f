"""Every command on a small store: one JSON object with `--json`, plain text in a pipe, no colour with NO_COLOR, and
help with an example that fits in 80 columns.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.main import get_command

from stratalens.plugin.cli.app import app
from support.thorough import THOROUGH
from support.tiny_study import save_base

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but line feed and tab
COLOUR = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?=[;m])[0-9;]*m")
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]

# command -> arguments and keys of its JSON object; `words` replaces STORE, RUN, STUDY, PROMPTS and OUT by paths
TABLE: dict[str, tuple[list[str], set[str]]] = {
    "study": (["STUDY", "--out", "OUT/study"], {"folder", "store", "report", "summary"}),
    "forecast": (["RUN"], {"bytes", "files", "tokens", "memory_bytes"}),
    "capture": (["RUN"], {"store", "stages", "complete", "bytes", "files"}),
    "info": (["STORE"], {"path", "dims", "sites", "completeness", "provenance"}),
    "verify": (["STORE"], {"ok", "damaged", "missing"}),
    "analyze": (["STORE", "--verbs", "centroids", "-o", "OUT/results"], {"store", "folder", "results"}),
    "report": (["STORE", "--permutations", "0", "-o", "OUT/report.html"], {"store", "report", "bytes"}),
    "steer": (
        ["STORE", "--prompts", "OUT/answers.csv", "--stage", "s3", "--layer", "1", "--random", "2", "-o", "OUT/e.zarr"],
        {"store", "effects", "verdict"},
    ),
    "export": (
        ["STORE", "--site", "resid_post", "--layer", "1", "--to", "OUT/a.npy"],
        {"store", "site", "layer", "file", "files", "bytes"},
    ),
    "import": (
        ["OUT/x.npy", "--table", "PROMPTS", "-o", "OUT/imported.zarr"],
        {"store", "stages", "sites", "complete"},
    ),
    "init": (["OUT", "PROMPTS", "-o", "OUT/init.yaml", "--force"], {"run_file", "stages", "prompts", "by"}),
    "label": (["STORE", "PROMPTS"], {"store", "changed"}),
    "push": (["STORE", "OUT/pushed.zarr", "--no-figure"], {"url", "files", "bytes", "total_files", "figure"}),
    "commit": (["STORE", "OUT/run.icechunk"], {"store", "repository", "committed"}),
}
ELSEWHERE = {
    "check",  # takes a model; it has its own test in test_check.py
    "demo",  # `study` with a preset; its weights have a hundred megabytes
    "explore",  # serves until Ctrl-C; has its own test below
    "preflight",  # needs a hub; it has its own test in test_hub_command.py
}
# environment variables that change how output is drawn
DRAWING = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "CI", "GITHUB_ACTIONS", "PY_COLORS", "HF_HUB_DISABLE_PROGRESS_BARS"}
NEEDS = {"commit": "icechunk"}
SLOW = ("study", "report")  # the test of `--json` runs them
SMALL = {
    "stages": 3,
    "entities_per_stage": 12,
    "train_questions": 1,
    "train": {"epochs": 1, "batch_size": 12, "learning_rate": 1.0e-2, "precision": "float32"},
    "record": {"positions": ["last"], "answers": "none"},
    "analysis": {"repeats": 2, "permutations": 5, "sweep_permutations": 5, "probe_permutations": 2, "bins": 2},
}


@pytest.fixture(scope="module")
def words(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """A function that returns the command line of a command in the table, with paths filled in."""
    out = tmp_path_factory.mktemp("out")
    np.save(out / "x.npy", np.ones((3, 36, 4), np.float32))
    answers = pd.read_csv(recorded.parent / "prompts.csv").assign(answer=" me")
    answers.to_csv(out / "answers.csv", index=False)
    study = out / "study.yaml"
    study.write_text(yaml.safe_dump({"model": str(save_base(out / "base", layers=1)), **SMALL}))
    places = {"STORE": recorded, "RUN": recorded.parent / "run.yaml", "STUDY": study, "OUT": out}
    places["PROMPTS"] = recorded.parent / "prompts.csv"

    def command_line(command: str) -> list[str]:
        if command in NEEDS:
            pytest.importorskip(NEEDS[command])
        return [
            command,
            *(re.sub("STORE|RUN|STUDY|OUT|PROMPTS", lambda m: str(places[m[0]]), a) for a in TABLE[command][0]),
        ]

    return command_line


def test_the_table_has_every_command() -> None:
    assert set(TABLE) | ELSEWHERE == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert "--json" in {flag for parameter in command.params for flag in parameter.opts}, name


@pytest.mark.parametrize("command", TABLE)
def test_json_is_one_object(command: str, words: Callable[[str], list[str]], invoke: Callable[..., Any]) -> None:
    result = invoke(*words(command), "--json")
    assert result.exit_code == 0, result.output
    json_object = json.loads(result.stdout)
    assert isinstance(json_object, dict)
    assert TABLE[command][1] <= set(json_object)


def test_output_in_a_pipe_is_plain_text(words: Callable[[str], list[str]]) -> None:
    without = NEEDS if THOROUGH else (*NEEDS, *SLOW)
    lines = [words(name) for name in TABLE if name not in without]
    done = subprocess.run(_in_one_process([*lines, ["--help"]]), env=_environment({}), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert CONTROL.findall(done.stdout + done.stderr) == [], done.stdout + done.stderr


@pytest.mark.parametrize("command", TABLE)
def test_a_failing_command_prints_no_partial_object(command: str, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    if command in NEEDS:
        pytest.importorskip(NEEDS[command])
    paths = {"STORE": tmp_path / "no.zarr", "RUN": tmp_path / "no.yaml", "STUDY": tmp_path / "no.yaml"}
    paths["PROMPTS"] = tmp_path / "no.csv"
    arguments = [str(paths.get(a, a)).replace("OUT", str(tmp_path)) for a in TABLE[command][0]]
    failed = invoke(command, *arguments, "--json")
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")
    assert re.search(r"\bno[. ]", failed.stderr)  # a path of this test, or "has no checkpoint", "no such file"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_no_color_removes_colour_on_a_terminal(words: Callable[[str], list[str]]) -> None:
    lines = [words(name) for name in ("info", "verify")]  # the test of a pipe has the others
    helps = [*([name, "--help"] for name in COMMANDS), ["--help"]]
    plain = _on_a_terminal(_in_one_process([*lines, *helps]), {"NO_COLOR": "1"})
    assert COLOUR.findall(plain) == []
    printed = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", plain).replace("\r\n", "\n").split("\n")
    drawn = [line for line in printed if re.search("[│┃╭╰┏└├]", line)]
    assert drawn
    assert max(map(len, drawn)) <= 80
    assert COLOUR.findall(_on_a_terminal(_in_one_process([["--help"]]), {})), (
        "the pattern finds colours where there are some"
    )


def _in_one_process(lines: list[list[str]]) -> list[str]:
    """Return a command that runs all lines in one process."""
    code = (
        "import sys\n"
        "from stratalens.plugin.cli.app import app\n"
        f"for line in {lines!r}:\n"
        "    try:\n"
        "        app(line)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, (line, end.code)\n"
    )
    return [sys.executable, "-c", code]


def _environment(changes: dict[str, str]) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in DRAWING}
    return {**plain, "TERM": "xterm-256color", **changes}


def _on_a_terminal(command: list[str], changes: dict[str, str]) -> str:
    """Run a command that must succeed and return its output on a terminal of 80 columns."""
    import fcntl
    import pty
    import struct
    import termios

    reader, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    running = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=_environment(changes))
    os.close(terminal)
    written = b""
    while True:
        try:
            chunk = os.read(reader, 65536)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        written += chunk
    os.close(reader)
    text = written.decode()
    assert running.wait() == 0, text
    return text


def test_explore_prints_its_address(recorded: Path) -> None:
    command = [sys.executable, "-m", "stratalens", "explore", str(recorded), "--port", "0", "--json"]
    # A shell without job control starts background processes with SIGINT ignored. The command must end there too.
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command]
    with subprocess.Popen(ignoring, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            text = ""
            while not text.endswith("}\n"):
                line = running.stdout.readline()
                assert line, running.communicate()
                text += line
            running.send_signal(signal.SIGINT)
            rest, errors = running.communicate(timeout=120)
        finally:
            running.kill()
    address = json.loads(text)
    assert address["store"] == str(recorded)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address["url"])
    assert (running.returncode, rest) == (0, "")
    assert "has ended" in errors


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_on_one_line(name: str) -> None:
    example = str(COMMANDS[name].epilog)
    assert example.startswith(f"Example: stratalens {name}")
    assert len(example) <= 78
