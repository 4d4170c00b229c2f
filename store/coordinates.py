"""Coordinates that are not labels, as they lie on disk: stages, layers, tokens, and those that variables bring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from stratalens.store import labels, metadata
from stratalens.store.metadata import Json


@dataclass(frozen=True)
class Coordinate:
    """One array of one dim.

    Parameters
    ----------
    dim
        Its dim.
    values
        [array, shape: (n,)] as `labels.normalise` gives them.
    chunk
        Values in one file.
    attributes
        Of the array.
    """

    dim: str
    values: NDArray[Any]
    chunk: int
    attributes: Json = field(default_factory=dict)

    @property
    def data_type(self) -> str:
        """zarr data type of the values."""
        return labels.data_type(self.values)

    def document(self) -> Json:
        """Its zarr.json."""
        return metadata.label_metadata(self.dim, len(self.values), self.chunk, self.data_type, self.attributes)

    def files(self, first: int = 0) -> Iterator[tuple[int, bytes]]:
        """Number and bytes of its files, from the file `first` on."""
        yield from enumerate(labels.encode_chunks(self.values[first * self.chunk :], self.chunk), first)
