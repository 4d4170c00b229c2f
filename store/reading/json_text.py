"""Attributes that are mappings for Python and text for files."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any


class JsonText(str):
    """A JSON object as text that is read like a dict.

    netCDF attributes are text and numbers, and `Dataset.to_netcdf` refuses a dict. Programs read the attributes
    `provenance` and `recorded_with` of an open store as dicts. So these attributes are both.

    Example:
        >>> value = JsonText.of({"processing": {"fold_ln": False}})
        >>> value["processing"]["fold_ln"], list(value), value == {"processing": {"fold_ln": False}}
        (False, ['processing'], True)
        >>> print(value)
        {"processing": {"fold_ln": false}}
    """

    __slots__ = ()

    @classmethod
    def of(cls, mapping: Mapping[str, Any]) -> JsonText:
        """Return a mapping as JSON text."""
        return cls(json.dumps(dict(mapping), ensure_ascii=False))

    @property
    def mapping(self) -> dict[str, Any]:
        """The text as a new dict."""
        parsed: dict[str, Any] = json.loads(str.__str__(self))
        return parsed

    def __getitem__(self, key: Any) -> Any:
        return self.mapping[key] if isinstance(key, str) else super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        return key in self.mapping

    def __iter__(self) -> Iterator[str]:
        return iter(self.mapping)

    def __eq__(self, other: object) -> bool:
        return self.mapping == other if isinstance(other, Mapping) else str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or the default."""
        return self.mapping.get(key, default)

    def keys(self) -> KeysView[str]:
        """Return the keys."""
        return self.mapping.keys()

    def values(self) -> ValuesView[Any]:
        """Return the values."""
        return self.mapping.values()

    def items(self) -> ItemsView[str, Any]:
        """Return the pairs of key and value."""
        return self.mapping.items()


def as_mapping(value: object) -> dict[str, Any]:
    """Return an attribute as a dict: a mapping, or its JSON text after a way through a file; {} for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(str.__str__(value))
        except ValueError:
            return {}
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}
