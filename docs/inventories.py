"""Write the inventories from which the reference links to the pages of other projects.

Sphinx would fetch them from those projects. The build of these pages fetches nothing, so the few names that signatures
use are listed here, and `write` makes the files that sphinx.ext.intersphinx reads.
"""

from __future__ import annotations

import zlib
from pathlib import Path

HEAD = "# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The remainder is compressed using zlib.\n"
# Address of a project, and the page of each name below it; the anchor on the page is the name.
PROJECTS = {
    "python": (
        "https://docs.python.org/3/",
        {
            "pathlib.Path": "library/pathlib.html",
            "os.PathLike": "library/os.html",
            "collections.abc.Callable": "library/collections.abc.html",
            "collections.abc.Iterable": "library/collections.abc.html",
            "collections.abc.Mapping": "library/collections.abc.html",
            "collections.abc.Sequence": "library/collections.abc.html",
        },
    ),
    "xarray": (
        "https://docs.xarray.dev/en/stable/",
        {name: f"generated/{name}.html" for name in ("xarray.Dataset", "xarray.DataArray")},
    ),
    "pandas": (
        "https://pandas.pydata.org/docs/",
        {"pandas.DataFrame": "reference/api/pandas.DataFrame.html"},
    ),
}


def write(folder: Path) -> dict[str, tuple[str, str]]:
    """Write one inventory for each project and return the setting `intersphinx_mapping`."""
    folder.mkdir(parents=True, exist_ok=True)
    mapping = {}
    for project, (address, names) in PROJECTS.items():
        lines = "".join(f"{name} py:class 1 {page}#$ -\n" for name, page in names.items())
        head = HEAD.format(project=project).encode()
        target = folder / f"{project}.inv"
        target.write_bytes(head + zlib.compress(lines.encode()))
        mapping[project] = (address, str(target))
    return mapping
