"""The standard analyses of one label column.

Centroids and probes cover every stage and layer. The controls cover the last stage and the first group against the
last, where an effect is largest, and the same probe at the untrained stage if there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.centroids import centroids, project
from stratalens.analyses.controls.conditional_test import conditional_test
from stratalens.analyses.controls.control_table import control_table, find_untrained_stage
from stratalens.analyses.controls.controls import BASELINES, controls
from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.matched_slab import MIN_MATCHED
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.controls.weighted_probe import weighted_probe
from stratalens.analyses.data.groups import groups
from stratalens.analyses.directions.directions import cosines
from stratalens.analyses.probes.generalise import generalise
from stratalens.analyses.probes.probe import probe
from stratalens.analyses.stats.quantiles import statistic_quantiles
from stratalens.store.errors import InputError, no_site_error, suggest

CONDITIONAL_DRAWS = 99
VERBS = ("centroids", "probes", "controls")

# Steps of each set of analyses, and their relative durations.
STEPS = {
    "centroids": {"centroids": 1.0, "plane": 12.0},
    "probes": {"probes": 20.0},
    "controls": {"alone": 2.0, "matched": 6.0, "regressed": 2.0, "baselines": 3.0},
}


@dataclass
class Suite:
    """Results of `run_suite`.

    Attributes:
        results: results by the names that `stratalens.analyses.report.report.report` takes.
        skipped: one sentence for each analysis that was left out, with the reason.
    """

    results: dict[str, xr.Dataset | xr.DataArray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def run_suite(
    ds: xr.Dataset,
    *,
    by: str = "trained_stage",
    verbs: Sequence[str] = VERBS,
    site: str | None = None,
    backend: str = "auto",
    seed: int = 0,
    permutations: int = 200,
    tell: Callable[[str], None] | None = None,
) -> Suite:
    """Run the standard analyses of a store.

    Args:
        ds: an open store.
        by: label column whose groups are compared.
        verbs: "centroids" (centroids, projection), "probes" (all pairs, their cosines, scores of every group
            along them), "controls" (statistics alone, matched, regressed out; unit length, random directions and
            shuffled labels; and the table of the effect that each leaves).
        site: site to analyse; None = the first one recorded.
        backend: "auto", "cpu" or "gpu", for the probes.
        seed: of splits, permutations and resamples.
        permutations: number of permutations for the null of the projection.
        tell: called with a line before each step: its number, and about how long the rest will take.

    Returns:
        Suite with results: centroids, projection; probes, cosines, generalise; statistics, statistics_probe,
        matched_probe, weighted_probe, conditional_test, residual_probe, control_table.

    Raises:
        InputError: an unknown or no name in `verbs`, an unknown site, no site in the data, or input that the
            centroids, the projection or the probes refuse.
    """
    verbs = [verbs] if isinstance(verbs, str) else list(verbs)
    check_verbs(verbs)
    site = _choose_site(ds, site)
    label_groups = groups(ds, by)
    suite = Suite()
    print_line = tell or (lambda line: None)
    steps = _Steps([name for verb in VERBS if verb in verbs for name in STEPS[verb]], print_line)
    common: dict[str, Any] = {"site": site, "seed": seed}
    if "centroids" in verbs:
        steps.start("centroids", f"centroids of {site} by {by}")
        suite.results["centroids"] = centroids(ds, by=by, site=site)
        steps.start("plane", "projection of held-out entities into the plane of the centroids")
        if len(label_groups) >= 3:
            suite.results["projection"] = project(ds, by=by, permutations=permutations, **common)
        else:
            suite.skipped.append(f"projection: an order needs three groups, {by!r} has {len(label_groups)}")
    if "probes" in verbs:
        steps.start("probes", f"probes of all pairs of {by}")
        probes = probe(ds, target=by, backend=backend, **common)
        suite.results["probes"] = probes
        suite.results["cosines"] = cosines(probes, over="pair")
        suite.results["generalise"] = generalise(probes, ds)
    if "controls" in verbs:
        _run_controls(suite, ds, by, [(label_groups.names[0], label_groups.names[-1])], common, steps)
    for line in suite.skipped:
        print_line(f"left out: {line}")
    return suite


def check_verbs(verbs: Sequence[str]) -> None:
    """Refuse unknown names of analyses, and an empty list.

    Raises:
        InputError: names the valid ones and the nearest.

    Example:
        >>> check_verbs(["probe"])
        Traceback (most recent call last):
        stratalens.store.errors.InputError: verbs='probe': did you mean 'probes'? Valid: centroids, probes, controls
    """
    for verb in verbs:
        if verb not in VERBS:
            raise InputError(f"verbs={verb!r}: {suggest(verb, VERBS)}")
    if not verbs:
        raise InputError(f"verbs is empty: name one or more of {', '.join(VERBS)}")


class _Steps:
    """Reports each step, its number, and about how long the rest will take."""

    def __init__(self, names: Sequence[str], print_line: Callable[[str], None]) -> None:
        durations = {name: duration for steps in STEPS.values() for name, duration in steps.items()}
        self.durations = {name: durations[name] for name in names}
        self.print_line, self.names, self.start_time = print_line, list(names), time.monotonic()

    def start(self, name: str, description: str) -> None:
        """Report that a step starts."""
        index = self.names.index(name)
        done = sum(self.durations[n] for n in self.names[:index])
        left = ""
        if done:
            seconds = (time.monotonic() - self.start_time) / done * (sum(self.durations.values()) - done)
            left = f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {max(1, seconds):.0f} s left"
        self.print_line(f"[{index + 1} of {len(self.names)}{left}] {description}")


def _run_controls(
    suite: Suite, ds: xr.Dataset, by: str, pairs: list[tuple[object, object]], common: dict[str, Any], steps: _Steps
) -> None:
    last = ds
    if "stage" in ds.dims:
        order = ds["stage_order"].values if "stage_order" in ds.coords else np.arange(ds.sizes["stage"])
        last = ds.isel(stage=[int(np.argmax(order))])
    options: dict[str, Any] = {"target": by, "pairs": pairs, **common}

    def attempt(name: str, function: Callable[..., xr.Dataset], **arguments: Any) -> None:
        try:
            suite.results[name] = function(last, **arguments)
        except InputError as error:
            # A control that cannot be computed (no statistics recorded, no rows to match) is itself a finding.
            suite.skipped.append(f"{name}: {error}")

    steps.start("alone", "controls: norms, losses and confidence alone")
    attempt("statistics", statistic_quantiles, by=by)
    attempt("statistics_probe", statistics_probe, **options)
    steps.start("matched", "controls: matched, weighted, and labels drawn given the statistics")
    attempt("matched_probe", matched_probe, small="nan", **options)
    attempt("weighted_probe", weighted_probe, **options)
    attempt("conditional_test", conditional_test, permutations=CONDITIONAL_DRAWS, **options)
    steps.start("regressed", "controls: regressed out")
    attempt("residual_probe", residual_probe, **options)
    matched = suite.results.get("matched_probe")
    if isinstance(matched, xr.Dataset) and bool((matched["n_matched"] < MIN_MATCHED).all()):
        suite.skipped.append(
            f"matched_probe: fewer than {MIN_MATCHED} rows can be matched at every layer and token; pass "
            f"small='raise' to see which statistic separates the classes"
        )
    steps.start("baselines", "controls: unit length, random directions, shuffled labels and entities; table of all")
    results = controls(last, which=("probe", "normalized", *BASELINES), **options)
    for name in ("statistics_probe", "matched_probe", "weighted_probe", "conditional_test", "residual_probe"):
        if isinstance(other := suite.results.get(name), xr.Dataset):
            results[name.rsplit("_", 1)[0]] = other
    untrained = find_untrained_stage([str(group) for pair in pairs for group in pair], ds)
    if untrained is not None:
        results["untrained_stage"] = probe(ds.isel(stage=[untrained]), **options).isel(stage=0, drop=True)
    suite.results["control_table"] = control_table(results)


def _choose_site(ds: xr.Dataset, site: str | None) -> str:
    sites = [str(name) for name, variable in ds.data_vars.items() if variable.attrs.get("kind") == "site"]
    if site is None:
        if not sites:
            raise InputError("there is no recorded site in this Dataset; open a store with stratalens.open_store")
        return sites[0]
    if site not in ds:
        raise no_site_error(site, sites)
    return site
