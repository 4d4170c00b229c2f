"""Cases of the fuzzers: seeded bad run files, tables, arguments and store metadata, each with its command line."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as arrow
import yaml
from pyarrow import parquet
from typer.main import get_command

from stratalens.plugin.cli.app import app
from stratalens.store.format import metadata
from stratalens.store.format.checksum import crc32c
from stratalens.store.state import commit_log

ROWS = 10

TEXTS = [
    "",
    " ",
    "x",
    "..",
    "../x",
    "a/b",
    "-1",
    "0",
    "1e999",
    "nan",
    "9" * 5000,
    "None",
    "~",
    "*",
    "[",
    "{}",
    ",",
    ",,",
]
TEXTS += ["=", "a:b:c=d", "%s{}{0}", "é" * 300, "x" * 100_000, "\x1b[2J", "\x9b31m", "\u202e", "a\nb", "\ufeff"]
TEXTS += [
    "日本",
    "2001-99-99",
    "__class__",
    "s3://",
    "s3://no bucket/x",
    "memory://",
    "nosuch://a/b",
    "file://",
    "null",
    "true",
    "2001-99-99",
    "__class__",
]
VALUES: list[Any] = [
    *TEXTS,
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    -(2**64),
    10**30,
    1.5,
    float("nan"),
    float("inf"),
]
VALUES += [[], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [[1, 2], [3]], ["x"] * 50, "\x00", "a\x00b", "\ud800"]
BYTES = [b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\n", b"\r", b'"', b"'", b",", b"\t", b":", b"- ", b"[", b"{"]
BYTES += [b"&a ", b"*a", b"!!x ", b"!!python/name:os.system ", b"\x1b[2J", b"[" * 2000, b"9" * 5000, b"\xef\xbb\xbf"]


class Seeds:
    """Good inputs that the cases spoil, in a folder of their own.

    Args:
        folder: an empty folder.
        checkpoint: folder of a tiny model.
        make_store: writes a store of `ROWS` rows whose prompt ids are those of `table`.
    """

    def __init__(self, folder: Path, checkpoint: Path, make_store: Callable[[Path], object]) -> None:
        self.folder, self.checkpoint = folder, checkpoint
        make_store(folder / "run.zarr")
        self.table().to_csv(folder / "prompts.csv", index=False)
        np.save(folder / "x.npy", np.ones((2, ROWS, 4), np.float32))

    def table(self) -> pd.DataFrame:
        names = [f"Q {i}" for i in range(ROWS)]
        columns = {"prompt_id": [f"r{i:03d}" for i in range(ROWS)], "prompt": [f"{name}?" for name in names]}
        return pd.DataFrame({**columns, "entity": names, "trained_stage": ["s0", "s1"] * (ROWS // 2), "n": range(ROWS)})

    def run_file(self) -> dict[str, Any]:
        stages = [{"name": "a", "path": str(self.checkpoint)}, {"name": "b", "path": str(self.checkpoint)}]
        settings = {"sites": ["resid_post"], "layers": [0], "positions": ["last"], "statistics": ["loss"]}
        run = {"prompts": "prompts.csv", "store": "new.zarr", "model": str(self.checkpoint), "stages": stages}
        more = {"dtype": "auto", "compression": "none", "batch_size": 4, "device": "cpu", "allow_same_weights": True}
        return {**run, **settings, **more, "by": "trained_stage"}

    def copy_to(self, place: Path) -> None:
        shutil.copytree(self.folder, place, dirs_exist_ok=True)


def spoil_bytes(data: bytes, choose: random.Random) -> bytes:
    """Return bytes with a few places changed."""
    for _ in range(choose.randint(1, 3)):
        place, how = choose.randrange(len(data) + 1), choose.randrange(5)
        if how == 0:
            data = data[:place]
        elif how == 1:
            data = data[:place] + bytes([choose.randrange(256)]) + data[place + 1 :]
        elif how == 2:
            data = data[:place] + data[place + choose.randint(1, 40) :]
        elif how == 3:
            data = data[:place] + data[: choose.randint(1, 200)] + data[place:]
        else:
            data = data[:place] + choose.choice(BYTES) + data[place:]
    return data


def spoil_value(document: Any, choose: random.Random) -> Any:
    """Return a JSON value with one place anywhere in it replaced, removed, repeated or renamed."""
    if isinstance(document, dict) and document and choose.random() < 0.85:
        key = choose.choice(sorted(document))
        how = choose.random()
        if how < 0.1:
            return {k: v for k, v in document.items() if k != key}
        if how < 0.2:
            return {**document, str(choose.choice(TEXTS)): document[key]}
        return {**document, key: spoil_value(document[key], choose)}
    if isinstance(document, list) and document and choose.random() < 0.85:
        place, how = choose.randrange(len(document)), choose.random()
        if how < 0.1:
            return document[:place] + document[place + 1 :]
        if how < 0.2:
            return [*document, document[place]]
        return [*document[:place], spoil_value(document[place], choose), *document[place + 1 :]]
    return choose.choice(VALUES)


def run_files(seeds: Seeds, place: Path, choose: random.Random) -> list[str]:
    """Write a bad run file; return a command that reads it."""
    document = seeds.run_file()
    for _ in range(choose.randint(1, 2)):
        changed = spoil_value(document, choose)
        document = changed if isinstance(changed, dict) else document
    text = yaml.dump(document, allow_unicode=True).encode("utf-8", "surrogatepass")
    if choose.random() < 0.4:
        text = spoil_bytes(text, choose)
    (place / "run.yaml").write_bytes(text)
    return [choose.choice(["capture", "forecast", "forecast"]), "run.yaml"]


def _odd_arrow_columns(choose: random.Random) -> arrow.Array:
    """Return a column of an arrow type that few tables have, or of values that its Python type does not."""
    numbers = np.array([choose.choice([0, 1, -1, 2**62, -(2**62), 2_941_775 * 31_556_952])] * ROWS)
    bad = arrow.array([choose.choice([b"\xff", b"a\xc3", b"\xed\xa0\x80"])] * ROWS, arrow.binary())
    bad_text = arrow.Array.from_buffers(arrow.string(), ROWS, bad.buffers())
    units = ("s", "ms", "us", "ns")
    makers: list[Callable[[], arrow.Array]] = [
        lambda: arrow.array(numbers).cast(arrow.timestamp(choose.choice(units))),
        lambda: arrow.array(numbers).cast(arrow.timestamp(choose.choice(units), tz="UTC")),
        lambda: arrow.array(numbers).cast(arrow.duration(choose.choice(units))),
        lambda: arrow.array([choose.choice([0, 2**31 - 1, -(2**31)])] * ROWS, arrow.date32()),
        lambda: arrow.array(numbers, arrow.int64()).view(arrow.date64()),
        lambda: arrow.array([0] * ROWS, arrow.time64("ns")),
        lambda: bad_text,
        lambda: bad,
        lambda: bad_text.dictionary_encode(),
        lambda: arrow.array([[1, None]] * ROWS),
        lambda: arrow.array([{"a": 1, "b": "x"}] * ROWS),
        lambda: arrow.array([[("k", 1)]] * ROWS, arrow.map_(arrow.string(), arrow.int64())),
        lambda: arrow.nulls(ROWS),
        lambda: arrow.array([2**64 - 1] * ROWS, arrow.uint64()),
        lambda: arrow.array(np.full(ROWS, 1.5, np.float16)),
        lambda: arrow.array([1] * ROWS, arrow.decimal128(38, 10)),
        lambda: arrow.array(["x"] * ROWS, arrow.large_string()),
        lambda: arrow.array([str(i % 2) for i in range(ROWS)]).dictionary_encode(),
        lambda: arrow.array([float("inf"), float("nan")] * (ROWS // 2)),
        lambda: arrow.array([True, None] * (ROWS // 2)),
    ]
    return choose.choice(makers)()


def tables(seeds: Seeds, place: Path, choose: random.Random) -> list[str]:
    """Write a bad table; return a command that reads it."""
    suffix = choose.choice(["csv", "tsv", "jsonl", "parquet", "parquet"])
    path, frame = place / f"table.{suffix}", seeds.table()
    column = choose.choice([*frame.columns, "more"])
    if suffix == "parquet":
        data = arrow.Table.from_pandas(frame)
        odd = _odd_arrow_columns(choose)
        names = [name for name in data.column_names if name != column]
        data = arrow.table([*(data[name] for name in names), odd], names=[*names, column])
        if choose.random() < 0.1:
            data = data.rename_columns([choose.choice(TEXTS) for _ in data.column_names])
        try:
            parquet.write_table(data, path)
        except arrow.ArrowException:  # parquet has no such time
            parquet.write_table(data.drop_columns([column]), path)
        if choose.random() < 0.2:
            path.write_bytes(spoil_bytes(path.read_bytes(), choose))
    else:
        rows: Any = frame.to_dict(orient="records")
        for _ in range(choose.randint(0, 3)):
            choose.choice(rows)[column] = choose.choice(VALUES)
        if suffix == "jsonl":
            objects = [spoil_value(row, choose) if choose.random() < 0.1 else row for row in rows]
            text = "\n".join(map(json.dumps, objects))
        else:
            file = io.StringIO()
            names = list({name: None for row in rows for name in row})
            lines = csv.writer(file, delimiter="," if suffix == "csv" else "\t")
            lines.writerows([names, *([row.get(name, "") for name in names] for row in rows)])
            text = file.getvalue()
        data = text.encode("utf-8", "surrogatepass")
        path.write_bytes(spoil_bytes(data, choose) if choose.random() < 0.6 else data)
    return choose.choice(
        [["label", "run.zarr", path.name], ["import", "x.npy", "--table", path.name, "-o", "new.zarr"]]
    )


COMMANDS = {  # command: good arguments
    "info": ["run.zarr"],
    "verify": ["run.zarr"],
    "export": ["run.zarr", "--site", "resid_post", "--layer", "0", "--to", "out.npy"],
    "import": ["x.npy", "--table", "prompts.csv", "-o", "new.zarr"],
    "label": ["run.zarr", "prompts.csv"],
    "commit": ["run.zarr", "run.icechunk"],
    "init": [".", "prompts.csv", "-o", "run.yaml"],
    "analyze": ["run.zarr", "--verbs", "centroids", "--by", "trained_stage"],
    "forecast": ["--preset", "smoke"],
    "study": ["--preset", "nothing"],
    "explore": ["nowhere.zarr"],
}


def arguments(seeds: Seeds, place: Path, choose: random.Random) -> list[str]:
    """Return a command line with bad arguments; no argument has a zero byte, which no shell can give."""
    many = [name for name in COMMANDS if name != "analyze"]  # it takes a second
    name = choose.choice([*many, *many, *many, "analyze"])
    line = [name, *COMMANDS[name]]
    flags = [flag for parameter in get_command(app).commands[name].params for flag in parameter.opts]  # type: ignore[attr-defined]
    flags = [flag for flag in flags if flag.startswith("-")]
    texts = [text for text in TEXTS if len(text) < 2000] + [
        "\udcff",
        "x.npy",
        "prompts.csv",
        "run.zarr",
        ".",
        "--",
        "-h",
    ]
    for _ in range(choose.randint(1, 2)):
        how = choose.random()
        if how < 0.45:
            line += [choose.choice(flags), choose.choice(texts)]
        elif how < 0.85 and len(line) > 1:
            line[choose.randrange(1, len(line))] = choose.choice(texts)
        elif how < 0.95:
            line.insert(choose.randrange(1, len(line) + 1), choose.choice(texts))
        elif len(line) > 1:
            del line[choose.randrange(1, len(line))]
    return [text for text in line if not text.startswith("../") or "\n" in text]


def _reseal(path: Path, choose: random.Random) -> None:
    """Spoil one place of the root document and of its copy, mostly with a correct checksum."""
    if not (path / "zarr.json").is_file():
        return
    document = json.loads((path / "zarr.json").read_bytes())
    if choose.random() < 0.8:
        state = document["attributes"]["stratalens"]
        checksum = state.pop("checksum")
        state = document["attributes"]["stratalens"] = spoil_value(state, choose)
        if isinstance(state, dict):
            try:
                state["checksum"] = f"{crc32c(metadata.canonical(document)):08x}"
            except (ValueError, TypeError, UnicodeEncodeError):  # a value that has no canonical form
                state["checksum"] = checksum
    else:
        document = spoil_value(document, choose)
    raw = json.dumps(document).encode("utf-8", "surrogatepass")
    for name in ("zarr.json", ".stratalens/root.json"):
        (path / name).write_bytes(raw)


def _record(path: Path, choose: random.Random) -> None:
    place = choose.choice(sorted(p for p in (path / ".stratalens" / "commits").iterdir() if p.is_file()))
    payload = spoil_value(commit_log.decode(place.read_bytes(), "record"), choose)
    place.write_bytes(commit_log.encode(payload if isinstance(payload, dict) else {"stage": payload}))


def _file(path: Path, choose: random.Random) -> None:
    """Spoil, cut, remove, copy or replace one file of any kind."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    file, how = choose.choice(files), choose.randrange(8)
    if how < 3:
        file.write_bytes(spoil_bytes(file.read_bytes(), choose))
        return
    if how == 7:
        shutil.copy(choose.choice(files), file.with_name(file.name + choose.choice([".bak", "~", ".1", ".part"])))
        return
    data = choose.choice(files).read_bytes()
    file.unlink()
    if how == 3:
        file.write_bytes(data)
    elif how == 4:
        file.mkdir()
    elif how == 5:
        os.mkfifo(file)
    elif choose.random() < 0.5:
        file.symlink_to(choose.choice(["/dev/zero", file.name, "../../outside.txt", "/nowhere"]))


