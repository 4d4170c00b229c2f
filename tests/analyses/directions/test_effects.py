"""Effects, intervals over entities, p-values against random directions, slopes and verdicts, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.directions.effects import summarise_effects

ATTRS = {"kind": "steer", "site": "resid_post", "positions": "last", "outcome": "loss", "null_kind": "drawn"}


def result(strength: float, *, random: int = 20, entities: int = 30, layers: int = 2, **changes: Any) -> xr.Dataset:
    """Direction `a` moves the outcome by strength x dose at layer 1; random ones by up to 0.1 x dose."""
    rng = np.random.default_rng(0)
    doses = np.array([-1.0, 1.0, 2.0])
    clean = rng.normal(size=(1, entities))
    noise = 0.05 * rng.normal(size=(1, layers, 1, 3, entities))
    values = clean[:, None, None, None] + noise
    values[:, 1] += strength * doses[:, None]
    size = np.linspace(-0.1, 0.1, random) if random else np.zeros(0)
    null = np.broadcast_to(
        clean[:, None, None, None] + size[:, None, None] * doses[:, None], (1, layers, random, 3, entities)
    )
    outcome = xr.DataArray(
        values,
        dims=("stage", "layer", "direction", "dose", "entity"),
        coords={"stage": ["s"], "layer": range(layers), "direction": ["a"], "dose": doses},
    )
    return summarise_effects(
        outcome,
        xr.DataArray(clean, dims=("stage", "entity")),
        null,
        units=np.arange(entities),
        attrs=ATTRS | changes,
    )


def test_a_strong_direction() -> None:
    r = result(1.0).squeeze(("stage", "direction"))
    np.testing.assert_allclose(r.effect.sel(layer=1), [-1, 1, 2], atol=0.05)
    assert (r.effect_low <= r.effect).all()
    assert (r.effect_high >= r.effect).all()
    np.testing.assert_allclose(r.null.sel(dose=2.0, layer=0), np.linspace(-0.2, 0.2, 20), atol=1e-12)
    np.testing.assert_allclose(r.effect_p.sel(layer=1), 1 / 21)
    assert float(r.slope.sel(layer=1)) == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(r.null_slope.sel(layer=0), np.linspace(-0.1, 0.1, 20), atol=1e-12)
    assert float(r.slope_p.sel(layer=1)) == pytest.approx(1 / 21)
    assert float(r.p_max.sel(layer=1)) == pytest.approx(1 / 21)
    assert float(r.p_max.sel(layer=0)) > 0.3
    assert "dose 2" in r.attrs["verdict"]
    assert "p 0.048 over all 6 places and doses" in r.attrs["verdict"]
    assert r.attrs["verdict"].endswith("The outcome depends on this direction more than on random ones.")


def test_p_counts_the_random_directions_that_are_as_strong() -> None:
    r = result(0.0)
    drawn = np.abs(r.null.values)
    expected = (1 + (drawn[:, :, None] >= np.abs(r.effect.values)[..., None]).sum(-1)) / 21
    np.testing.assert_allclose(r.effect_p.values, expected)
    best = drawn.max(axis=(0, 1, 2))
    sizes = np.abs(r.effect.values).max(-1)
    np.testing.assert_allclose(r.p_max.values, (1 + (best >= sizes[..., None]).sum(-1)) / 21)
    assert r.attrs["verdict"].endswith("No effect beyond that of random directions was shown.")


@pytest.mark.parametrize(
    ("random", "message"), [(10, "10 random directions cannot show p <= 0.05"), (0, "there is no verdict")]
)
def test_too_few_random_directions_give_no_verdict(random: int, message: str) -> None:
    assert message in result(1.0, random=random).attrs["verdict"]


def test_intervals_are_over_entities_and_not_over_rows() -> None:
    rng = np.random.default_rng(1)
    own = rng.normal(size=20)
    rows = np.repeat(own, 10)
    outcome = xr.DataArray(
        rows[None, None, None, None], dims=("stage", "layer", "direction", "dose", "entity"),
        coords={"stage": ["s"], "layer": [0], "direction": ["a"], "dose": [1.0]},
    )  # fmt: skip
    clean = xr.DataArray(np.zeros((1, 200)), dims=("stage", "entity"))
    widths = {}
    for name, units in {"entity": np.repeat(np.arange(20), 10), "row": np.arange(200)}.items():
        r = summarise_effects(outcome, clean, np.zeros((1, 1, 0, 1, 200)), units=units, attrs=ATTRS)
        widths[name] = float((r.effect_high - r.effect_low).squeeze())
    assert widths["entity"] == pytest.approx(2 * 1.96 * own.std() / np.sqrt(20), rel=0.15)
    assert widths["entity"] > 2.5 * widths["row"]


def test_false_verdicts_are_rare_where_the_direction_is_one_of_the_random_ones() -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(80):
        strengths = rng.normal(size=(4, 21))  # of 20 random directions and the tested one, at 4 layers
        effects = strengths[None, :, :, None, None] + np.zeros((1, 4, 21, 1, 5))
        outcome = xr.DataArray(
            effects[:, :, :1], dims=("stage", "layer", "direction", "dose", "entity"),
            coords={"stage": ["s"], "layer": range(4), "direction": ["a"], "dose": [1.0]},
        )  # fmt: skip
        clean = xr.DataArray(np.zeros((1, 5)), dims=("stage", "entity"))
        r = summarise_effects(outcome, clean, effects[:, :, 1:], units=np.arange(5), attrs=ATTRS)
        wrong += "depends on this direction" in r.attrs["verdict"]
    assert wrong <= 9  # 4 expected: 80 / 21
