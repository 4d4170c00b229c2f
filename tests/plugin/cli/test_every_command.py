"""Every command on a small store: `--json` is one object and nothing else, a pipe gets plain text, a terminal no colour
where NO_COLOR asks for none, and help has an example that can be copied from 80 columns.
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

import pytest
import yaml
from typer.main import get_command

from stratalens.plugin.cli.app import app
from support.tiny_study import save_base

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but line feed and tab
COLOUR = re.compile(r"\x1b\[[0-9;]*\b(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?=[;m])[0-9;]*m")
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]

# command -> arguments (STORE, RUN, STUDY and OUT are put in) and keys of its JSON object
TABLE: dict[str, tuple[list[str], set[str]]] = {
    "study": (["STUDY", "--out", "OUT/study"], {"folder", "store", "report", "summary"}),
    "forecast": (["RUN"], {"bytes", "files", "tokens", "memory_bytes"}),
    "capture": (["RUN"], {"store", "stages", "complete", "bytes", "files"}),
    "info": (["STORE"], {"path", "dims", "sites", "completeness", "provenance"}),
    "verify": (["STORE"], {"ok", "damaged", "missing"}),
    "analyze": (["STORE", "--verbs", "centroids", "-o", "OUT/results"], {"store", "folder", "results"}),
    "report": (["STORE", "-o", "OUT/report.html"], {"store", "report", "bytes"}),
    "export": (
        ["STORE", "--site", "resid_post", "--layer", "1", "--to", "OUT/a.npy"],
        {"store", "site", "layer", "file", "bytes"},
    ),
    "label": (["STORE", "PROMPTS"], {"store", "changed"}),
    "commit": (["STORE", "OUT/run.icechunk"], {"store", "repository", "committed"}),
}
ELSEWHERE = {
    "demo",  # `study` with a preset; its weights are a hundred megabytes
    "explore",  # serves until Ctrl-C: below
}
# variables by which an environment says how output is drawn
DRAWING = {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "CI", "GITHUB_ACTIONS", "PY_COLORS", "HF_HUB_DISABLE_PROGRESS_BARS"}
NEEDS = {"commit": "icechunk"}
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
    """Arguments of a command of the table, with its places put in."""
    out = tmp_path_factory.mktemp("out")
    study = out / "study.yaml"
    study.write_text(yaml.safe_dump({"model": str(save_base(out / "base")), **SMALL}))
    places = {"STORE": recorded, "RUN": recorded.parent / "run.yaml", "STUDY": study, "OUT": out}
    places["PROMPTS"] = recorded.parent / "prompts.csv"

    def put_in(command: str) -> list[str]:
        if command in NEEDS:
            pytest.importorskip(NEEDS[command])
        return [
            command,
            *(re.sub("STORE|RUN|STUDY|OUT|PROMPTS", lambda m: str(places[m[0]]), a) for a in TABLE[command][0]),
        ]

    return put_in


def test_the_table_has_every_command() -> None:
    assert set(TABLE) | ELSEWHERE == set(COMMANDS)
    for name, command in COMMANDS.items():
        assert "--json" in {flag for parameter in command.params for flag in parameter.opts}, name


@pytest.mark.parametrize("command", TABLE)
def test_json_is_one_object(command: str, words: Callable[[str], list[str]], invoke: Callable[..., Any]) -> None:
    told = invoke(*words(command), "--json")
    assert told.exit_code == 0, told.output
    held = json.loads(told.stdout)
    assert isinstance(held, dict)
    assert TABLE[command][1] <= set(held)


def test_in_a_pipe_all_is_plain(words: Callable[[str], list[str]]) -> None:
    given = [words(name) for name in TABLE if name not in NEEDS]
    done = subprocess.run(_together([*given, ["--help"]]), env=_environment({}), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert CONTROL.findall(done.stdout + done.stderr) == [], done.stdout + done.stderr


@pytest.mark.parametrize("command", TABLE)
def test_a_failing_command_prints_no_half_object(command: str, tmp_path: Path, invoke: Callable[..., Any]) -> None:
    if command in NEEDS:
        pytest.importorskip(NEEDS[command])
    put_in = {"STORE": tmp_path / "no.zarr", "RUN": tmp_path / "no.yaml", "STUDY": tmp_path / "no.yaml"}
    put_in["PROMPTS"] = tmp_path / "no.csv"
    arguments = [str(put_in.get(a, a)).replace("OUT", str(tmp_path)) for a in TABLE[command][0]]
    failed = invoke(command, *arguments, "--json")
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")
    assert "no." in failed.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_no_colour_where_none_is_wanted(words: Callable[[str], list[str]]) -> None:
    given = [words(name) for name in TABLE if name not in ("study", *NEEDS)]
    helps = [*([name, "--help"] for name in COMMANDS), ["--help"]]
    plain = _on_a_terminal(_together([*given, *helps]), {"NO_COLOR": "1"})
    assert COLOUR.findall(plain) == []
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", plain).replace("\r\n", "\n").split("\n")
    drawn = [line for line in lines if re.search("[│┃╭╰┏└├]", line)]
    assert drawn
    assert max(map(len, drawn)) <= 80
    assert COLOUR.findall(_on_a_terminal(_together([["--help"]]), {})), "so that none above is no accident"


def _together(lines: list[list[str]]) -> list[str]:
    """A command that runs all of them in one process."""
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
    """All that a command wrote to its terminal of 80 columns; it must succeed."""
    import fcntl
    import pty
    import struct
    import termios

    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 80, 0, 0))
    running = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=_environment(changes))
    os.close(its)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        said += part
    os.close(ours)
    text = said.decode()
    assert running.wait() == 0, text
    return text


def test_explore_says_where_it_is(recorded: Path) -> None:
    command = [sys.executable, "-m", "stratalens", "explore", str(recorded), "--port", "0", "--json"]
    # A shell without job control starts what runs in the background with Ctrl-C ignored: it has to work there, too.
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
    held = json.loads(text)
    assert held["store"] == str(recorded)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", held["url"])
    assert (running.returncode, rest) == (0, "")
    assert "has ended" in errors


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_on_one_line(name: str) -> None:
    example = str(COMMANDS[name].epilog)
    assert example.startswith(f"Example: stratalens {name}")
    assert len(example) <= 78
