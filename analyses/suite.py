"""The usual questions about one label column, asked together: what `stratalens analyze` and `report` run.

Everything is asked of every stage and layer, except the controls: they are
asked of the last stage and of the first group against the last, where the
effect is largest if there is one. For anything else call the verbs yourself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.centroids import centroids, project
from stratalens.analyses.directions import cosines
from stratalens.analyses.generalisation import generalise
from stratalens.analyses.labels import groups
from stratalens.analyses.matched import matched_probe
from stratalens.analyses.plots.distributions import statistic_quantiles
from stratalens.analyses.probes import probe
from stratalens.analyses.residuals import residual_probe
from stratalens.analyses.statistics_alone import statistics_probe
from stratalens.store.errors import InputError, near

VERBS = ("centroids", "probes", "controls")


@dataclass
class Suite:
    """What `run_suite` found.

    Attributes:
        results: results by the names that `stratalens.analyses.report.report` takes.
        skipped: why something was left out, one sentence each.
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
    """Run the verbs over a store.

    Args:
        ds: an open store.
        by: label column whose groups are compared.
        verbs: "centroids" (centroids, projection), "probes" (all pairs, their cosines, scores of every group
            along them), "controls" (statistics alone, matched, regressed out).
        site: site to analyse; None takes the first one recorded.
        backend: "auto", "cpu" or "gpu", for the probes.
        seed: of splits, permutations and resamples.
        permutations: of the projection's null.
        tell: called with a line before each step.

    Raises:
        InputError: an unknown verb or site, or no site in the data; and whatever the verbs refuse that is not
            merely not applicable here.
    """
    for verb in verbs:
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}; {near(verb, VERBS)}")
    chosen = _site(ds, site)
    found = groups(ds, by)
    suite = Suite()
    say = tell or (lambda line: None)
    common: dict[str, Any] = {"site": chosen, "seed": seed}
    if "centroids" in verbs:
        say(f"centroids of {chosen} by {by}")
        suite.results["centroids"] = centroids(ds, by=by, site=chosen)
        if len(found) >= 3:
            say("their plane, on entities held out from it")
            suite.results["projection"] = project(ds, by=by, permutations=permutations, **common)
        else:
            suite.skipped.append(f"projection: an order needs three groups, {by!r} has {len(found)}")
    if "probes" in verbs:
        say(f"probes of all pairs of {by}")
        probes = probe(ds, target=by, backend=backend, **common)
        suite.results["probes"] = probes
        suite.results["cosines"] = cosines(probes, over="pair")
        suite.results["generalise"] = generalise(probes, ds)
    if "controls" in verbs:
        say("controls: norms, losses and confidence alone, matched, regressed out")
        _controls(suite, ds, by, [(found.names[0], found.names[-1])], common)
    for line in suite.skipped:
        say(f"left out: {line}")
    return suite


def _controls(suite: Suite, ds: xr.Dataset, by: str, ends: list[tuple[object, object]], common: dict[str, Any]) -> None:
    last = ds
    if "stage" in ds.dims:
        order = ds["stage_order"].values if "stage_order" in ds.coords else np.arange(ds.sizes["stage"])
        last = ds.isel(stage=[int(np.argmax(order))])
    asked: dict[str, Callable[[], xr.Dataset | xr.DataArray]] = {
        "statistics": lambda: statistic_quantiles(last, by=by),
        "statistics_probe": lambda: statistics_probe(last, target=by, pairs=ends, **common),
        "matched_probe": lambda: matched_probe(last, target=by, pairs=ends, **common),
        "residual_probe": lambda: residual_probe(last, target=by, pairs=ends, **common),
    }
    for name, ask in asked.items():
        try:
            suite.results[name] = ask()
        except InputError as error:
            # a control that cannot be had (no statistics recorded, nothing left to match) is itself a finding
            suite.skipped.append(f"{name}: {error}")


def _site(ds: xr.Dataset, site: str | None) -> str:
    sites = [str(name) for name, variable in ds.data_vars.items() if variable.attrs.get("kind") == "site"]
    if site is None:
        if not sites:
            raise InputError("there is no recorded site in this Dataset; open a store with stratalens.open_store")
        return sites[0]
    if site not in ds:
        raise InputError(f"site {site!r} is not in this store; {near(site, sites)}")
    return site
