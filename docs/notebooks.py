"""Turn every executed page of the documentation into a notebook that a reader can download and run anywhere.

    python docs/notebooks.py FOLDER

The documentation's build calls `write`. A notebook has the code and the text of its page, without outputs. A page that
uses the example's files gets a first cell that writes example.py, so that the notebook needs no other file.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from myst_nb.core.read import read_myst_markdown_notebook
from myst_parser.config.main import MdParserConfig

HERE = Path(__file__).parent
EXECUTED = re.compile(r"\A---\nfile_format: mystnb\n")
TARGET = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)  # (label)=
LINK = re.compile(r"(!?)\[([^\]]+)\]\((?!https?://)[^)\s]+\)")  # to another page
INCLUDED = re.compile(r"^```\{literalinclude\} (\S+)\n(?::.*\n)*```$", re.MULTILINE)
DIRECTIVE = re.compile(r"^```\{code-block\} (\w+)$", re.MULTILINE)


def executed_pages() -> list[Path]:
    """Return the pages whose code runs in a kernel when the documentation is built."""
    pages = (page for page in sorted(HERE.rglob("*.md")) if not {"_build", "_generated"} & set(page.parts))
    return [page for page in pages if EXECUTED.match(page.read_text(encoding="utf-8"))]


def plain(text: str, page: Path) -> str:
    """Replace the marks of MyST in a Markdown cell by what every notebook viewer shows."""
    text = INCLUDED.sub(
        lambda match: f"```python\n{(page.parent / match[1]).read_text(encoding='utf-8').strip()}\n```", text
    )
    text = DIRECTIVE.sub(r"```\1", TARGET.sub("", text))
    return LINK.sub(lambda match: "" if match[1] else match[2], text)


def notebook(page: Path) -> Any:
    """Return the notebook of a page, as nbformat's NotebookNode."""
    result = read_myst_markdown_notebook(page.read_text(encoding="utf-8"), MdParserConfig(), add_source_map=False)
    cells = []
    for cell in result.cells:
        if cell.cell_type == "markdown":
            cell.source = plain(cell.source, page)
        elif "example.here(" in cell.source:
            script = (HERE / "example.py").read_text(encoding="utf-8").strip()
            cells.append(nbformat.v4.new_code_cell(f"%%writefile example.py\n{script}"))
        cell.metadata = {}
        cells.append(cell)
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    result.cells = cells
    result.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    result.nbformat, result.nbformat_minor = 4, 5
    nbformat.validate(result)
    return result


def write(folder: Path) -> dict[str, str]:
    """Write all notebooks.

    Returns:
        The path of the notebook below `folder` by the name of its page.
    """
    written = {}
    for page in executed_pages():
        name = page.relative_to(HERE).with_suffix("").as_posix()
        target = folder / f"{name}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook(page), target)
        written[name] = f"{name}.ipynb"
    return written


if __name__ == "__main__":
    write(Path(sys.argv[1]))
