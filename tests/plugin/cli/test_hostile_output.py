"""No text of a store or a file reaches a terminal as an escape sequence, and no message is endless."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from stratalens.plugin.cli.output import emit_table, emit_text, print_status
from stratalens.plugin.cli.run_file import read_run_file
from stratalens.plugin.cli.store_jobs import verify_job
from stratalens.store.errors import InputError, StratalensError
from stratalens.store.format.schema import check_name

HOSTILE = "a\x1b[2Jb\x9b31mc\x07d\x7f\u202ee\ud800"
VISIBLE = r"a\x1b[2Jb\x9b31mc\x07d\x7f\u202ee\ud800"


def test_controls_are_escaped_wherever_text_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    emit_text(f"{HOSTILE}\tx\ny")
    emit_table(HOSTILE, ["a"], [[HOSTILE]])
    print_status(HOSTILE)
    output = capsys.readouterr()
    assert output.out == f"{VISIBLE}\tx\ny\n# {VISIBLE}\na\n{VISIBLE}\n"
    assert output.err == f"{VISIBLE}\n"


def test_controls_are_escaped_in_errors_and_long_ones_are_cut() -> None:
    assert str(StratalensError(f"no {HOSTILE}")) == f"no {VISIBLE}"
    text = str(InputError("start " + "x" * 10**7 + " remedy"))
    assert len(text) < 4100
    assert text.startswith("start ")
    assert text.endswith(" remedy")


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\x85", "\x7f", "\ud800", "/"])
def test_no_new_name_has_a_control(character: str) -> None:
    with pytest.raises(InputError, match="cannot name an array"):
        check_name(f"a{character}b", "label column")


ALIASES = "\n".join(["a: &a [x,x,x,x,x,x,x,x,x,x]", *(f"{n}{n}: &{n} [{', '.join([f'*{p}'] * 10)}]" for p, n in zip(
    "abcdef", "bcdefg", strict=True))])  # fmt: skip

BAD = [
    "prompts: 2001-99-99",
    "layers: [!!int abc]",
    "statistics: !!bool maybe",
    "batch_size: " + "9" * 5000,
    "sites: " + "[" * 3000 + "]" * 3000,
    'store: "a\\0b"',
    'store: "\\ud800"',
    'prompts: "a\\0b"',
    "stages: [{name: a, path: b, order: 99999999999999999999}]",
    f"{ALIASES}\nsites: *g",
    "? [a, b]\n: c",
    "prompts: &a [*a]",
    "!!python/object/apply:os.system [ls]",
    "\x00",
    "- 1",
    "",
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_bad_run_file_is_one_short_message(tmp_path: Path, number: int) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(BAD[number].encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError) as error:
        read_run_file(path)
    assert len(str(error.value)) < 4100
    assert "\x00" not in str(error.value)


VALUES: list[Any] = [None, True, -1, 0, 1.5, "", " ", "x", "\x1b[2J", "é" * 300, [], {}, [[1]], {"a": {"b": 1}}, 10**30]
KEYS = ["prompts", "store", "model", "stages", "sites", "layers", "positions", "dtype", "compression", "batch_size"]
KEYS += ["device", "statistics", "allow_same_weights", "by", "unknown"]


def test_two_hundred_random_run_files_end_in_an_input_error_or_work(tmp_path: Path) -> None:
    generator = random.Random(7)
    path = tmp_path / "run.yaml"
    messages = []
    for _ in range(200):
        document = {"prompts": "p.csv", "store": "run.zarr", "model": "m"}
        for key in generator.sample(KEYS, generator.randint(1, 4)):
            document[key] = generator.choice(VALUES)
        text = yaml.safe_dump(document, allow_unicode=True)
        if generator.random() < 0.3:
            place = generator.randrange(len(text))
            text = text[:place] + generator.choice(["\t", ":", "- ", "[", "'", "&a ", "*a", "!!x "]) + text[place:]
        path.write_text(text, encoding="utf-8")
        try:
            read_run_file(path)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert max(map(len, messages)) < 4100
    assert [p.name for p in tmp_path.iterdir()] == ["run.yaml"]


def test_verify_takes_a_folder_of_results(tmp_path: Path) -> None:
    (tmp_path / "run.zarr.results").mkdir()
    report = verify_job(str(tmp_path / "run.zarr.results"), repair=False)
    assert report["ok"]
    assert report["files"] == 0
