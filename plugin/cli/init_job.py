"""A run file with comments, from a folder of checkpoints and a table of prompts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratalens.store.errors import InputError, join_names
from stratalens.store.files import user_path, write_text_atomic

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")


@dataclass(frozen=True)
class CheckpointFolder:
    """One stage of the run file.

    Attributes:
        name: name of the stage.
        path: its folder.
        is_adapter: whether it is a LoRA adapter.
    """

    name: str
    path: Path
    is_adapter: bool = False


def write_initial_run_file(folder: Path, table: Path | None, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Write a run file for the checkpoints of a folder; the command line and its settings are explained in it.

    Args:
        folder: folder with one folder for each checkpoint, or one checkpoint.
        table: the prompts; None takes the only table in or next to the folder, else the file asks for one.
        out: the run file.
        force: replace an existing file.

    Returns:
        The run file, its stages in order, and the label column of the analyses.

    Raises:
        InputError: there is no checkpoint, no such table, or `out` exists.
    """
    from stratalens.plugin.cli.run_file import read_run_file

    folder, out = user_path(folder), user_path(out)
    if out.exists() and not force:
        raise InputError(f"{out} exists; choose another file with -o, or replace it with --force")
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"{out} is not a file in a folder that exists; choose another one with -o")
    checkpoints = list_checkpoints(folder)
    prompts = user_path(table) if table is not None else _only_table(folder)
    columns = _columns(prompts, checkpoints[0])
    by = _label_column(columns, [c.name for c in checkpoints])
    base = out.absolute().parent
    text = run_file_text(
        checkpoints, prompts, by=by, positions=_positions(columns), folder=base, model=_base_model(checkpoints)
    )
    write_text_atomic(out, text)
    run = read_run_file(out)
    return {"run_file": out, "stages": [stage.name for stage in run.stages], "prompts": run.prompts, "by": run.by}


