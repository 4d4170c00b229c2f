"""The `stratalens` command: every subcommand with its arguments.

Heavy libraries are imported inside the subcommands, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stratalens.plugin.cli import analysis_commands
from stratalens.plugin.cli.analysis_options import LabelColumn
from stratalens.plugin.cli.output import (
    AsJson,
    StorePath,
    emit_json,
    emit_text,
    handle_errors,
    print_status,
    print_warnings,
    show_traceback,
)

app = typer.Typer(
    name="stratalens",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Activations of every layer and every training checkpoint, in one labelled store.",
    epilog="Example: stratalens capture run.yaml, then stratalens report run.zarr",
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        emit_text(f"stratalens {version('stratalens')}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    show_traceback.set(debug)


def command(example: str, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a subcommand that prints errors as one line, with an example below its help."""
    return lambda function: app.command(name, epilog=f"Example: stratalens {example}")(handle_errors(function))


@command("demo --quick --out quick-demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the store, the report and the summary.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="Seed of entities, partition and training order.", min=0)] = 1,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run everything in two minutes; the results are not meaningful.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a real model in six stages, record it, analyse it, write a report."""
    from stratalens.plugin.study.run import run_demo

    outcome = run_demo(out, seed=seed, quick=quick)
    if as_json:
        emit_json(asdict(outcome))


@command("study --preset cpu --out runs/cpu")
def study(
    run_file: Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="Settings of a study.")] = None,
    preset: Annotated[str | None, typer.Option(help="demo, smoke, cpu or paper, instead of a run file.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for all results.")] = Path("study"),
    seed: Annotated[int | None, typer.Option(help="Replaces the seed of the settings.", min=0)] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Resume an earlier run in this folder, or refuse to.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Run the training-order study: corpus, sequential fine-tuning, recording, analyses, report."""
    from stratalens.plugin.cli.capture_jobs import study_settings
    from stratalens.plugin.study.run import run_study

    settings = study_settings(run_file, preset, seed)
    outcome = run_study(settings, out, resume=resume, smoke_test=settings.preset == "smoke")
    if as_json:
        emit_json(asdict(outcome))


@command("forecast --preset paper")
def forecast(
    run_file: Annotated[
        Path | None, typer.Argument(metavar="RUN.yaml", help="Run file of a capture or of a study.")
    ] = None,
    as_json: AsJson = False,
    preset: Annotated[str | None, typer.Option(help="demo, smoke, cpu or paper: forecast a study.")] = None,
) -> None:
    """Forecast bytes, files, tokens, memory and time of a capture or a study; write nothing."""
    from stratalens.plugin.cli.capture_jobs import forecast_run, study_settings
    from stratalens.plugin.cli.output import show_forecast
    from stratalens.plugin.cli.run_file import read_run_file
    from stratalens.plugin.study.config.settings import is_study_file

    if run_file is not None and preset is None and not is_study_file(run_file):
        result = forecast_run(read_run_file(run_file))
    else:
        from stratalens.plugin.study.forecast import flatten_forecast, forecast_study

        nested = forecast_study(study_settings(run_file, preset, None))
        result = nested if as_json else flatten_forecast(nested)
    if as_json:
        emit_json(result)
        return
    show_forecast(str(run_file or preset), result)


@command("capture run.yaml")
def capture(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="A YAML file that says what to record.")],
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Resume an existing store, or refuse it.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Record even if the disk seems too small.")] = False,
    as_json: AsJson = False,
) -> None:
    """Record the activations of every stage of a run file.

    Keys: prompts, store, stages or model; and model_kwargs, sites, layers, positions, dtype,
    compression, batch_size, device, statistics, prepend_bos, allow_same_weights,
    by. With `revisions` ("step*", "log:16" or names), `model` is a suite on the
    Hugging Face hub, whose checkpoints are downloaded, recorded and deleted one
    after the other; `faults` and `scratch` belong to it. The complete run file
    is written next to the store. A store may be a URL such as
    s3://bucket/run.zarr; an object store has leases instead of locks, so run
    one writer at a time there."""
    from stratalens.plugin.cli.capture_jobs import capture_run
    from stratalens.plugin.cli.run_file import read_run_file

    store = capture_run(read_run_file(run_file), resume=resume, force=force)
    if as_json:
        from stratalens.store.state.info import info as read_info

        facts = read_info(store)
        stages = [stage["name"] for stage in facts["stages"]]
        emit_json({"store": store, "stages": stages, **{key: facts[key] for key in ("complete", "bytes", "files")}})


@command("check EleutherAI/pythia-70m")
def check(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint folder, or name on the Hugging Face Hub.")],
    prompts: Annotated[Path | None, typer.Option(help="Prompt table to sample; none takes four sentences.")] = None,
    device: Annotated[str | None, typer.Option(help="Device of the model, e.g. cuda:1.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that the hooks of a model give what the model computes; exit 1 if a value differs."""
    from stratalens.plugin.cli.capture_jobs import check_model

    report = check_model(model, prompts, device)
    if as_json:
        emit_text(report.to_json())
    else:
        emit_text(str(report))
    if not report.ok:
        raise typer.Exit(1)


