"""Options that `analyze`, `report` and `explore` share, and Python arguments in messages as such options."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from stratalens.store.errors import InputError

LabelColumn = Annotated[
    str | None,
    typer.Option(
        "--by", help="Label column; default: that of the run file, else trained_stage, else the only one with groups."
    ),
]
GroupOrder = Annotated[
    str | None,
    typer.Option("--order", metavar="A,B,C", help="Groups to compare, in order, or `stages`; leaves out all others."),
]
GroupPairs = Annotated[
    list[str] | None,
    typer.Option("--pairs", metavar="'A v B'", help="Pairs of the probes, one an option; or all, or rest."),
]
Folds = Annotated[int, typer.Option("--folds", help="Folds of the probes; a smaller group is left out.", min=2)]
EntityColumn = Annotated[
    str, typer.Option("--groups", metavar="COLUMN", help="Label column of the units that a split never divides.")
]
Permutations = Annotated[
    int | None,
    typer.Option("--permutations", help="Label shuffles of each null; p cannot be below 1 / (this + 1).", min=0),
]
SkipMissing = Annotated[
    bool, typer.Option("--skip-missing", help="Leave rows out that are not recorded, instead of refusing them.")
]
Site = Annotated[str | None, typer.Option("--site", help="Site to analyse; default: the first one recorded.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of splits, permutations and resamples.", min=0)]

# Arguments of Python functions in messages, and the options that replace them.
OPTIONS = (
    (re.compile(r"order=\[[^\]]*\]"), "--order A,B,C"),
    (re.compile(r"order=['\"]stages['\"]"), "--order stages"),
    (re.compile(r"pairs=\[[^\]]*\]"), "--pairs 'A v B'"),
    (re.compile(r"pairs=['\"](\w+)['\"]"), r"--pairs \1"),
    (re.compile(r"skip_missing=True"), "--skip-missing"),
    (re.compile(r"folds=(\d+)"), r"--folds \1"),
    (re.compile(r"permutations=(\d+)"), r"--permutations \1"),
    (re.compile(r"stratalens\.relabel"), "stratalens label"),
)


def as_options(message: str, more: Iterable[tuple[re.Pattern[str], str]] = ()) -> str:
    """Replace arguments of Python functions in a message by options of the command line.

    >>> as_options("Leave these groups out with order=[...], or use pairs='rest'")
    'Leave these groups out with --order A,B,C, or use --pairs rest'
    """
    for pattern, option in (*more, *OPTIONS):
        message = pattern.sub(option, message)
    return message


def suite_options(
    order: str | None,
    pairs: list[str] | None,
    folds: int,
    groups: str,
    skip_missing: bool,
) -> dict[str, Any]:
    """Return the options of `run_suite` that the command line names.

    Raises:
        InputError: a pair is not two names with " v " between them.
    """
    return {
        "order": parse_order(order),
        "pairs": parse_pairs(pairs),
        "folds": folds,
        "groups": groups,
        "skip_missing": skip_missing,
    }


def parse_order(text: str | None) -> list[str] | str | None:
    """Return the groups of `--order`.

    >>> parse_order("a, b"), parse_order("stages"), parse_order(None)
    (['a', 'b'], 'stages', None)
    """
    if text is None or text == "stages":
        return text
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_pairs(texts: list[str] | None) -> list[tuple[str, str]] | str | None:
    """Return the pairs of `--pairs`.

    Raises:
        InputError: a pair is not two names with " v " between them.

    Example:
        >>> parse_pairs(["a v b"]), parse_pairs(["rest"])
        ([('a', 'b')], 'rest')
    """
    if not texts:
        return None
    if texts in (["all"], ["rest"]):
        return texts[0]
    pairs = []
    for text in texts:
        first, between, second = text.partition(" v ")
        if not between or not first.strip() or not second.strip():
            raise InputError(f"--pairs {text!r}: give two groups such as 'A v B', or all, or rest")
        pairs.append((first.strip(), second.strip()))
    return pairs
