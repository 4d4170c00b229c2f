"""The work of `stratalens steer`: a direction of a store, and interventions along it in the models of its run file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from stratalens.plugin.cli.capture_jobs import run_stages
from stratalens.plugin.cli.output import print_status, print_warnings
from stratalens.plugin.cli.prompt_file import read_prompts
from stratalens.plugin.cli.run_file import RunFile, read_run_file_of, run_file_of
from stratalens.plugin.cli.store_jobs import choose_column, results_folder
from stratalens.plugin.progress import StageLines, is_interactive, suppress_progress_bars
from stratalens.store.errors import InputError, join_names, suggest


def steer_store(
    store: str,
    *,
    by: str | None,
    pair: str | None,
    kind: str,
    stages: Sequence[str],
    layers: Sequence[int],
    doses: str,
    outcome: str,
    against: str,
    position: str,
    site: str | None,
    prompts: Path | None,
    random: int,
    seed: int,
    out: Path | None,
) -> tuple[xr.Dataset, Path]:
    """Intervene along the difference of two groups' centroids.

    Half of the entities, drawn at random, make the direction; the others are scored.

    Args:
        store: path of the store; its run file is next to it.
        by: label column; None = as for the report.
        pair: "A v B"; None = the first and the last group.
        kind: steer or ablate.
        stages: names of stages; empty for the last one.
        layers: block indices; empty for all recorded ones.
        doses: numbers, separated by commas.
        outcome: name of an outcome.
        against: label column with the other answer.
        position: position of the centroids and of the intervention, or "all" for the latter.
        site: None = the first recorded one.
        prompts: prompts to score; None = those of the run file.
        random: number of random directions.
        seed: of the halves and of the random directions.
        out: result; None = interventions.zarr in the results folder of the store.

    Returns:
        The result of `intervene`, and its path.

    Raises:
        InputError: an option is invalid, the store has no run file, or the models do not fit.
    """
    from stratalens.analyses.accessor import open_store
    from stratalens.analyses.directions.direction_set import Directions
    from stratalens.plugin.interventions.intervene import intervene
    from stratalens.store.format.schema import site_names

    if kind not in ("steer", "ablate"):
        raise InputError(f"--kind {kind}: {suggest(kind, ('steer', 'ablate'))}")
    operation: Literal["steer", "ablate"] = "steer" if kind == "steer" else "ablate"
    ds = open_store(store)
    run = _run_of(store)
    numbers = _doses(doses)
    column = choose_column(ds, store, by)
    sites = site_names(ds)
    if site is not None and site not in sites:
        raise InputError(f"--site {site}: {suggest(site, sites)}")
    names = [str(name) for name in ds["stage"].values]
    if unknown := [name for name in stages if name not in names]:
        raise InputError(f"--stage {unknown[0]}: {suggest(unknown[0], names)}")
    chosen = list(stages) or names[-1:]
    directions: Directions = _directions(ds, column, pair, site or sites[0], position, seed).sel(stage=chosen)
    if layers:
        directions = directions.sel(layer=list(layers))
    run_file_stages = run_stages(run)
    table = read_prompts(prompts if prompts is not None else run.prompts, run_file_stages, run.add_generation_prompt)
    sources = {stage.name: stage.source for stage in run_file_stages if stage.name in chosen}
    if missing := [name for name in chosen if name not in sources]:
        raise InputError(f"the run file has no stage {missing[0]!r}; it has {join_names(sources)}")
    path = out if out is not None else results_folder(store) / "interventions.zarr"
    is_new = out is None and not path.parent.exists()
    if is_new:
        path.parent.mkdir(parents=True)
    print_status(f"{kind} along {directions.names[0]!r} of {column}, {len(directions.layer) or 1} layers: {path}")
    progress = None if is_interactive() else StageLines(chosen, print_status)
    try:
        with suppress_progress_bars(downloads=False), print_warnings():
            result = intervene(
                sources, table, directions, operation, numbers, outcome, position, random, seed, against=against,
                batch_size=run.batch_size, device=run.device, prepend_bos=run.prepend_bos, path=path, progress=progress,
            )  # fmt: skip
    finally:
        if is_new:
            with suppress(OSError):
                path.parent.rmdir()  # nothing was written
    return result, path


def _run_of(store: str) -> RunFile:
    run = read_run_file_of(store)
    if run is None:
        raise InputError(
            f"{run_file_of(store)} does not exist, so that the models and prompts of {store} are not known; use the "
            "Python function stratalens.intervene"
        )
    return run


def _doses(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--doses {text}: give numbers, separated by commas, such as --doses=-4,-2,2,4") from None


def _directions(ds: xr.Dataset, column: str, pair: str | None, site: str, position: str, seed: int) -> Any:
    """Difference of the centroids of two groups, of half of the entities."""
    from stratalens.analyses.centroids.centroids import centroids
    from stratalens.analyses.data.groups import clusters, groups
    from stratalens.analyses.directions.direction_set import directions

    grouped = groups(ds, column)
    names = [str(name) for name in grouped.names]
    if len(names) < 2:
        raise InputError(f"{column} has the one group {join_names(names)}; a direction needs two")
    ends = (names[0], names[-1])
    if pair is not None:
        first, separator, second = pair.partition(" v ")
        for name in (first, second) if separator else ():
            if name not in names:
                raise InputError(f"--pair: {name!r} is no group of {column}: {suggest(name, names)}")
        if not separator:
            raise InputError(f"--pair {pair}: write two groups as 'A v B', for example --pair '{ends[0]} v {ends[1]}'")
        ends = (first, second)
    tokens = [str(name) for name in np.atleast_1d(ds["token"].values)]
    token = position if position in tokens else "last" if position == "all" and "last" in tokens else None
    if token is None:
        raise InputError(f"--position {position} was not recorded: {suggest(position, [*tokens, 'all'])}")
    units = clusters(ds)
    shuffled = np.random.default_rng(seed).permutation(int(units.max()) + 1)
    half = ds.isel(entity=np.flatnonzero(np.isin(units, shuffled[: len(shuffled) // 2])))
    # Not kept: options that are wrong for the models are seen later, and then nothing may be left.
    means = centroids(half, by=column, site=site, progress=False, cache=False).sel(token=token)
    if not set(ends) <= {str(name) for name in means["group"].values}:
        raise InputError(f"half of the entities have no row of {ends[0]} or of {ends[1]}; choose larger groups")
    ids = half["entity_id"].values if "entity_id" in half.coords else half["entity"].values
    return directions(means, pairs=[ends], entities=[str(name) for name in ids])