@command("preflight EleutherAI/pythia-70m 'step*'")
def preflight(
    repository: Annotated[str, typer.Argument(metavar="REPO", help="Name of a model on the Hugging Face hub.")],
    revisions: Annotated[
        list[str] | None,
        typer.Argument(metavar="[REVISION...]", help="Patterns or names, or log:16; default: 'step*'."),
    ] = None,
    compare: Annotated[
        str, typer.Option(help="all: with every revision of the same run; selected: with each other.")
    ] = "all",
    as_json: AsJson = False,
) -> None:
    """Name the revisions of a suite that are not what they claim; no weights move.

    From the hashes, sizes and headers on the hub: revisions with the weights of
    another one, shared shards, missing and incomplete files. The exit code is 1
    if a revision is faulty."""
    from stratalens.plugin.cli.hub_jobs import run_preflight, show_preflight

    result = run_preflight(repository, revisions or [], compare)
    if as_json:
        emit_json(result)
    else:
        show_preflight(result)
    if not result["ok"]:
        raise typer.Exit(1)


@command("info run.zarr --json")
def info(store: StorePath, as_json: AsJson = False) -> None:
    """Print dims, sites, size, completeness by stage and site, provenance."""
    from stratalens.plugin.cli.output import show_info
    from stratalens.store.state.info import info as read_info

    facts = read_info(store)
    if as_json:
        emit_json(facts)
    else:
        show_info(facts)


@command("verify run.zarr --repair")
def verify(
    store: StorePath,
    as_json: AsJson = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mark damaged shards as missing, so that a resume records them again.")
    ] = False,
) -> None:
    """Compare every byte with its checksum; exit 1 if the store is damaged."""
    from stratalens.plugin.cli.output import show_verified
    from stratalens.plugin.cli.store_jobs import verify_job

    report = verify_job(store, repair=repair)
    if as_json:
        emit_json(report)
    else:
        show_verified(report)
    if not report["ok"]:
        raise typer.Exit(1)


command("analyze run.zarr --verbs centroids,probes")(analysis_commands.analyze)
command("report run.zarr -o report.html")(analysis_commands.report)
command("steer run.zarr --pair 'week1 v week2' --doses=-4,-2,2,4")(analysis_commands.steer)


