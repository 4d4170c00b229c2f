"""Figures of interventions: their numbers, compared with the result they draw."""

from __future__ import annotations

import numpy as np
import pytest

from stratalens.analyses.plots.interventions import dose_response_spec, intervention_map_spec
from stratalens.analyses.report.intervention_sentences import dose_sentence, map_sentence
from stratalens.store.errors import InputError
from support import results as planted


def test_dose_response_has_effects_intervals_and_the_band_of_random_directions() -> None:
    effects = planted.effects(("s2", "s3"), doses=(2.0, -2.0, 1.0))  # in any order
    spec = dose_response_spec(effects)
    assert spec.sliders == {"stage": ["s2", "s3"], "layer": [0, 1, 2, 3]}
    drawn = spec.tables({"stage": "s3", "layer": 2})
    here = effects.sel(stage="s3", layer=2).sortby("dose")
    assert drawn["effects"]["x"].tolist() == [-2, 1, 2] * 2
    np.testing.assert_allclose(drawn["effects"]["y"], here.effect.values.ravel())
    np.testing.assert_allclose(drawn["intervals"]["y0"], here.effect_low.values.ravel())
    low, high = np.quantile(here.null.values, [0.025, 0.975], axis=1)
    np.testing.assert_allclose(drawn["band"]["y0"], low)
    np.testing.assert_allclose(drawn["band"]["y1"], high)
    assert drawn["effects"]["y"][2] > high[2]
    assert abs(drawn["effects"]["y"][5]) < 0.1 < drawn["effects"]["y"][2]
    assert set(spec.legend) == {"acts", "idle"}
    said = dose_sentence(effects, spec)({"stage": "s3", "layer": 2})
    assert "'acts' (dose" in said
    assert "0 of 20 random directions are as strong" in said


def test_without_doses_directions_are_side_by_side() -> None:
    effects = planted.effects(doses=(1.0,))
    spec = dose_response_spec(effects)
    assert [name for _, name in spec.x.ticks or ()] == ["acts", "idle"]
    drawn = spec.tables({"layer": 2})
    assert drawn["effects"]["x"].tolist() == [0, 1]
    assert drawn["band"]["x0"].tolist() == [-0.5, 1.5]
    cells = intervention_map_spec(effects).tables({})["cells"]
    np.testing.assert_allclose(cells["value"], effects.effect.squeeze().values.T.ravel())


def test_the_map_has_slopes_and_marks_what_is_no_stronger_than_random_directions() -> None:
    effects = planted.effects()
    spec = intervention_map_spec(effects)
    drawn = spec.tables({})
    np.testing.assert_allclose(drawn["cells"]["value"], effects.slope.squeeze("stage").values.T.ravel())
    strong = np.array([text == "" for text in drawn["verdicts"]["text"]]).reshape(2, 4)
    np.testing.assert_array_equal(strong, effects.slope_p.squeeze("stage").values.T <= 0.05)
    assert strong[0, 2]
    assert not strong[1].all()
    assert spec.clim is not None
    assert spec.clim[1] == pytest.approx(0.5, abs=0.05)
    assert "'acts' at" in map_sentence(effects, spec)({})
    alone = effects.drop_dims("random")
    assert "no random directions" in map_sentence(alone, intervention_map_spec(alone))({})
    assert "grey" not in dose_response_spec(alone).y.label


def test_what_the_figures_refuse_and_what_they_say_instead() -> None:
    effects = planted.effects(layers=1)
    with pytest.raises(InputError, match=r"needs a Dataset with 'effect'.*sl.intervene"):
        dose_response_spec(effects.drop_vars("effect"))
    outside = effects.squeeze("layer", drop=True)
    assert "no layers" in intervention_map_spec(outside).message
    assert dose_response_spec(outside).sliders == {}
    untested = effects.assign(effect=effects.effect * np.nan, slope=effects.slope * np.nan)
    assert "length zero" in dose_response_spec(untested).message
    assert "length zero" in intervention_map_spec(untested).message
