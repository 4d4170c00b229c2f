from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stratalens.analyses.controls.conditional_test import ConditionalSlab, conditional_test
from stratalens.analyses.probes.probe import probe
from stratalens.store.errors import InputError
from support.planted import confounded

QUIET: dict[str, Any] = {"progress": False, "scheduler": "synchronous", "resamples": 100}


def test_the_null_is_what_the_statistics_alone_would_give_this_probe() -> None:
    ds = confounded("shift")
    result = conditional_test(ds, "age", ds.statistics, permutations=39, **QUIET).squeeze()
    assert float(result.accuracy_mean) == float(probe(ds, "age", **QUIET).accuracy_mean.squeeze())
    assert float(result.null_mean) > 0.55
    assert abs(float(result.accuracy_mean - result.null_mean)) < 0.05
    assert float(result.p) > 0.025
    assert float(result.null_low) <= float(result.null_mean) <= float(result.null_high)


def test_the_probe_and_its_null_are_measured_in_the_same_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels that are drawn as they are give the numbers of the probe, also in folds of unequal sizes."""
    ds = confounded("shift", 27, real=1.0)  # its mean AUC of the folds is above the AUC of all folds

    def draw_own(self: ConditionalSlab, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        signs = self.plan.contrasts.signs
        return np.repeat(signs[None], self.draws, axis=0), np.ones(signs.shape[1])

    monkeypatch.setattr(ConditionalSlab, "_draw", draw_own)
    result = conditional_test(ds, "age", ds.statistics, permutations=9, **QUIET).squeeze()
    assert float(result.null_mean) == pytest.approx(float(result.accuracy_mean), abs=1e-9)
    assert float(result.auc_null) == pytest.approx(float(result.auc_mean), abs=1e-4)
    assert float(result.p) == float(result.auc_p) == 1.0


def test_an_effect_beside_the_statistics_exceeds_them() -> None:
    ds = confounded("shift", real=1.2)
    result = conditional_test(ds, "age", ds.statistics, permutations=39, **QUIET).squeeze()
    assert float(result.p) == float(result.auc_p) == 1 / 40
    assert float(result.accuracy_mean - result.null_mean) > 0.05


def test_one_torn_entity_does_not_blind_the_test() -> None:
    ds = confounded("shift", 80, real=2.5)
    entity = np.repeat(np.arange(40), 4)
    ds = ds.assign_coords(entity_id=("entity", np.array([f"e{i}" for i in entity], object)))
    age = ds.age.values.copy()
    age[0] = age[-1]
    result = conditional_test(ds.assign_coords(age=("entity", age)), "age", ("n0",), permutations=39, **QUIET)
    assert float(result.p.squeeze()) == 1 / 40
    assert abs(float(result.null_mean.squeeze()) - 0.5) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"permutations": 0}, "at least one draw"),
        ({"C": [0.1, 1.0]}, "must be one number"),
        ({"pairs": "multiclass"}, "no labels to draw"),
        ({"statistics": ("los",)}, "did you mean 'loss'"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    ds = confounded("shift", 30)
    with pytest.raises(InputError, match=message):
        conditional_test(ds, "age", **({"statistics": ("loss",)} | arguments), **QUIET)
