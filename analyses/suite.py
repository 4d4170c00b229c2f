"""The standard analyses of one label column.

Centroids and probes cover every stage and layer. The controls cover the last stage, where an effect is largest, and
the same probe at the untrained stage if there is one. Groups with an order are compared first against last. Groups
without one are compared all at once, and the controls use the mean over some pairs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from stratalens.analyses.centroids.centroids import centroids, project
from stratalens.analyses.centroids.resampling import halves
from stratalens.analyses.controls.conditional_test import conditional_test
from stratalens.analyses.controls.control_table import control_table, find_untrained_stage
from stratalens.analyses.controls.controls import BASELINES, controls
from stratalens.analyses.controls.matched_probe import matched_probe
from stratalens.analyses.controls.matched_slab import MIN_MATCHED
from stratalens.analyses.controls.residual_probe import residual_probe
from stratalens.analyses.controls.statistics_probe import statistics_probe
from stratalens.analyses.controls.weighted_probe import weighted_probe
from stratalens.analyses.data.array_types import Codes
from stratalens.analyses.data.groups import Groups, clusters, groups
from stratalens.analyses.data.label_columns import check_label_column, default_label_column
from stratalens.analyses.directions.directions import cosines
from stratalens.analyses.probes.generalise import generalise
from stratalens.analyses.probes.probe import probe
from stratalens.analyses.probes.shuffled_probes import shuffled_probes
from stratalens.analyses.stats.quantiles import statistic_quantiles
from stratalens.store.errors import InputError, join_names, no_site_error, suggest

CONDITIONAL_DRAWS = 99
VERBS = ("centroids", "probes", "controls")

# Steps of each set of analyses, and their relative durations.
STEPS = {
    "centroids": {"centroids": 1.0, "plane": 12.0},
    "probes": {"multiclass": 10.0, "probes": 20.0},
    "controls": {"alone": 2.0, "matched": 6.0, "regressed": 2.0, "baselines": 3.0},
}

# Permutations, and the largest number of activations times probes of a row for which they take about a minute.
WORK_OF_PERMUTATIONS = ((99, 3e5), (19, 2e6))  # most numbers in all probes of pairs
# Most seconds of the fits of one probe of all groups, and the seconds of a fit as measured for 38 to 2,000 rows: a
# constant, and a share of rows x features x groups.
SECONDS_OF_PERMUTATIONS, SECONDS_OF_FIT, SECONDS_OF_NUMBER = 90, 0.015, 3e-7
MAX_PAIRED_GROUPS = 12  # probes of all pairs of more groups take too long, and are too many to read
COSINE_DRAWS = 10  # shuffles of the labels for the null of the cosines
MAX_CONTROL_PAIRS = 6  # pairs of groups without an order that the controls average over


@dataclass
class Suite:
    """Results of `run_suite`.

    Attributes:
        by: label column.
        ordered: the groups have a known order.
        headline: name of the result that answers first: "multiclass", or "probes" of pairs.
        results: results by the names that `stratalens.analyses.report.report.report` takes.
        skipped: one sentence for each analysis or group that was left out, with the reason.
    """

    by: str
    ordered: bool
    headline: str = "probes"
    results: dict[str, xr.Dataset | xr.DataArray] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SuiteOptions:
    """Options of the probes of `run_suite`.

    Attributes:
        order: groups wanted, in order; "stages" = the groups are stages; None = all groups.
        pairs: pairs of the probes: "all", "rest" or a list of (name, name); None = all pairs of up to 12 groups.
        folds: number of folds.
        groups: label column of the entities.
        permutations: label shuffles for each null.
        skip_missing: leave rows out that are not recorded.
    """

    order: Sequence[object] | str | None = None
    pairs: str | Sequence[tuple[object, object]] | None = None
    folds: int = 5
    groups: str = "entity_id"
    permutations: int = 200
    skip_missing: bool = False


def run_suite(
    ds: xr.Dataset,
    *,
    by: str | None = None,
    verbs: Sequence[str] = VERBS,
    site: str | None = None,
    backend: str = "auto",
    seed: int = 0,
    probe_permutations: int = 0,
    tell: Callable[[str], None] | None = None,
    **options: Any,
) -> Suite:
    """Run the standard analyses of a store.

    An analysis that cannot be computed is left out, with a sentence in `skipped`. So is a group with fewer entities
    than an analysis needs.

    Args:
        ds: an open store.
        by: label column whose groups are compared; None = `default_label_column`.
        verbs: "centroids" (centroids; projection of ordered groups), "probes" (one probe of all groups, if they have no
            order; all pairs, their cosines, scores of every group along them), "controls" (statistics alone, matched,
            regressed out; unit length, random directions and shuffled labels; and the table of the effect that each
            leaves).
        site: site to analyse; None = the first one recorded.
        backend: "auto", "cpu" or "gpu", for the probes.
        seed: of splits, permutations and resamples.
        probe_permutations: number of permutations for the nulls of the probes; each refits all probes. Groups without
            an order have them for the probe of all groups, or for the pairs that `pairs` names.
        tell: called with a line before each step: its number, and about how long the rest will take.
        options: fields of `SuiteOptions`.

    Returns:
        Suite with results: centroids, projection (ordered groups); multiclass (groups without an order), probes,
        cosines, generalise; statistics, statistics_probe, matched_probe, weighted_probe,
        conditional_test, residual_probe, control_table.

    Raises:
        InputError: an unknown or no name in `verbs`, an unknown site, column or group, no site in the data, or no
            analysis can be computed.
        NotRecordedError: unrecorded rows.
    """
    verbs = [verbs] if isinstance(verbs, str) else list(verbs)
    check_verbs(verbs)
    choice = SuiteOptions(**options)
    site = _choose_site(ds, site)
    if by is None:
        by = default_label_column(ds)
    check_label_column(ds, by)
    label_groups = groups(ds, by, choice.order)
    if choice.pairs is not None and choice.pairs != "rest":
        label_groups.pairs(choice.pairs)
    label_groups.require(classes=2)
    run = _Run(ds, label_groups, clusters(ds, choice.groups), site, seed, choice, tell or (lambda line: None))
    several = _has_probe_of_all(label_groups)
    unused = {"multiclass"} if not several else set()
    unused |= {"plane"} if not label_groups.ordered else set()
    names = [name for verb in VERBS if verb in verbs for name in STEPS[verb] if name not in unused]
    run.steps = _Steps(
        {name: d for verb in STEPS.values() for name, d in verb.items() if name in names}, run.print_line
    )
    if "centroids" in verbs:
        run.run_centroids()
    if "probes" in verbs:
        run.run_probes(backend, probe_permutations, several)
    if "controls" in verbs:
        run.run_controls()
    if not run.suite.results:
        raise InputError(f"no analysis of {by!r} can be computed. {'; '.join(dict.fromkeys(run.suite.skipped))}")
    for line in run.suite.skipped:
        run.print_line(f"left out: {line}")
    return run.suite


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


def default_permutations(
    ds: xr.Dataset, by: str, site: str | None = None, order: Any = None, pairs: Any = None, folds: int = 5
) -> int:
    """Choose the number of permutations of the probes: as many as about a minute and a half allows.

    Every permutation fits all probes again, so that a large store and many groups have none. 19 permutations are the
    fewest for p = .05.

    Args:
        ds: an open store.
        by: label column.
        site: site to analyse; None = the first one recorded.
        order: as in `SuiteOptions`.
        pairs: as in `SuiteOptions`.
        folds: as in `SuiteOptions`.

    Returns:
        99, 19 or 0.
    """
    sizes = dict(ds[_choose_site(ds, site)].sizes)
    label_groups = groups(ds, by, order)
    count = len(label_groups)
    if count > MAX_PAIRED_GROUPS:
        return 0
    if pairs is None and _has_probe_of_all(label_groups):
        d = sizes.popitem()[1]
        rows = sizes.pop("entity")
        fits = folds * np.prod([float(n) for n in sizes.values()])
        seconds = fits * (SECONDS_OF_FIT + SECONDS_OF_NUMBER * rows * d * count)
        return next((n for n, _ in WORK_OF_PERMUTATIONS if (n + 1) * seconds <= SECONDS_OF_PERMUTATIONS), 0)
    probes = count - 1 if label_groups.ordered else count  # a row is in that many probes
    numbers = probes * np.prod([float(n) for n in sizes.values()])
    return next((n for n, most in WORK_OF_PERMUTATIONS if numbers <= most), 0)


def _has_probe_of_all(label_groups: Groups) -> bool:
    return not label_groups.ordered and len(label_groups) > 2


def control_pairs(
    names: Sequence[object], ordered: bool, limit: int = MAX_CONTROL_PAIRS
) -> list[tuple[object, object]]:
    """Choose the pairs of the controls: the ends of ordered groups, else all pairs up to a limit.

    Of many groups without an order, the pairs join evenly spaced groups to a ring, so that each of them counts the
    same.

    >>> control_pairs("abcd", ordered=True), len(control_pairs("abcd", ordered=False))
    ([('a', 'd')], 6)
    >>> control_pairs("abcdefghi", ordered=False, limit=3)
    [('a', 'e'), ('e', 'i'), ('a', 'i')]
    """
    if ordered:
        return [(names[0], names[-1])]
    count = len(names)
    if count * (count - 1) // 2 <= limit:
        return [(names[i], names[j]) for i in range(count) for j in range(i + 1, count)]
    ring = np.rint(np.linspace(0, count - 1, min(limit, count))).astype(int).tolist()
    return [(names[i], names[j]) for i, j in (*pairwise(ring), (ring[0], ring[-1]))]


class _Steps:
    """Reports each step, its number, and about how long the rest will take.

    Args:
        durations: relative duration of each step, in order.
        print_line: called with one line a step.
    """

    def __init__(self, durations: Mapping[str, float], print_line: Callable[[str], None]) -> None:
        self.durations, self.print_line = dict(durations), print_line
        self.start_time = time.monotonic()

    def start(self, name: str, description: str) -> None:
        """Report that a step starts."""
        names = list(self.durations)
        index = names.index(name)
        done = sum(self.durations[n] for n in names[:index])
        left = ""
        if done:
            seconds = (time.monotonic() - self.start_time) / done * (sum(self.durations.values()) - done)
            left = f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", about {max(1, seconds):.0f} s left"
        self.print_line(f"[{index + 1} of {len(names)}{left}] {description}")


class _Run:
    """One call of `run_suite`: its arguments, and the results so far."""

    def __init__(
        self,
        ds: xr.Dataset,
        label_groups: Groups,
        units: Codes,
        site: str,
        seed: int,
        choice: SuiteOptions,
        print_line: Callable[[str], None],
    ) -> None:
        self.ds, self.groups, self.units, self.choice, self.print_line = ds, label_groups, units, choice, print_line
        self.by = label_groups.by
        self.suite = Suite(self.by, label_groups.ordered)
        self.steps = _Steps({}, print_line)
        self.common: dict[str, Any] = {"site": site, "skip_missing": choice.skip_missing}
        self.seed = seed

    def run_centroids(self) -> None:
        """Compute centroids, and the projection of ordered groups."""
        self.steps.start("centroids", f"centroids of {self.common['site']} by {self.by}")
        self._attempt("centroids", centroids, self.ds, by=self.by, order=self.choice.order, **self.common)
        if not self.groups.ordered:
            return
        self.steps.start("plane", "projection of held-out entities into the plane of the centroids")
        least = halves(0.5, 20, np.random.default_rng(self.seed)).least
        names, order = self._large_groups("projection", least, f"splits into halves need {least}")
        if len(names) < 3:
            self.suite.skipped.append(f"projection: an order needs three groups, {self.by!r} has {len(names)}")
            return
        arguments = {"by": self.by, "order": order, "permutations": self.choice.permutations, "seed": self.seed}
        self._attempt("projection", project, self.ds, groups_by=self.choice.groups, **arguments, **self.common)

    def run_probes(self, backend: str, permutations: int, several: bool) -> None:
        """Fit one probe of all groups, the probes of pairs, and compare their directions."""
        names, order = self._large_groups("probes", self.choice.folds, f"{self.choice.folds} folds need as many")
        arguments = {"target": self.by, "order": order, "backend": backend, "seed": self.seed, **self.common}
        arguments |= {"folds": self.choice.folds, "groups": self.choice.groups, "permutations": permutations}
        if several:
            self.steps.start("multiclass", f"probe of all {len(names)} groups of {self.by}")
            self.suite.headline = "multiclass" if self.choice.pairs is None else "probes"
            nulls = {"permutations": permutations if self.suite.headline == "multiclass" else 0}
            self._attempt("multiclass", probe, self.ds, pairs="multiclass", **arguments | nulls)
        pairs, description = self._probe_pairs(names)
        self.steps.start("probes", f"probes of {description} of {self.by}")
        if not pairs:
            self.suite.skipped.append(
                f"probes of pairs: {len(names)} groups have {len(names) * (len(names) - 1) // 2} pairs, and the probe "
                f"of all groups replaces them. Choose some with pairs=[...], or pairs='rest'"
            )
            return
        affordable = bool(permutations)
        if several and self.choice.pairs is None:
            arguments["permutations"] = 0
        probes = self._attempt("probes", probe, self.ds, pairs=pairs, **arguments)
        if probes is None:
            return
        null = None
        if affordable and probes.sizes["pair"] > 1:
            shared = {key: value for key, value in arguments.items() if key not in ("permutations", "folds")}
            null = shuffled_probes(self.ds, pairs=pairs, draws=COSINE_DRAWS, **shared)
        self._attempt("cosines", cosines, probes, over="pair", null=null)
        scored = {"order": self.choice.order, "skip_missing": self.choice.skip_missing}
        self._attempt("generalise", generalise, probes, self.ds, **scored)

    def _probe_pairs(self, names: list[object]) -> tuple[Any, str]:
        """Pairs of the probes and their description; no pairs where there are too many of them."""
        if self.choice.pairs is not None:
            wanted = self.choice.pairs
            return wanted, "each group against the rest" if wanted == "rest" else "the chosen pairs"
        if len(names) <= MAX_PAIRED_GROUPS:
            return "all", "all pairs"
        if not self.groups.ordered:
            return None, "pairs"
        some = [names[i] for i in np.rint(np.linspace(0, len(names) - 1, MAX_PAIRED_GROUPS)).astype(int)]
        self.suite.skipped.append(
            f"probes of pairs: {MAX_PAIRED_GROUPS} of {len(names)} groups, evenly spaced in their order. Choose others "
            f"with pairs=[...]"
        )
        return [(a, b) for i, a in enumerate(some) for b in some[i + 1 :]], f"pairs of {MAX_PAIRED_GROUPS} groups"

    def run_controls(self) -> None:
        """Run the controls at the last stage, and make the table of all."""
        last = self.ds
        if "stage" in last.dims:
            order = last["stage_order"].values if "stage_order" in last.coords else np.arange(last.sizes["stage"])
            last = last.isel(stage=[int(np.argmax(order))])
        names, order_wanted = self._large_groups("controls", self.choice.folds, "", tell=False)
        if len(names) < 2:
            self.suite.skipped.append(f"controls: only {len(names)} group of {self.by!r} has enough entities")
            return
        pairs = self._control_pairs(names)
        options = {"target": self.by, "pairs": pairs, "order": order_wanted, "seed": self.seed, **self.common}
        options["groups"] = self.choice.groups
        folds = {"folds": self.choice.folds}
        self.steps.start("alone", "controls: norms, losses and confidence alone")
        self._attempt("statistics", statistic_quantiles, last, by=self.by)
        self._attempt("statistics_probe", statistics_probe, last, **options, **folds)
        self.steps.start("matched", "controls: matched, weighted, and labels drawn given the statistics")
        matched = self._attempt("matched_probe", matched_probe, last, small="nan", **options)
        self._attempt("weighted_probe", weighted_probe, last, **options)
        self._attempt("conditional_test", conditional_test, last, permutations=CONDITIONAL_DRAWS, **options)
        self.steps.start("regressed", "controls: regressed out")
        self._attempt("residual_probe", residual_probe, last, **options, **folds)
        if matched is not None and bool((matched["n_matched"] < MIN_MATCHED).all()):
            reason = f"fewer than {MIN_MATCHED} rows can be matched at every layer and token"
            self.suite.skipped.append(f"matched_probe: {reason}")
        self.steps.start("baselines", "controls: unit length, random directions, shuffled labels and entities; table")
        self._attempt("control_table", self._control_table, last, options | folds, pairs)

    def _control_table(
        self, last: xr.Dataset, options: dict[str, Any], pairs: list[tuple[object, object]]
    ) -> xr.Dataset:
        results = controls(last, which=("probe", "normalized", *BASELINES), **options)
        for name in ("statistics_probe", "matched_probe", "weighted_probe", "conditional_test", "residual_probe"):
            if isinstance(other := self.suite.results.get(name), xr.Dataset):
                results[name.rsplit("_", 1)[0]] = other
        untrained = find_untrained_stage([str(group) for pair in pairs for group in pair], self.ds)
        if untrained is not None and self.groups.ordered:
            results["untrained_stage"] = probe(self.ds.isel(stage=[untrained]), **options).isel(stage=0, drop=True)
        return control_table(results)

    def _control_pairs(self, names: list[object]) -> list[tuple[object, object]]:
        chosen = self.choice.pairs
        if chosen is not None and not isinstance(chosen, str):
            return list(chosen)[:MAX_CONTROL_PAIRS]
        pairs = control_pairs(names, self.groups.ordered)
        if not self.groups.ordered and len(pairs) < len(names) * (len(names) - 1) // 2:
            self.suite.skipped.append(
                f"controls: {len(pairs)} of {len(names) * (len(names) - 1) // 2} pairs. Choose others with pairs=[...]"
            )
        return pairs

    def _large_groups(
        self, analysis: str, least: int, why: str, tell: bool = True
    ) -> tuple[list[object], list[object] | str | None]:
        """Names of the groups with at least `least` entities, and the argument `order` that selects them."""
        sizes = self.groups.sizes(self.units)
        names = [name for name, size in zip(self.groups.names.tolist(), sizes, strict=True) if size >= least]
        small = [f"{n!r} ({size})" for n, size in zip(self.groups.names, sizes, strict=True) if size < least]
        if not small:
            return names, self.choice.order  # type: ignore[return-value]
        if tell:
            self.suite.skipped.append(
                f"{analysis}: without the groups {join_names(small)} of {self.by!r}, which have too few entities; {why}"
            )
        return names, names

    def _attempt(self, name: str, function: Callable[..., Any], *data: Any, **arguments: Any) -> Any:
        """Run an analysis and keep its result; say why it cannot be computed otherwise."""
        try:
            result = function(*data, **arguments)
        except InputError as error:
            # An analysis that cannot be computed (no statistics recorded, no rows to match) is itself a finding.
            self.suite.skipped.append(f"{name}: {error}")
            return None
        if result.attrs.get("ordered") != self.groups.ordered:
            result.attrs["ordered"] = self.groups.ordered  # a selection of groups is passed as an order, but is none
        self.suite.results[name] = result
        return result


def _choose_site(ds: xr.Dataset, site: str | None) -> str:
    sites = [str(name) for name, variable in ds.data_vars.items() if variable.attrs.get("kind") == "site"]
    if site is None:
        if not sites:
            raise InputError("there is no recorded site in this Dataset; open a store with stratalens.open_store")
        return sites[0]
    if site not in ds:
        raise no_site_error(site, sites)
    return site
