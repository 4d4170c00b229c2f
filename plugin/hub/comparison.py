"""Which revisions of a suite have the same weights, share single files, or have another configuration."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stratalens.plugin.hub.revisions import MAIN
from stratalens.plugin.hub.weight_files import RevisionFiles

# Settings that do not change what a model computes.
_IRRELEVANT = {"_name_or_path", "transformers_version", "use_cache", "architectures", "_attn_implementation_autoset"}


class Twins:
    """Revisions with the same weight files.

    The last revision of a suite usually equals `main`. It then is the owner of its files, and the other revisions that
    have them are not what they claim. Where it does not equal `main`, `main` counts as one more revision.

    Args:
        revisions: revisions of the suite in training order, by name, and `main`.
        run: names of all revisions of the suite in training order, also of those that were not read.

    Attributes:
        final: name of the last revision if it equals `main`, else "".
    """

    def __init__(self, revisions: Mapping[str, RevisionFiles], run: Sequence[str]) -> None:
        self._revisions = {name: files for name, files in revisions.items() if files.weights}
        self.final = self._find_final(revisions, run)
        self._owners: dict[str, list[str]] = {}
        for name, files in self._revisions.items():
            if name != MAIN or not self.final:
                for digest in set(files.digests.values()):
                    self._owners.setdefault(digest, []).append(name)

    def _find_final(self, revisions: Mapping[str, RevisionFiles], run: Sequence[str]) -> str:
        main = self._revisions.get(MAIN)
        if main is None:
            return ""
        for name in reversed(run):
            if name not in revisions:  # not read, so nothing is known about it
                return ""
            if revisions[name].format == main.format:
                return name if _content(revisions[name]) == _content(main) else ""
        return ""

    def identical(self, name: str) -> list[str]:
        """Return the other revisions whose weight files are all the same, in training order."""
        content = _content(self._revisions[name])
        first = next(iter(self._revisions[name].digests.values()))
        return [
            other
            for other in self._owners.get(first, [])
            if other != name and _content(self._revisions[other]) == content
        ]

    def sharing(self, name: str, digest: str) -> list[str]:
        """Return the other revisions that have this file, in training order."""
        return [other for other in self._owners.get(digest, []) if other != name]


def _content(files: RevisionFiles) -> tuple[str, ...]:
    return tuple(sorted(files.digests.values()))


def most_frequent(values: Sequence[Any]) -> Any:
    """Return the most frequent value; the first of them where several are."""
    return Counter(values).most_common(1)[0][0] if values else None


def differing_settings(config: Mapping[str, Any], usual: Mapping[str, Any]) -> list[str]:
    """Describe the settings of a config.json that differ from those of most revisions.

    Example:
        >>> differing_settings({"torch_dtype": "float32"}, {"torch_dtype": "float16", "use_cache": True})
        ['torch_dtype is "float32", in most revisions "float16"']
    """
    names = sorted({*config, *usual} - _IRRELEVANT)
    return [
        f"{name} is {json.dumps(config.get(name))}, in most revisions {json.dumps(usual.get(name))}"
        for name in names
        if config.get(name) != usual.get(name)
    ]
