"""Faults of public checkpoint suites that their users have reported, with the place of the report.

An entry applies where the hub still shows the fault. Entries for faults that hashes cannot show apply always. The
reports were read in November 2026; the weights themselves were not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownFault:
    """A reported fault of a suite.

    Attributes:
        repository: regular expression for the names of its repositories.
        revision: regular expression for the revisions that have the fault.
        verdicts: verdicts of the preflight that it explains; empty for a fault that hashes do not show.
        note: what is known, as a sentence.
        issue: address of the report.
        twins: regular expression that all revisions with the same files must match; "" for any.
        sound: regular expression for revisions that share the fault's files and are right.
    """

    repository: str
    revision: str
    verdicts: tuple[str, ...]
    note: str
    issue: str = ""
    twins: str = ""
    sound: str = ""

    def explains(self, repository: str, revision: str, verdict: str, same_as: Sequence[str]) -> bool:
        """Return whether this report is about a row of a preflight."""
        return (
            verdict in self.verdicts
            and re.fullmatch(self.repository, repository) is not None
            and re.fullmatch(self.revision, revision) is not None
            and all(not self.twins or re.fullmatch(self.twins, other) for other in same_as)
        )

    def is_sound(self, revision: str) -> bool:
        """Return whether a revision is right although it has the files of this fault."""
        return bool(self.sound) and re.fullmatch(self.sound, revision) is not None


_PYTHIA = "https://github.com/EleutherAI/pythia/issues/"
_OLMO = "https://github.com/allenai/OLMo/issues/"

KNOWN_FAULTS = (
    KnownFault(
        r"EleutherAI/pythia-2\.8b",
        r"step\d+",
        ("identical", "shared"),
        "86 of the 154 steps of pythia-2.8b have weights from the end of training, in two files. None of them is known "
        "to be the step that it is named after.",
        f"{_PYTHIA}205",
    ),
    KnownFault(
        r"EleutherAI/pythia-12b",
        r"step(50000|58000)",
        ("shared",),
        "The first shard of step50000 and step58000 is that of the final checkpoint: the input embedding and the early "
        "layers.",
        f"{_PYTHIA}206",
    ),
    KnownFault(
        r"EleutherAI/pythia-.*",
        r"step[01]",
        ("identical",),
        "step0 and step1 have the same weights in all Pythia models. step0 stays, step1 is left out.",
        f"{_PYTHIA}83",
        twins=r"step[01]",
        sound=r"step0",
    ),
    KnownFault(
        r"EleutherAI/pythia-410m-seed[269]",
        r"step(40000|88000|111000)",
        ("missing", "incomplete", "pickled"),
        "step40000 of seed 9, step88000 of seed 6 and step111000 of seed 2 have no weights.",
        f"{_PYTHIA}202",
    ),
    KnownFault(
        r"EleutherAI/pythia-160m-weight-seed[12]",
        r"step0",
        (),
        "The later steps of this run do not continue from its step0, but from that of another run. Hashes do not show "
        "it.",
        f"{_PYTHIA}203",
    ),
    KnownFault(
        r"allenai/OLMo-2-1124-7B",
        r"stage1-step(101000|175000|300000)-tokens\w+",
        ("identical",),
        "step101000, step175000 and step300000 have the same weights. It is not known which of the three they are.",
        f"{_OLMO}915",
    ),
    KnownFault(
        r".*",
        r"main",
        ("identical",),
        "main is the last revision of most suites.",
    ),
)

SUITE_NOTES = (
    (
        r"allenai/OLMo-2-1124-13B",
        f"The hub has no revision of the first 100,000 steps of the 13B model; the first is step102500 ({_OLMO}842).",
    ),
    (
        r"EleutherAI/pythia-12b-deduped",
        f"step32000 was another checkpoint until June 2023 ({_PYTHIA}108). A copy from before is still wrong.",
    ),
)


def explain(repository: str, revision: str, verdict: str, same_as: Sequence[str]) -> KnownFault | None:
    """Return the report about a fault that a preflight has seen.

    Example:
        >>> explain("EleutherAI/pythia-70m", "step1", "identical", ["step0"]).issue
        'https://github.com/EleutherAI/pythia/issues/83'
        >>> explain("EleutherAI/pythia-70m", "step2", "identical", ["step0"]) is None
        True
    """
    return next((fault for fault in KNOWN_FAULTS if fault.explains(repository, revision, verdict, same_as)), None)


def hidden_fault(repository: str, revision: str) -> KnownFault | None:
    """Return the report about a revision whose fault no hash shows."""
    for fault in KNOWN_FAULTS:
        if not fault.verdicts and re.fullmatch(fault.repository, repository) and re.fullmatch(fault.revision, revision):
            return fault
    return None


def suite_notes(repository: str) -> list[str]:
    """Return what is known about a suite as a whole."""
    return [note for pattern, note in SUITE_NOTES if re.fullmatch(pattern, repository)]
