"""Effects along the recency axis over outcomes and places, their p values and verdicts, from planted results."""

import json

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.report.sections import intervention_sections
from stratalens.plugin.study.findings.analyses import Findings
from stratalens.plugin.study.findings.headline import make_row
from stratalens.plugin.study.findings.interventions import (
    NULLS,
    add_intervention_results,
    describe_interventions,
    intervention_table,
    p_of_each_null,
)
from stratalens.plugin.study.recording.interventions import InterventionResults, Place

DIRECTIONS = ["recency axis", "recency probe"]
PLACES = ((3, "last"), (5, "last"), (3, "entity_last"))
DRAWS = 20


def effects(unit, slope, null, names, doses=(-2, 2), ablated=0.0):
    """Make a result of `stratalens.intervene` with linear effects, one for each direction."""
    lengths = np.array(doses, float) * unit
    shape = ("stage", "layer", "direction")
    slopes = np.array([[[slope] * len(names)]])
    entities = 40
    group = np.arange(entities) % 2
    clean = np.where(np.arange(entities) < 30, 1.0, -1.0)
    variables = {
        "kl": ((*shape, "dose"), np.full((1, 1, len(names), len(doses)), 0.1)),
        "null_slope": (("stage", "layer", "random"), np.array(null)[None, None] / unit),
        "null": (("stage", "layer", "dose", "random"), np.tile(np.array(null), (1, 1, len(doses), 1))),
        "clean": (("stage", "entity"), clean[None]),
        "outcome": ((*shape, "dose", "entity"), np.tile(clean + ablated, (1, 1, len(names), len(doses), 1))),
    }
    for suffix, change in (("", 0), ("_low", -0.1), ("_high", 0.1)):
        variables[f"slope{suffix}"] = (shape, (slopes + change) / unit)
        effect = slopes[..., None] * np.array(doses) + change if len(doses) > 1 else slopes[..., None] + change
        variables[f"effect{suffix}"] = ((*shape, "dose"), effect)
    coords = {"stage": ["s6"], "layer": [3], "direction": names, "dose": lengths if len(doses) > 1 else [1.0]}
    coords |= {"group": ("entity", group), "scored": ("entity", np.ones(entities, bool))}
    return xr.Dataset(variables, coords=coords)


def planted(slopes):
    """Make results whose axis has these slopes at the three places; the nulls reach 0.5 at one place."""
    places, jobs = [], {}
    for outcome in ("self-report", "self-report of shuffled groups", "contradictions"):
        names = DIRECTIONS if outcome == "contradictions" else [*DIRECTIONS, "answer direction"]
        for (layer, token), slope in zip(PLACES, slopes, strict=True):
            unit = 10.0 * layer
            shift = {} if outcome == "contradictions" else {"shift": 0.4, "shift_low": 0.3, "shift_high": 0.5}
            place = Place(outcome, layer, token, unit, **shift)
            places.append(place)
            own = slope if outcome != "self-report of shuffled groups" else 0.0
            null = np.linspace(-0.3, 0.3, DRAWS) if token == "last" else np.linspace(-0.2, 0.5, DRAWS)
            jobs[f"{place.file}-doses"] = effects(unit, own, null, names, (-4, -1, 1, 4))
            for kind in NULLS:
                jobs[f"{place.file}-steer_{kind}"] = effects(unit, own, null, names)
                if outcome != "contradictions":
                    jobs[f"{place.file}-ablate_{kind}"] = effects(unit, -0.7, null, names, (1,), ablated=-2.5)
    return InterventionResults("s6", ("s1", "s6"), tuple(places), jobs)


def test_effects_are_per_distance_of_the_groups_and_p_is_over_all_places():
    table = intervention_table(planted((0.6, 0.4, 0.0)))
    assert table.dose.values.tolist() == [-4, -1, 1, 4]
    axis = table.sel(direction="recency axis", outcome="self-report")
    np.testing.assert_allclose(axis.slope.sel(token="last").values, [0.6, 0.4])
    np.testing.assert_allclose(axis.effect.sel(token="last", layer=3).values, 0.6 * table.dose.values)
    assert bool(np.isnan(axis.slope.sel(token="entity_last", layer=5)))
    p = axis.slope_p.sel(token="last").values
    assert p[0] == pytest.approx(1 / 21)
    largest = np.maximum(np.abs(np.linspace(-0.3, 0.3, DRAWS)), np.abs(np.linspace(-0.2, 0.5, DRAWS)))
    assert p[1] == pytest.approx((1 + (largest >= 0.4).sum()) / 21)
    assert bool(np.isnan(table.slope.sel(outcome="contradictions", direction="answer direction")).all())


