"""What verification found: damage by name, what is missing, what was mended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Damage:
    """One damaged thing. `stage`, `site`, `layer` and `rows` say where, as far as it belongs to one."""

    kind: str
    path: str
    what: str
    stage: str = ""
    site: str = ""
    layer: int | None = None
    rows: tuple[int, int] | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.name or self.kind}: {self.what} ({self.path})"


@dataclass
class VerifyReport:
    """What `verify_store` found.

    Attributes
    ----------
    ok
        Nothing is damaged. A store that is not complete yet may be ok.
    damaged
        Everything that is, one entry for each inner chunk, index, record or document.
    missing
        What was never recorded, by stage and entity rows; stages last that a capture planned and did not come to.
    unfinished
        Changes of stages, variables or labels that were interrupted, or are going on: no damage.
    repaired
        What `repair` did, in words.
    nbytes, files, blocks
        How much was read; a block is some rows of one stage, over all variables that were recorded together.
    """

    damaged: list[Damage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    nbytes: int = 0
    files: int = 0
    blocks: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged

    def to_json(self) -> dict[str, Any]:
        """Plain dict for ``--json``."""
        return {
            "ok": self.ok,
            "damaged": [{**vars(d), "text": str(d)} for d in self.damaged],
            "missing": self.missing,
            "unfinished": self.unfinished,
            "repaired": self.repaired,
            "bytes": self.nbytes,
            "files": self.files,
            "blocks": self.blocks,
        }
