"""Names from users: each is listed once and has no blanks around it, in tables, lists, YAML and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from stratalens.store.errors import InputError, cut, quote

_SHOWN = 5  # repeated names in one message
_STRING, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


def check_distinct(
    names: Sequence[Any],
    what: str,
    source: str = "",
    *,
    place: str = "",
    numbers: Sequence[int] | None = None,
    remedy: str = "rename or drop one of them",
    blanks: bool = True,
) -> None:
    """Refuse names that are listed twice, or that have blanks around them.

    Args:
        names: the names, in order.
        what: kind of name, for messages.
        source: file or argument that lists the names, for messages.
        place: word that counts the names in messages, such as "row"; "" does not count them.
        numbers: number of every name; None counts from 0.
        remedy: end of the message about a repeated name.
        blanks: refuse blanks around a name; a name of blanks alone is left to the caller.

    Raises:
        InputError: names the repeated names with their places, or the name with blanks.

    Example:
        >>> check_distinct(["a", "b", "a"], "stage", place="line")
        Traceback (most recent call last):
        stratalens.store.errors.InputError: stage 'a' is listed twice (lines 0, 2); rename or drop one of them
        >>> check_distinct(["prompt", " entity "], "column", "p.csv")
        Traceback (most recent call last):
        stratalens.store.errors.InputError: p.csv: column ' entity ' has blanks around it; write 'entity'
    """
    where = f"{source}: " if source else ""
    places: dict[Any, list[int]] = {}
    for index, name in enumerate(names):
        places.setdefault(name, []).append(index if numbers is None else numbers[index])
        if blanks and isinstance(name, str) and name.strip() and name != name.strip():
            at = f" ({place} {places[name][0]})" if place else ""
            raise InputError(f"{where}{what} {quote(name)}{at} has blanks around it; write {quote(name.strip())}")
    repeated = {name: rows for name, rows in places.items() if len(rows) > 1}
    if repeated:
        texts = [_repetition(name, rows, place) for name, rows in list(repeated.items())[:_SHOWN]]
        more = f"; and {len(repeated) - _SHOWN} more" if len(repeated) > _SHOWN else ""
        raise InputError(f"{where}{what} {'; '.join(texts)}{more}; {remedy}")


def _repetition(name: Any, rows: Sequence[int], place: str) -> str:
    """Say how often a name is listed: "'a' is listed twice (rows 0, 2)"."""
    count = "twice" if len(rows) == 2 else f"{len(rows)} times"
    more = f" and {len(rows) - 8} more" if len(rows) > 8 else ""
    at = f" ({place}s {', '.join(map(str, rows[:8]))}{more})" if place else ""
    return f"{quote(name)} is listed {count}{at}"


def parse_json(text: str, source: str = "") -> Any:
    """Parse JSON, and refuse an object that has a key twice.

    Raises:
        InputError: a key is listed twice in one object, or has blanks around it.
        json.JSONDecodeError: the text is not JSON.
    """

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        check_distinct([name for name, _ in pairs], "key", source)
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=as_dict)
    except json.JSONDecodeError:
        raise
    except (InputError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{source or 'the text'} is not readable as JSON: {reason}") from error


def parse_yaml(text: str, source: str) -> Any:
    """Parse YAML, and refuse a mapping that has a key twice or a key that YAML does not read as text.

    Args:
        text: the document.
        source: file of the document, for messages.

    Returns:
        The document as Python objects; None for an empty one.

    Raises:
        InputError: the text is not YAML, or a key is invalid; the message names its line.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_keys(node, source, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(f"{source} is not readable as YAML: {error}") from error


def _check_keys(node: Any, source: str, seen: set[int], path: str = "") -> None:
    """Check the keys of all mappings in a YAML document, before merge keys are resolved."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if node.id == "sequence":
        for child in node.value:
            _check_keys(child, source, seen, path)
    elif node.id == "mapping":
        keys = [key for key, _ in node.value if key.id == "scalar" and key.tag != _MERGE]
        for key in keys:
            if key.tag != _STRING:
                raise InputError(
                    f"{source}, line {key.start_mark.line + 1}: YAML reads the name {cut(key.value, 200)} as "
                    f"{_yaml_kind(key.tag)}, not as text; write it in quotes: {json.dumps(key.value)}"
                )
        lines = [key.start_mark.line + 1 for key in keys]
        what = f"key of {path}" if path else "key"
        check_distinct([key.value for key in keys], what, source, place="line", numbers=lines)
        for key, value in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            _check_keys(value, source, seen, name if key.tag != _MERGE else path)


def _yaml_kind(tag: str) -> str:
    """Return the kind of value of a YAML tag in words."""
    kinds = {"bool": "true or false", "int": "a number", "float": "a number", "null": "nothing", "timestamp": "a date"}
    return kinds.get(tag.rpartition(":")[2], tag)
