"""A recording on a file system that is too small, repeated on the same file system with more space.

`unshare --mount python -m support.full_disk FOLDER KIBIBYTES` mounts a tmpfs of that size on the folder. Only this
process sees the mount. The program prints how often the disk was full.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from stratalens.store.errors import NoSpaceError
from support.synthetic_writer import content, never_shows_what_was_not_written, stream


def main(folder: Path, kibibytes: int) -> None:
    stream(folder.parent / "whole.zarr")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", folder], check=True)
    path = folder / "run.zarr"
    failures = 0
    for size in (kibibytes, 2 * kibibytes, 3 * kibibytes, 65536):
        subprocess.run(["mount", "-o", f"remount,size={size}k", folder], check=True)
        try:
            stream(path)
        except NoSpaceError:
            failures += 1
            if (path / "zarr.json").exists():
                never_shows_what_was_not_written(path)
    assert failures, "the disk was never full"
    assert content(path) == content(folder.parent / "whole.zarr")
    sys.stdout.write(f"full {failures}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