@command("explore run.zarr --port 5010 --show")
def explore(
    store: StorePath,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes any free one.")] = 5006,
    show: Annotated[bool, typer.Option("--show", help="Open the page in the system's browser.")] = False,
    by: LabelColumn = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of halves and folds; default: that of the study, else 0.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve a live page on a store, to this machine only: rows, prompts, probes on demand. Ctrl-C ends it."""
    from stratalens.plugin.cli.store_jobs import explore_store

    explore_store(store, port=port, show=show, by=by, seed=seed, on_start=emit_json if as_json else None)


@command("export run.zarr --site resid_post --layer 12 --to layer12")
def export(
    store: StorePath,
    site: Annotated[str, typer.Option(help="A recorded site, e.g. resid_post.")],
    to: Annotated[
        Path, typer.Option(metavar="TARGET", help="A folder, or a .npy, .safetensors, .npz or .parquet file.")
    ],
    layer: Annotated[int | None, typer.Option(help="Block index; leave out for sites outside the blocks.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write one site at one layer, all stages, with the labels and prompts of its rows.

    A folder gets the array, rows.csv and README.md. Next to a .npy or
    .safetensors file there is a .csv with a line for each row. A .npz file
    and a .parquet file have the labels inside."""
    from stratalens.store.interop.export_labels import export as export_with_labels

    files = export_with_labels(store, to, site=site, layer=layer)
    for file in files:
        print_status(f"wrote {file}")
    if as_json:
        size = files[0].stat().st_size
        emit_json({"store": store, "site": site, "layer": layer, "file": files[0], "files": files, "bytes": size})


@command("import step0.npy step9.npy --table prompts.csv -o run.zarr", name="import")
def import_(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="npy, npz, safetensors, or a dataset folder. Or SITE:STAGE:LAYER=FILE, or its start.",
        ),
    ],
    out: Annotated[str, typer.Option("-o", "--out", metavar="STORE", help="Folder or fsspec URL of the store.")],
    table: Annotated[
        Path | None, typer.Option(help="The prompts, one row for each row of the arrays, in the same order.")
    ] = None,
    site: Annotated[str | None, typer.Option(help="Site of arrays that nothing names; default: resid_post.")] = None,
    stages: Annotated[
        str | None, typer.Option(help="Stages in training order, by commas; default: the names of the files.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Block indices, by commas; default: all from 0.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Names of the positions, by commas; default: last.")] = None,
    dims: Annotated[str | None, typer.Option(help="Axes of every array, by commas, e.g. entity,layer,d_model.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16 or int8.")] = "auto",
    nonfinite: Annotated[str, typer.Option(help="raise or keep, for NaN and infinity.")] = "raise",
    source: Annotated[str, typer.Option(help="Where the values came from; kept in the provenance.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write activations that exist already into a store; an interrupted import resumes.

    Axes are (stage, layer, entity, token, features...). Those of size one may
    be left out. Several files without a prefix are one stage each."""
    from stratalens.plugin.cli.array_jobs import import_files

    store = import_files(
        files,
        out,
        table=table,
        site=site,
        stages=stages,
        layers=layers,
        tokens=tokens,
        dims=dims,
        dtype=dtype,
        nonfinite=nonfinite,
        source=source,
    )
    if as_json:
        emit_json(store)


@command("init checkpoints prompts.csv -o run.yaml")
def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder with one folder for each checkpoint.")],
    table: Annotated[
        Path | None, typer.Argument(metavar="TABLE", help="The prompts, as csv, jsonl or parquet.")
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="The run file to write.")] = Path("run.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a commented run file from a folder of checkpoints and a table of prompts."""
    from stratalens.plugin.cli.init_job import write_initial_run_file

    with print_warnings():
        facts = write_initial_run_file(folder, table, out, force=force)
    print_status(f"wrote {out}; look at it, then: stratalens forecast {out}")
    if as_json:
        emit_json(facts)


@command("commit run.zarr run.icechunk")
def commit(
    store: StorePath,
    repository: Annotated[str, typer.Argument(metavar="REPOSITORY", help="A folder, or s3://bucket/prefix.")],
    as_json: AsJson = False,
) -> None:
    """Copy complete stages to an icechunk repository, one commit for each (extra icechunk)."""
    from stratalens.store.interop.icechunk import commit_stages

    committed = commit_stages(store, repository)
    for stage in committed:
        print_status(f"committed stage {stage}")
    if not committed:
        print_status(f"nothing new: {repository} has every complete stage of {store}")
    if as_json:
        emit_json({"store": store, "repository": repository, "committed": committed})


@command("push run.zarr hf://datasets/me/run --license cc-by-4.0")
def push(
    store: StorePath,
    url: Annotated[
        str, typer.Argument(metavar="URL", help="hf://datasets/USER/NAME[@BRANCH], s3://bucket/run.zarr, or a folder.")
    ],
    title: Annotated[str | None, typer.Option(help="Heading of the card; default: the name in the URL.")] = None,
    citation: Annotated[str | None, typer.Option(help="How to cite the data.")] = None,
    license: Annotated[str | None, typer.Option(help="License of the data, e.g. cc-by-4.0.")] = None,
    figure: Annotated[
        Path | None, typer.Option(help="PNG file for the card; default: the mean norm by stage and layer.")
    ] = None,
    no_figure: Annotated[bool, typer.Option("--no-figure", help="A card without a figure.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    as_json: AsJson = False,
) -> None:
    """Share a store: copy it with an index and a card to a URL; an interrupted push resumes.

    Every file is checked first. Colleagues open the URL with open_store, and
    with stratalens info, analyze and report, and read only what they need."""
    from stratalens.plugin.cli.store_jobs import push_job

    picture: bool | Path = not no_figure if figure is None else figure
    sent = push_job(store, url, title=title, citation=citation, license=license, figure=picture, private=private)
    if as_json:
        emit_json(sent)


@command("label run.zarr prompts.csv")
def label(
    store: StorePath,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="The recorded prompts, with the right labels.")],
    drop: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Remove this column from the store.")] = None,
    as_json: AsJson = False,
) -> None:
    """Correct or add labels of a recorded store; its activations do not change.

    Rows are matched by prompt_id. Columns of the table replace those of the
    store or are added to it. Columns that the table does not have stay."""
    from stratalens.plugin.capture.store import relabel
    from stratalens.plugin.prompts.table import PromptTable

    with print_warnings():
        changed = relabel(store, PromptTable.read(table), drop=drop or ())
    for name, rows in changed.items():
        count = "1 row" if rows == 1 else f"{rows} rows"
        print_status(f"dropped {name}" if name in (drop or ()) else f"{name}: {count} changed")
    print_status(
        f"{store} has the labels of {table}" if changed else f"nothing to do: {store} has the labels of {table}"
    )
    if as_json:
        emit_json({"store": store, "changed": changed})


def main() -> None:
    """Run the `stratalens` command."""
    # The OpenMP threads of torch spin while they wait for each other. A spinning thread takes the core from the thread
    # that it waits for; benchmarks/capture/waiting_threads.py measures the cost. OpenMP reads the variable when torch
    # is loaded. A value that the user set stays.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if not sys.stderr.isatty():  # transformers draws bars into pipes too
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    app()
