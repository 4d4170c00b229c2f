"""The subcommands that ask a question of a store: analyze, report and steer.

Heavy libraries are imported inside the subcommands, so that `--help` answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stratalens.plugin.cli.analysis_options import (
    EntityColumn,
    Folds,
    GroupOrder,
    GroupPairs,
    LabelColumn,
    Permutations,
    Seed,
    Site,
    SkipMissing,
    suite_options,
)
from stratalens.plugin.cli.output import AsJson, StorePath, emit_json, emit_text, print_status


def analyze(
    store: StorePath,
    by: LabelColumn = None,
    verbs: Annotated[
        str, typer.Option(help="Comma-separated: centroids, probes, controls.")
    ] = "centroids,probes,controls",
    site: Site = None,
    order: GroupOrder = None,
    pairs: GroupPairs = None,
    folds: Folds = 5,
    groups: EntityColumn = "entity_id",
    permutations: Permutations = None,
    skip_missing: SkipMissing = False,
    backend: Annotated[str, typer.Option(help="auto, cpu or gpu.")] = "auto",
    scheduler: Annotated[str | None, typer.Option(metavar="URL", help="Address of a dask cluster.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Results folder; default: STORE.results/latest.")
    ] = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Analyse every layer and stage; print the best places, and write labelled results next to the store."""
    from stratalens.plugin.cli.answer_table import show_answer
    from stratalens.plugin.cli.store_jobs import analyze_store

    answer = analyze_store(
        store,
        by=by,
        verbs=[name.strip() for name in verbs.split(",") if name.strip()],
        site=site,
        backend=backend,
        scheduler=scheduler,
        out=out,
        seed=seed,
        permutations=permutations,
        **suite_options(order, pairs, folds, groups, skip_missing),
    )
    print_status(f"wrote {answer['folder']}")
    if as_json:
        emit_json(answer)
    else:
        show_answer(answer)


def report(
    store: StorePath,
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("report.html"),
    by: LabelColumn = None,
    site: Site = None,
    order: GroupOrder = None,
    pairs: GroupPairs = None,
    folds: Folds = 5,
    groups: EntityColumn = "entity_id",
    permutations: Permutations = None,
    skip_missing: SkipMissing = False,
    seed: Seed = 0,
    title: Annotated[
        str | None, typer.Option(help="Heading of the page; default: `title` of the run file, else a question.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write one standalone HTML page; run the analyses that have no results yet."""
    from stratalens.plugin.cli.store_jobs import report_store

    options = suite_options(order, pairs, folds, groups, skip_missing)
    options |= {"site": site, "seed": seed, "permutations": permutations}
    page = report_store(store, out, by=by, title=title, **options)
    print_status(f"wrote {page}")
    if as_json:
        emit_json({"store": store, "report": page, "bytes": page.stat().st_size})


def steer(
    store: StorePath,
    by: LabelColumn = None,
    pair: Annotated[
        str | None, typer.Option(metavar="'A v B'", help="Groups of the direction; default: the first and the last.")
    ] = None,
    kind: Annotated[str, typer.Option(help="steer (add dose x direction) or ablate (project it out).")] = "steer",
    stage: Annotated[list[str] | None, typer.Option(help="Stage, one an option; default: the last one.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Block, one an option; default: all recorded ones.")] = None,
    doses: Annotated[str, typer.Option(help="Lengths of the added vector, separated by commas.")] = "-2,-1,1,2",
    outcome: Annotated[
        str, typer.Option(help="answer_loss, answer_difference, answer_probability or text.")
    ] = "answer_loss",
    against: Annotated[
        str, typer.Option(metavar="COLUMN", help="Label column with the other answer, for answer_difference.")
    ] = "other_answer",
    position: Annotated[str, typer.Option(help="A recorded position, or all.")] = "last",
    site: Site = None,
    prompts: Annotated[Path | None, typer.Option(help="Prompts to score; default: those of the run file.")] = None,
    random: Annotated[int, typer.Option(help="Random directions of the null.", min=0)] = 20,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Default: STORE.results/interventions.zarr.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change activations along the difference of two groups, and say whether the model uses it.

    Half of the entities make the direction, the others are scored. The
    models and prompts are those of the run file next to the store. An
    interrupted job resumes with the same command."""
    from stratalens.plugin.cli.steer_job import steer_store

    result, path = steer_store(
        store, by=by, pair=pair, kind=kind, stages=stage or [], layers=layer or [], doses=doses, outcome=outcome,
        against=against, position=position, site=site, prompts=prompts, random=random, seed=seed, out=out,
    )  # fmt: skip
    print_status(f"wrote {path}")
    if as_json:
        emit_json({"store": store, "effects": path, "verdict": result.attrs["verdict"].splitlines()})
    else:
        emit_text(result.attrs["verdict"])
