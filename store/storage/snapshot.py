"""Small objects of a remote store that are known already, so that reading it needs no request for each.

They come from the index of a published store, or from a few parallel requests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import crc32c

from stratalens.store.storage.base import ByteRange

BUNDLE_LIMIT = 64 << 20  # a larger bundle of labels is read by ranges, one for each label file

ReadRanges = Callable[[str, Sequence[ByteRange]], Sequence[bytes]]


@dataclass
class Snapshot:
    """Known objects of a store.

    Attributes:
        files: content of objects, by key.
        folders: folders of which all objects are in `files`, or known to be of no use to a reader.
        sizes: bytes of objects, by key.
        bundle: key of the object that holds all label files, or "".
        labels: (offset, bytes, crc32c) in the bundle of each label file, by key.
    """

    files: Mapping[str, bytes]
    folders: frozenset[str]
    sizes: Mapping[str, int] = field(default_factory=dict)
    bundle: str = ""
    labels: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    _bundled: dict[str, bytes] = field(default_factory=dict, repr=False)
    _whole: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def has(self, key: str) -> bool:
        """Return whether the content of a key is known, also if it is known not to exist."""
        return key in self.files or key.rpartition("/")[0] in self.folders

    def list(self, folder: str) -> list[str]:
        """List the known names in a folder."""
        prefix = f"{folder}/"
        return sorted({key[len(prefix) :].partition("/")[0] for key in self.files if key.startswith(prefix)})

    def read_label(self, key: str, read: ReadRanges) -> bytes | None:
        """Return a label file from the bundle, or None if the bundle does not have its bytes.

        The first call reads a bundle of up to `BUNDLE_LIMIT` bytes whole. A label file is returned from memory once.
        """
        if key not in self.labels:
            return None
        offset, nbytes, checksum = self.labels[key]
        with self._lock:
            if not self._whole:
                self._whole = True
                total = max(end[0] + end[1] for end in self.labels.values())
                if total <= BUNDLE_LIMIT:
                    content = self._read(read, 0, total)
                    self._bundled = {k: content[o : o + n] for k, (o, n, _) in self.labels.items()}
            data = self._bundled.pop(key, None)
        if data is None:
            data = self._read(read, offset, nbytes)
        if len(data) == nbytes and crc32c.crc32c(data) == checksum:
            return data
        self.labels.clear()  # the bundle is damaged or newer: the label files themselves are read from now on
        return None

    def _read(self, read: ReadRanges, offset: int, nbytes: int) -> bytes:
        try:
            return read(self.bundle, [(offset, nbytes)])[0]
        except FileNotFoundError:
            return b""
