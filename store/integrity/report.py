"""The result of verification: damage by name, missing data, repairs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Damage:
    """One damaged chunk, file, record or document.

    Attributes:
        kind: metadata, coordinate, label, history, commit or data.
        path: file.
        what: description of the damage.
        stage, site, layer, rows: the data that is damaged, if it belongs to one of each.
        name: description of the damaged data for messages.
    """

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
    """The result of `verify_store`.

    Attributes:
        ok: whether nothing is damaged. An incomplete store may be ok.
        damaged: one entry for each damaged inner chunk, index, record or document.
        missing: data that was never recorded, by stage and entity rows; then stages that a capture planned and did not
            start.
        notes: files that belong to nothing, and superseded files; they are no damage and are not checked.
        unfinished: changes of stages, variables or labels that were interrupted or are in progress; they are no damage.
        repaired: the repairs, in words.
        nbytes: bytes that were read.
        files: data files that were read.
        blocks: blocks that were read; a block is some rows of one stage, over all variables recorded together.
    """

    damaged: list[Damage] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    nbytes: int = 0
    files: int = 0
    blocks: int = 0

    def add_damage(self, kind: str, path: object, what: str, name: str, **place: Any) -> None:
        """Add damage; the arguments are those of `Damage`."""
        self.damaged.append(Damage(kind, str(path), what, name=name, **place))

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict for `--json`."""
        document = {"ok": self.ok, **vars(self), "damaged": [{**vars(d), "text": str(d)} for d in self.damaged]}
        document["bytes"] = document.pop("nbytes")
        return document