def test_each_null_has_its_own_p_and_the_largest_counts():
    table = intervention_table(planted((0.6, 0.4, 0.0)))
    null = table.null_slope.copy()
    null.loc[{"null_kind": "shuffled"}] *= 0.1
    p = p_of_each_null(table.slope, null).sel(outcome="self-report", layer=5, token="last", direction="recency axis")
    assert p.sel(null_kind="shuffled") == pytest.approx(1 / 21)
    assert p.sel(null_kind="random") == p.sel(null_kind="orthogonal") == p.max() > 1 / 21
    own = table.slope_p.sel(outcome="self-report", layer=5, token="last", direction="recency axis")
    assert own == pytest.approx(float(p.max()))
    assert bool(np.isnan(table.ablated.sel(outcome="contradictions")).all())


def test_rows_figures_and_verdicts_of_all_outcomes():
    findings = Findings()
    add_intervention_results(findings, planted((0.6, 0.4, 0.0)), seed=0)
    json.dumps(findings.rows, allow_nan=False)
    keys = [(row["name"], row["layer"], row["token"]) for row in findings.rows]
    assert len(keys) == len(set(keys))
    rows = dict(zip(keys, findings.rows, strict=True))
    one = rows["contradictions: change per dose of the recency axis", 3, "last"]
    assert (one["value"], one["low"], one["high"]) == pytest.approx((0.6, 0.5, 0.7))
    assert one["null"] == pytest.approx(0.3)
    assert rows["self-report: accuracy", None, None]["value"] == 0.75
    assert rows["self-report: accuracy with the recency axis ablated", 5, "last"]["value"] == 0
    figures = findings.report["interventions"]
    assert list(figures) == ["self-report", "ablation", "self-report of shuffled groups", "contradictions"]
    section = intervention_sections(findings.report)[0]
    assert "towards the later answer" in " ".join(section.points)
    assert "the report needs the axis" in " ".join(section.points)
    for name, figure in figures.items():
        assert figure.effect.sizes["direction"] == (2 if name == "contradictions" else 3)
        assert figure.sizes["random"] == 3 * DRAWS
    drawn = next(f.spec for f in section.figures if f.spec.name == "dose_response")
    shown = drawn.tables({"layer": 3, "token": "last"})["effects"]
    np.testing.assert_allclose(shown["y"][:4], 0.6 * np.array([-4, -1, 1, 4]))
    assert "distance between the two groups" in drawn.x.label


def row(name, value, low, high, p, layer=3, null=0.5):
    return make_row(name, value=value, low=low, high=high, p=p, null=null, n=300, layer=layer, token="last")


@pytest.mark.parametrize(
    ("axis", "answer", "shuffled", "accuracy", "ablation", "steering", "ablating"),
    [
        ((1, 0.8, 1.2, 0.04), 0.04, 0.5, 0.6, (-0.3, -0.5, -0.1, 0.04), "towards the later group.", "needs the axis"),
        ((1, 0.8, 1.2, 0.04), 0.04, 0.04, 0.6, (0.3, 0.1, 0.5, 0.04), "not evidence of a report", "no loss beyond"),
        ((-1, -1.2, -0.8, 0.04), 0.04, 0.5, 0.6, (-0.3, -0.5, 0.1, 0.04), "against the later group", "no loss beyond"),
        ((1, 0.8, 1.2, 0.1), 0.04, 0.5, 0.45, (-0.3, -0.5, -0.1, 0.04), "no effect beyond", "nothing to remove"),
        ((1, -0.1, 2.1, 0.04), 0.5, 0.5, 0.6, (-0.3, -0.5, -0.1, 0.2), "says nothing", "no loss beyond"),
    ],
)
def test_the_verdict_follows_from_the_numbers(axis, answer, shuffled, accuracy, ablation, steering, ablating):
    rows = [
        row("self-report: change per dose of the recency axis", *axis),
        row("self-report: change per dose of the recency axis", 5, -1, 11, 0.5, layer=5),  # larger, but no effect
        row("self-report: change per dose of the answer direction", 2, 1, 3, answer),
        row("self-report of shuffled groups: change per dose of the recency axis", 1, 0.5, 1.5, shuffled),
        row("self-report: change by ablating the recency axis", *ablation),
        make_row("self-report: accuracy", value=accuracy + 0.03, low=accuracy, high=accuracy + 0.06),
    ]
    table = xr.Dataset(coords={"outcome": ["self-report"]}, attrs={"pair": ["s1", "s6"]})
    said = describe_interventions(rows, table)
    assert steering in said["self-report"]
    assert ablating in said["ablation"]
