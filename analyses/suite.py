"""The usual questions about one label column, asked together: what `stratalens analyze` and `report` run.

Everything is asked of every stage and layer, except the controls: they are
asked of the last stage and of the first group against the last, where the
effect is largest if there is one, beside the same probe of the untrained
stage where there is one. For anything else call the verbs yourself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.centroids import centroids, project
from stratalens.analyses.controls.control_table import untrained_rows
from stratalens.analyses.controls.controls import BASELINES, control_table, controls
from stratalens.analyses.controls.matched_probe import LEAST, matched_probe
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.data.groups import groups
from stratalens.analyses.directions.directions import cosines
from stratalens.analyses.probes.generalise import generalise
from stratalens.analyses.probes.probe import probe
from stratalens.analyses.stats.quantiles import statistic_quantiles
from stratalens.store.errors import InputError, no_site_error, suggest

VERBS = ("centroids", "probes", "controls")


@dataclass
class Suite:
    """What `run_suite` found.

    Attributes:
        results: results by the names that `stratalens.analyses.report.report.report` takes.
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
            along them), "controls" (statistics alone, matched, regressed out; unit length, random directions and
            shuffled labels; and the table of what each leaves of the effect).
        site: site to analyse; None takes the first one recorded.
        backend: "auto", "cpu" or "gpu", for the probes.
        seed: of splits, permutations and resamples.
        permutations: of the projection's null.
        tell: called with a line before each step: which of how many, and about how long the rest will take.

    Raises:
        InputError: an unknown verb, none of them, an unknown site, or no site in the data; and whatever the verbs
            refuse that is not merely not applicable here.
    """
    verbs = [verbs] if isinstance(verbs, str) else list(verbs)
    check_verbs(verbs)
    chosen = _site(ds, site)
    found = groups(ds, by)
    suite = Suite()
    say = tell or (lambda line: None)
    steps = _Steps([name for verb in VERBS if verb in verbs for name in STEPS[verb]], say)
    common: dict[str, Any] = {"site": chosen, "seed": seed}
    if "centroids" in verbs:
        steps.begin("centroids", f"centroids of {chosen} by {by}")
        suite.results["centroids"] = centroids(ds, by=by, site=chosen)
        steps.begin("plane", "their plane, on entities held out from it")
        if len(found) >= 3:
            suite.results["projection"] = project(ds, by=by, permutations=permutations, **common)
        else:
            suite.skipped.append(f"projection: an order needs three groups, {by!r} has {len(found)}")
    if "probes" in verbs:
        steps.begin("probes", f"probes of all pairs of {by}")
        probes = probe(ds, target=by, backend=backend, **common)
        suite.results["probes"] = probes
        suite.results["cosines"] = cosines(probes, over="pair")
        suite.results["generalise"] = generalise(probes, ds)
    if "controls" in verbs:
        _controls(suite, ds, by, [(found.names[0], found.names[-1])], common, steps)
    for line in suite.skipped:
        say(f"left out: {line}")
    return suite


def check_verbs(verbs: Sequence[str]) -> None:
    """Refuse words that are no verb, and none at all.

    Raises:
        InputError: says which word, which verbs there are and which is near.

    >>> check_verbs(["probe"])
    Traceback (most recent call last):
    stratalens.store.errors.InputError: unknown verb 'probe'; did you mean 'probes'? Valid: centroids, probes, controls
    """
    for verb in verbs:
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}; {suggest(verb, VERBS)}")
    if not verbs:
        raise InputError(f"no verb is given: name one or more of {', '.join(VERBS)}")


# Steps of each verb, and about how long they take against each other.
STEPS = {
    "centroids": {"centroids": 1.0, "plane": 12.0},
    "probes": {"probes": 20.0},
    "controls": {"alone": 2.0, "matched": 2.0, "regressed": 2.0, "baselines": 3.0},
}


class _Steps:
    """Says which step begins, of how many, and about how long the rest will take."""

    def __init__(self, names: Sequence[str], say: Callable[[str], None]) -> None:
        weights = {name: weight for steps in STEPS.values() for name, weight in steps.items()}
        self.weights = {name: weights[name] for name in names}
        self.say, self.names, self.begun = say, list(names), time.monotonic()

    def begin(self, name: str, what: str) -> None:
        """Say that a step begins."""
        number = self.names.index(name)
        done = sum(self.weights[n] for n in self.names[:number])
        left = ""
        if done:
            seconds = (time.monotonic() - self.begun) / done * (sum(self.weights.values()) - done)
            left = f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {max(1, seconds):.0f} s left"
        self.say(f"[{number + 1} of {len(self.names)}{left}] {what}")


def _controls(
    suite: Suite, ds: xr.Dataset, by: str, ends: list[tuple[object, object]], common: dict[str, Any], steps: _Steps
) -> None:
    last = ds
    if "stage" in ds.dims:
        order = ds["stage_order"].values if "stage_order" in ds.coords else np.arange(ds.sizes["stage"])
        last = ds.isel(stage=[int(np.argmax(order))])
    asked: dict[str, tuple[str, str, Callable[[], xr.Dataset | xr.DataArray]]] = {
        "statistics": (
            "alone", "controls: norms, losses and confidence alone", lambda: statistic_quantiles(last, by=by)
        ),
        "statistics_probe": ("", "", lambda: statistics_probe(last, target=by, pairs=ends, **common)),
        "matched_probe": (
            "matched", "controls: matched", lambda: matched_probe(last, target=by, pairs=ends, small="nan", **common)
        ),
        "residual_probe": (
            "regressed", "controls: regressed out", lambda: residual_probe(last, target=by, pairs=ends, **common)
        ),
    }  # fmt: skip
    for name, (step, what, ask) in asked.items():
        if step:
            steps.begin(step, what)
        try:
            suite.results[name] = ask()
        except InputError as error:
            # a control that cannot be had (no statistics recorded, nothing left to match) is itself a finding
            suite.skipped.append(f"{name}: {error}")
    matched = suite.results.get("matched_probe")
    if isinstance(matched, xr.Dataset) and bool((matched["n_matched"] < LEAST).all()):
        suite.skipped.append(
            f"matched_probe: nowhere can {LEAST} rows be matched; with small='raise' it says which statistic "
            f"separates the classes"
        )
    steps.begin("baselines", "controls: unit length, random directions, shuffled labels and entities; the table of all")
    made = controls(last, by, pairs=ends, which=("probe", "normalized", *BASELINES), **common)
    for name in ("statistics_probe", "matched_probe", "residual_probe"):
        if isinstance(other := suite.results.get(name), xr.Dataset):
            made[name.removesuffix("_probe")] = other
    before = untrained_rows([str(group) for pair in ends for group in pair], ds)
    if before is not None:  # what a probe finds before any of it was learned
        first = probe(ds.isel(stage=[before]), by, pairs=ends, **common)
        made["untrained_stage"] = first.isel(stage=0, drop=True)
    suite.results["control_table"] = control_table(made)


def _site(ds: xr.Dataset, site: str | None) -> str:
    sites = [str(name) for name, variable in ds.data_vars.items() if variable.attrs.get("kind") == "site"]
    if site is None:
        if not sites:
            raise InputError("there is no recorded site in this Dataset; open a store with stratalens.open_store")
        return sites[0]
    if site not in ds:
        raise no_site_error(site, sites)
    return site
