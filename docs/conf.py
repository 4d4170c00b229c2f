"""Configure Sphinx for `make docs`. Neither the build nor the pages load anything from the network."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from sphinx.util.inspect import TypeAliasForwardRef

TypeAliasForwardRef.__repr__ = lambda self: (
    self.name
)  # otherwise Sphinx shows its own object for an alias inside a Mapping

HERE = Path(__file__).parent
SCRIPT = re.compile(r"<script\b[^>]*>.*?</script>", re.DOTALL)
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the modules of this folder, and the benchmarks

project = "stratalens"
author = "The stratalens developers"
project_copyright = "The stratalens developers, Apache-2.0"
release = metadata.version("stratalens")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
copybutton_exclude = ".linenos, .gp, .go"  # neither prompts nor output
myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # every output on the pages comes from this build
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_output_stderr = "remove"  # progress bars of loading weights
nb_merge_streams = True
nb_execution_excludepatterns = ["_build/*"]
exclude_patterns = ["_build", "_generated/commands.md", "_generated/extra"]
root_doc = "index"
suppress_warnings = ["toc.empty_glob", "mystnb.unknown_mime_type"]  # plots also have forms for a live kernel
nitpicky = False

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_type_aliases = {"ArrayLike": "ArrayLike"}  # instead of its twelve types
default_role = "code"  # for `name` in a docstring
napoleon_google_docstring = True
napoleon_numpy_docstring = True
napoleon_use_rtype = False

html_theme = "furo"
html_static_path = ["_static"]
html_extra_path = ["llms.txt", "_generated/extra"]  # extra: notebooks of the pages and live figures
html_css_files = ["outputs.css"]
html_title = f"stratalens {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"footer_icons": []}
pygments_style = "default"
pygments_dark_style = "native"


def make_example() -> None:
    """Build the example data of the pages once; their kernels find it by `example.here`."""
    folder = HERE / "_generated" / "example"
    if not (folder / "run.zarr").exists():
        done = subprocess.run(
            [sys.executable, HERE / "example.py", folder], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"docs/example.py failed:\n{done.stderr}")
    os.environ["STRATALENS_EXAMPLE"] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))


def make_gallery() -> None:
    """Draw the figures of the gallery and write its page, from the code that the page shows."""
    import gallery

    gallery.write(HERE / "_generated" / "gallery", HERE / "_generated" / "extra" / "live")


def make_benchmarks() -> None:
    """Draw the charts of the benchmarks and write their page, from benchmarks/results."""
    from benchmarks.harness import charts

    charts.write(HERE / "_generated" / "benchmarks")


def make_notebooks() -> dict[str, str]:
    """Write the notebooks of the executed pages, copy examples/ to be executed as pages, and return all by page."""
    import notebooks

    extra = HERE / "_generated" / "extra" / "notebooks"
    written = notebooks.write(extra)
    for folder in (HERE / "_generated" / "examples", extra / "examples"):
        shutil.copytree(HERE.parent / "examples", folder, dirs_exist_ok=True)
    examples = (path.name for path in sorted((extra / "examples").glob("*.ipynb")))
    return written | {f"_generated/examples/{Path(name).stem}": f"examples/{name}" for name in examples}


def make_commands() -> None:
    """Write a section for every command from its help text."""
    from typer.main import get_command

    from stratalens.plugin.cli.app import app

    parts = []
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join(["stratalens", name, *(str(p.metavar) for p in arguments), "[OPTIONS]"])
        parts.append(f"## {name}\n\n{command.help}\n\n```text\n{usage}\n```\n")
        parts += [f"- `{p.metavar}`: {p.help}" for p in arguments if p.help]
        for option in options:
            names = ", ".join(f"`{n}`" for n in (*option.opts, *option.secondary_opts))
            tail = f" Default: `{option.default}`." if option.default not in (None, False, True) else ""
            parts.append(f"- {names}: {option.help}{tail}")
        example = str(command.epilog or "").removeprefix("Example: ")
        parts.append(f"\n```text\n{example}\n```\n" if example else "\n")
    target = HERE / "_generated" / "commands.md"
    target.parent.mkdir(exist_ok=True)
    target.write_text("\n".join(parts), encoding="utf-8")


def make_inventories() -> dict[str, tuple[str, str]]:
    """Write the inventories of other projects, so that links to their pages need no network."""
    import inventories

    return inventories.write(HERE / "_generated" / "inventories")


def reference_context() -> dict[str, Any]:
    """Return the examples and pictures of the pages that autosummary writes, one for each public name."""
    import reference_pages

    import stratalens as sl

    sys.modules.setdefault("stratalens.plots", sl.plots)  # autodoc looks for `stratalens.plots.NAME` in such a module
    return reference_pages.context()


def finish_body(app: Any, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Remove scripts that would load others from a server, and put a link to the page's notebook below its title.

    Such scripts are outputs that prepare a live notebook for HoloViews; the pages show the images of the figures.
    """
    if "body" in context:
        context["body"] = SCRIPT.sub(lambda match: "" if "://cdn." in match[0] else match[0], context["body"])
    if page in NOTEBOOKS and "body" in context:
        target = f"{'../' * page.count('/')}notebooks/{NOTEBOOKS[page]}"
        link = f'<p class="notebook-link"><a href="{target}" download>Download this page as a notebook</a></p>'
        context["body"] = context["body"].replace("</h1>", f"</h1>\n{link}", 1)


def setup(app: Any) -> None:
    """Connect the hooks of this file."""
    app.connect("html-page-context", finish_body)


make_example()
make_gallery()
make_benchmarks()
make_commands()
NOTEBOOKS = make_notebooks()
intersphinx_mapping = make_inventories()
autosummary_context = reference_context()