def stores(seeds: Seeds, place: Path, choose: random.Random) -> list[str]:
    """Spoil a store; return a command that uses it."""
    for _ in range(choose.randint(1, 2)):
        change = choose.choice([_reseal, _reseal, _record, _file])
        try:
            change(place / "run.zarr", choose)
        except Exception:  # the first change left nothing that the second one could change
            continue
    return choose.choice(
        [
            ["info", "run.zarr"],
            ["info", "run.zarr", "--json"],
            ["verify", "run.zarr"],
            ["verify", "run.zarr", "--repair"],
            ["label", "run.zarr", "prompts.csv"],
            COMMANDS_LINE["export"],
            COMMANDS_LINE["commit"],
            COMMANDS_LINE["analyze"],
        ]
    )


COMMANDS_LINE = {name: [name, *words] for name, words in COMMANDS.items()}


Case = Callable[[Seeds, Path, random.Random], list[str]]
KINDS: dict[str, Case] = {"run files": run_files, "tables": tables, "arguments": arguments, "stores": stores}


def cases(kind: str, seed: int) -> Iterator[tuple[Case, random.Random]]:
    """Yield the maker of a kind and a generator for each case, without end."""
    number = 0
    while True:
        yield KINDS[kind], random.Random(f"{seed} {kind} {number}")
        number += 1
