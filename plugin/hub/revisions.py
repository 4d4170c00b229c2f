"""Revisions of a checkpoint suite: the training step in their names, and how a caller chooses among them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

from stratalens.store.errors import InputError, join_names, quote, suggest

Revisions = str | Sequence[str]

_STEP = re.compile(r"(?:(?<=^)|(?<=[-_./]))(?:global[-_]?)?(?:step|iter|checkpoint|ckpt)s?[-_]?(\d+)", re.IGNORECASE)
_TOKENS = re.compile(r"tokens?[-_]?(\d+(?:\.\d+)?)([KMBT])\b", re.IGNORECASE)
_PHASE = re.compile(r"(?:(?<=^)|(?<=[-_./]))(?:stage|phase)[-_]?(\d+)", re.IGNORECASE)
_PART = re.compile(r"(?:(?<=^)|(?<=[-_./]))(?:ingredient|seed|run)[-_]?(\d+)", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_GLOB = re.compile(r"[*?\[]")

MAIN = "main"
PHASE_STEPS = 10**9  # larger than any number of training steps: the orders of two phases do not overlap
PHASE_PARTS = 10**3
LAST = 2**62


@dataclass(frozen=True)
class HubRevision:
    """One revision of a suite.

    Attributes:
        name: branch, tag or commit.
        commit: the commit that it is at.
        step: training step in the name, None where it has none.
        series: the name without step and tokens; revisions of one run have the same.
        order: place in training, from the name alone, so that it does not depend on the other revisions.
    """

    name: str
    commit: str
    step: int | None = None
    series: str = ""
    order: int | None = None

    @property
    def stage(self) -> str:
        """Name of the stage in a store, which has no slashes."""
        return self.name.replace("/", "-")


def read_revision(name: str, commit: str = "") -> HubRevision:
    """Read the training step of a revision from its name.

    A second training phase ("stage2-ingredient1-step1000-tokens5B") comes after the first.

    Example:
        >>> one = read_revision("stage1-step1000-tokens5B")
        >>> one.step, one.series, one.order == 10**12 + 1000
        (1000, 'stage1-step#-tokens#', True)
        >>> read_revision("step512").order, read_revision("v1.0").order
        (512, None)
    """
    if name == MAIN:
        return HubRevision(name, commit, None, MAIN, LAST)
    steps = list(_STEP.finditer(name))
    series = name
    for start, stop in sorted((m.span(1)[0], m.span()[1]) for m in (*steps[-1:], *_TOKENS.finditer(name)))[::-1]:
        series = f"{series[:start]}#{series[stop:]}"
    if not steps:
        return HubRevision(name, commit, None, series, None)
    step = int(steps[-1][1])
    phase, part = (int(m[1]) if (m := pattern.search(name)) else 0 for pattern in (_PHASE, _PART))
    return HubRevision(name, commit, step, series, (phase * PHASE_PARTS + part) * PHASE_STEPS + step)


def select_revisions(revisions: Revisions, refs: Mapping[str, str], repository: str) -> list[HubRevision]:
    """Choose revisions of a repository, in training order.

    Args:
        revisions: a pattern ("step*"), "log:16" for that many at about equal distances of the logarithm of the step,
            one name, or a list of names and patterns.
        refs: commit of every branch and tag.
        repository: name of the repository, for messages.

    Returns:
        The revisions by their training step. A list with names that have no step keeps its order.

    Raises:
        InputError: nothing matches, a name is unknown, or two revisions are of the same step.

    Example:
        >>> refs = {f"step{n}": "" for n in (0, 1, 2, 4, 8, 1000, 2000, 3000)}
        >>> [r.name for r in select_revisions("log:4", refs, "a/b")]
        ['step0', 'step8', 'step1000', 'step3000']
    """
    entries = [revisions] if isinstance(revisions, str) else _checked_list(revisions)
    chosen: dict[str, HubRevision] = {}
    for entry in entries:
        for revision in _choose(entry, refs, repository):
            chosen.setdefault(revision.name, revision)
    listed = list(chosen.values())
    if any(revision.order is None for revision in listed):  # only the caller knows their order
        return [HubRevision(r.name, r.commit, r.step, r.series, place) for place, r in enumerate(listed)]
    ordered = sorted(listed, key=lambda revision: revision.order or 0)
    for one, other in pairwise(ordered):
        if one.order == other.order:
            raise InputError(
                f"revisions {one.name!r} and {other.name!r} of {repository} are of the same training step, so they "
                "cannot be two stages of one sweep. Choose a narrower pattern, or list the revisions of one run."
            )
    return ordered


def _checked_list(revisions: Any) -> list[str]:
    if not isinstance(revisions, Iterable) or isinstance(revisions, Mapping | bytes):
        raise InputError(
            f"revisions={quote(revisions)} is of type {type(revisions).__name__}. Pass a pattern such as 'step*', "
            "'log:16', or a list of names."
        )
    entries = list(revisions)
    for entry in entries:
        if not isinstance(entry, str):
            raise InputError(
                f"revisions has {quote(entry)}, which is of type {type(entry).__name__}. Write the name of the "
                "revision on the hub, for example 'step1000'."
            )
    if not entries:
        raise InputError("revisions is empty. Pass a pattern such as 'step*', 'log:16', or a list of names.")
    return entries


def _choose(entry: str, refs: Mapping[str, str], repository: str) -> list[HubRevision]:
    if entry.startswith("log:"):
        return _spread(entry, refs, repository)
    if entry in refs:
        return [read_revision(entry, refs[entry])]
    if _COMMIT.fullmatch(entry):
        return [read_revision(entry, entry)]
    names = training_order(refs)
    if not _GLOB.search(entry):
        raise InputError(f"{repository} has no revision {entry!r}: {suggest(entry, names, limit=10)}")
    matched = [name for name in names if fnmatchcase(name, entry)]
    if not matched:
        raise InputError(
            f"no revision of {repository} matches {entry!r}. It has {len(names)}: {join_names(names, 10)}. Pass "
            "another pattern, or a list of names."
        )
    return [read_revision(name, refs[name]) for name in matched]


def training_order(names: Iterable[str]) -> list[str]:
    """Sort names of revisions by their training step; those without a step come last, by name.

    Example:
        >>> training_order(["step10", "step9", "v1", "main"])
        ['step9', 'step10', 'main', 'v1']
    """

    def key(name: str) -> tuple[int, str]:
        order = read_revision(name).order
        return (LAST + 1 if order is None else order), name

    return sorted(names, key=key)


def _spread(entry: str, refs: Mapping[str, str], repository: str) -> list[HubRevision]:
    """Choose revisions at about equal distances of log(1 + step), the first and the last one included."""
    text = entry.removeprefix("log:")
    if not text.isascii() or not text.isdecimal() or int(text) < 2:
        raise InputError(f"revisions={entry!r}: after 'log:' comes a number of at least 2, for example 'log:16'.")
    count = int(text)
    revisions = [read_revision(name, commit) for name, commit in refs.items()]
    sizes = Counter(revision.series for revision in revisions if revision.step is not None)
    if not sizes:
        raise InputError(
            f"{repository} has no revision with a training step in its name, which {entry!r} needs. It has "
            f"{join_names(training_order(refs), 10)}. Pass a list of names."
        )
    largest = max(sizes, key=lambda series: (sizes[series], series))
    run = sorted((r for r in revisions if r.series == largest), key=lambda r: r.step or 0)
    if count >= len(run):
        return run
    places = [math.log1p(r.step or 0) for r in run]
    left = list(range(1, len(run) - 1))
    picked = [0, len(run) - 1]
    for number in range(1, count - 1):
        target = places[0] + (places[-1] - places[0]) * number / (count - 1)
        nearest = min(left, key=lambda i: abs(places[i] - target))
        left.remove(nearest)
        picked.append(nearest)
    return [run[i] for i in sorted(picked)]


@dataclass(frozen=True)
class Gap:
    """Revisions that a regular suite should have and does not.

    Attributes:
        first: name of the first missing revision; "*" replaces a number that cannot be known.
        last: name of the last missing revision, which may be the first one.
        count: number of missing revisions.
        interval: training steps between two revisions of the suite.
        after: name of the revision before the gap.
    """

    first: str
    last: str
    count: int
    interval: int
    after: str


def find_gaps(revisions: Sequence[HubRevision]) -> list[Gap]:
    """Find gaps in the regular part of a run: places where every neighbour keeps a distance that is usual in the run.

    Args:
        revisions: revisions of one series.

    Example:
        >>> [g.first for g in find_gaps([read_revision(f"step{n}") for n in (0, 10, 20, 30, 50, 60, 70)])]
        ['step40']
    """
    run = sorted((r for r in revisions if r.step is not None), key=lambda r: r.step or 0)
    distances = [(b.step or 0) - (a.step or 0) for a, b in pairwise(run)]
    if len(distances) < 4:
        return []
    usual, times = Counter(distances).most_common(1)[0]
    if usual <= 0 or 3 * times < 2 * len(distances):
        return []
    gaps = []
    for place, distance in enumerate(distances):
        if (
            distance <= usual
            or distance % usual
            or usual not in (*distances[max(0, place - 1) : place], *distances[place + 1 : place + 2])
        ):
            continue
        before, count = run[place], distance // usual - 1
        first, last = (_name_of_step(before, (before.step or 0) + usual * k) for k in (1, count))
        gaps.append(Gap(first, last, count, usual, before.name))
    return gaps


def _name_of_step(neighbour: HubRevision, step: int) -> str:
    """Write the name that a revision of the same series would have at another step."""
    match = list(_STEP.finditer(neighbour.name))[-1]
    digits = str(step).zfill(len(match[1])) if match[1].startswith("0") and len(match[1]) > 1 else str(step)
    name = neighbour.name[: match.start(1)] + digits + neighbour.name[match.end(1) :]
    return _TOKENS.sub(lambda m: name[m.start() : m.start(1)] + "*", name)