def list_checkpoints(folder: Path) -> list[CheckpointFolder]:
    """List the checkpoints in a folder by their numbers, those without a number first.

    Raises:
        InputError: the folder does not exist, or has no checkpoint.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name the folder that has one folder for each checkpoint")
    if _kind(folder):
        return [CheckpointFolder("model", folder, _kind(folder) == "adapter")]
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    checkpoints = [CheckpointFolder(p.name, p, _kind(p) == "adapter") for p in inside if _kind(p)]
    if not checkpoints:
        names = join_names(sorted(path.name for path in folder.iterdir()), 5) or "nothing"
        raise InputError(
            f"{folder} has no checkpoint: a checkpoint is a folder with config.json and weights, as save_pretrained "
            f"writes it, or a LoRA adapter with adapter_config.json. It has {names}"
        )
    return sorted(checkpoints, key=lambda c: natural_key(c.name))


def natural_key(name: str) -> tuple[Any, ...]:
    """Return a sort key that compares numbers as numbers; a name without a number comes first.

    Example:
        >>> sorted(["step60", "step600", "base", "step0", "final"], key=natural_key)
        ['base', 'step0', 'step60', 'step600', 'final']
    """
    parts = re.split(r"(\d+)", name.lower())
    group = 0 if len(parts) == 1 else 1
    if group == 0 and name.lower() in ("final", "last", "latest", "main", "end"):
        group = 2
    return group, [(int(p), "") if p.isdecimal() else (-1, p) for p in parts]


def _kind(folder: Path) -> str:
    """Return "model", "adapter", or "" for a folder that is no checkpoint."""
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    has_weights = any(path.suffix in _WEIGHTS for path in folder.iterdir()) if folder.is_dir() else False
    return "model" if has_weights and (folder / "config.json").is_file() else ""


def _only_table(folder: Path) -> Path | None:
    for place in (folder, folder.absolute().parent):
        tables = [path for path in place.iterdir() if path.suffix.lower() in _TABLES]
        if len(tables) == 1:
            return tables[0]
    return None


def _columns(prompts: Path | None, first: CheckpointFolder) -> Any:
    """Return the prompt table; None where there is none. The first checkpoint has the chat template of chats."""
    if prompts is None:
        return None
    from stratalens.plugin.prompts.table import PromptTable

    def load() -> Any:
        from stratalens.plugin.stages.checkpoints import Checkpoint, LoraAdapter, load_tokenizer

        return load_tokenizer(LoraAdapter(first.path) if first.is_adapter else Checkpoint(first.path))

    return PromptTable.read(prompts, tokenizer=load)


def _label_column(table: Any, stages: Sequence[str]) -> str | None:
    """Choose the label column of the analyses: trained_stage, else the first with 2 to 60 groups of several rows."""
    if table is None:
        return None
    labels = table.labels()
    if "trained_stage" in table.label_names:
        return "trained_stage"
    for name in table.label_names:
        groups = len(set(labels[name].tolist()))
        if 2 <= groups <= min(60, len(table) // 2):
            return str(name)
    return None


def _positions(table: Any) -> list[str]:
    names = [] if table is None else [f"{name}_last" for name in table.spans]
    return [*dict.fromkeys(names), "last"]


def _base_model(checkpoints: Sequence[CheckpointFolder]) -> str | None:
    """Return the base model of the adapters; None where every stage is a model of its own."""
    adapters = [c for c in checkpoints if c.is_adapter]
    if not adapters:
        return None
    try:
        config = json.loads((adapters[0].path / "adapter_config.json").read_text(encoding="utf-8"))
    except ValueError:
        config = {}
    return str(config.get("base_model_name_or_path") or "NAME-OR-FOLDER-OF-THE-BASE-MODEL")


def run_file_text(
    checkpoints: Sequence[CheckpointFolder],
    prompts: Path | None,
    *,
    by: str | None,
    positions: Sequence[str],
    folder: Path,
    model: str | None,
) -> str:
    """Return the text of a run file.

    Args:
        checkpoints: the stages in training order.
        prompts: the prompt table; None writes a name to replace.
        by: label column of the analyses.
        positions: positions to record.
        folder: folder of the run file; paths are relative to it.
        model: base model of LoRA adapters.
    """

    def relative(path: Path) -> str:
        absolute = path.absolute()
        inside = absolute.is_relative_to(folder) or absolute.is_relative_to(folder.parent)
        return _quoted(os.path.relpath(absolute, folder) if inside else str(absolute))

    layers = _layer_count(checkpoints)
    depth = f"this model has 0 to {layers - 1}" if layers else "0 to the last one"
    lines = [
        "# What stratalens records. Relative paths start at the folder of this file.",
        "# stratalens forecast THIS-FILE    says how large and how long it becomes",
        "# stratalens capture THIS-FILE     records; repeat it to resume",
        "",
        "# The prompts, one row for each. Columns: prompt; if you like entity, entity_id, answer; labels.",
        f"prompts: {relative(prompts) if prompts else 'prompts.csv  # replace: there is no table yet'}",
        "store: run.zarr",
        "",
        "# Checkpoints in training order. Check the order: it was guessed from the numbers in the names.",
        *([f"model: {_quoted(model)}  # the base model of the adapters"] if model else []),
        "stages:",
        *(
            f"  - {{name: {_quoted(c.name)}, {'adapter' if c.is_adapter else 'path'}: {relative(c.path)}}}"
            for c in checkpoints
        ),
        "",
        "# Sites: resid_pre, resid_mid, resid_post, attn_out, mlp_out, mlp_post, z, q, k, v, embed, ln_final.",
        "sites: [resid_post]",
        f"# layers: [0, 1]              # block indices ({depth}); all of them without this line",
        "# Positions: last, -2, entity_first, entity_last, NAME_last of a column NAME_start, or all.",
        f"positions: [{', '.join(positions)}]",
        "dtype: auto                   # that of the model; or float32, bfloat16, float16, int8",
        "compression: none             # or zstd: smaller and slower",
        "batch_size: auto",
        "# prepend_bos: true           # one BOS token before each prompt; without this line, what the tokenizer adds",
        "# add_generation_prompt: true # end chats with the start of the assistant's turn (tables with `messages`)",
        "# device: cuda                # a GPU is taken where there is one",
        "# model_kwargs: {device_map: auto}  # arguments of from_pretrained, for models larger than one device",
        "statistics: true              # norms, losses, entropy of every row, for the controls; all: with running_loss",
        "",
        "# The label column that analyze and report compare.",
        f"by: {_quoted(by)}" if by else "# by: COLUMN",
        "# title: Habitats            # heading of the report; without this line, a question",
    ]
    return "\n".join(lines) + "\n"


def _quoted(text: str | None) -> str:
    """Write a text in YAML; quotes only where YAML would read something else, or inside braces."""
    import yaml

    value = str(text)
    # "..." and "---" are markers of YAML; a text without letters and digits gets quotes.
    plain = re.fullmatch(r"[./~_-]*[A-Za-z0-9][A-Za-z0-9_./~-]*", value) is not None
    return value if plain and yaml.safe_load(value) == value else json.dumps(value, ensure_ascii=False)


def _layer_count(checkpoints: Sequence[CheckpointFolder]) -> int | None:
    for checkpoint in checkpoints:
        config = checkpoint.path / "config.json"
        try:
            facts = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
        except ValueError:
            continue
        for key in ("num_hidden_layers", "n_layer", "num_layers"):
            if isinstance(facts.get(key), int):
                return int(facts[key])
    return None
