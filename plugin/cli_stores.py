"""Commands that copy out of a store, or change its labels. `stratalens.cli` has the others, and registers these."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stratalens.console import AsJson, StorePath, emit_json, guarded, note, told_warnings


@guarded
def export(
    store: StorePath,
    site: Annotated[str, typer.Option(help="A recorded site, e.g. resid_post.")],
    to: Annotated[Path, typer.Option(metavar="FILE", help="A .safetensors or .npy file.")],
    layer: Annotated[int | None, typer.Option(help="Block index; leave out for sites outside the blocks.")] = None,
    as_json: AsJson = False,
) -> None:
    """One site at one layer, all stages, as a plain array file."""
    from stratalens.jobs import export_site

    export_site(store, site=site, layer=layer, target=to)
    note(f"wrote {to}")
    if as_json:
        emit_json({"store": store, "site": site, "layer": layer, "file": to, "bytes": to.stat().st_size})


@guarded
def commit(
    store: StorePath,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="A folder, or s3://bucket/prefix.")],
    as_json: AsJson = False,
) -> None:
    """Complete stages into an icechunk repository, one commit for each (extra icechunk)."""
    from stratalens.store.versioned import commit_stages

    done = commit_stages(store, repository)
    for stage in done:
        note(f"committed stage {stage}")
    if not done:
        note(f"nothing new: {repository} has every complete stage of {store}")
    if as_json:
        emit_json({"store": store, "repository": repository, "committed": done})


@guarded
def label(
    store: StorePath,
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="The prompts that were recorded, with the right labels.")
    ],
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Take this column out of the store.")] = None,
    as_json: AsJson = False,
) -> None:
    """Correct or add labels of a store that is recorded; its activations stay as they are.

    Rows are matched by prompt_id. Columns of the table replace those of the
    store or are added to it; columns that the table does not have stay."""
    from stratalens.prompts import PromptTable
    from stratalens.relabelling import relabel

    with told_warnings():
        changed = relabel(store, PromptTable.read(table), drop=drop or ())
    for name, rows in changed.items():
        counted = "1 row has" if rows == 1 else f"{rows} rows have"
        note(f"dropped {name}" if name in (drop or ()) else f"{name}: {counted} another value than before")
    note(f"{store} has the labels of {table}" if changed else f"nothing to do: {store} has the labels of {table}")
    if as_json:
        emit_json({"store": store, "changed": changed})
