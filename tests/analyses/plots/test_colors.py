"""Colours of stages and of text on coloured cells."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from stratalens.analyses.plots.centroids import centroid_path_spec
from stratalens.analyses.plots.colors import UNTRAINED, colors_at, heat_palette, ramp, stage_colors, text_color_on
from stratalens.analyses.plots.palettes import QUALITATIVE, QUALITATIVE_DARK
from stratalens.analyses.plots.probes import layer_sweep_spec
from stratalens.analyses.plots.stages import stage_drift_spec
from support import results as planted

STAGES = ("base", "s1", "s2", "s3")


@pytest.fixture(scope="module")
def probes() -> xr.Dataset:
    return planted.probes(STAGES, 3)


@pytest.fixture(scope="module")
def projection() -> xr.Dataset:
    return planted.projection(STAGES, 3)


def test_a_stage_has_one_colour_in_every_figure(probes: xr.Dataset, projection: xr.Dataset) -> None:
    path = dict(centroid_path_spec(projection).legend)
    drift = dict(stage_drift_spec(planted.centroids(STAGES, 2)).legend)
    some = dict(centroid_path_spec(projection.isel(group=[0, 2])).legend)
    assert path == drift
    assert some == {k: path[k] for k in ("s1", "s3")}
    sweep = layer_sweep_spec(probes).legend
    assert sweep["s1 v s3"] == path["s3"]


def luminance(color: str) -> float:
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


@given(st.integers(2, 12))
def test_ramps_get_lighter_and_stand_out_from_their_page(n: int) -> None:
    light, dark = ramp(n), ramp(n, dark=True)
    for colors in (light, dark):
        values = [luminance(c) for c in colors]
        assert values == sorted(values)
        assert len(set(colors)) == n
    assert 1.05 / (max(map(luminance, light)) + 0.05) > 2.5
    assert (min(map(luminance, dark)) + 0.05) / (luminance("#1a1d23") + 0.05) > 2.0
    assert stage_colors(["a"], [str(i) for i in range(n)], ["a"]) == {"a": "#6f6f6f"}


# Machado, Oliveira and Fernandes (2009), "A physiologically-based model for simulation of color vision deficiency".
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
    ),
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
)


def lab(color: str, vision: str) -> np.ndarray:
    """Return CIE 1976 Lab of a colour as a reader with this vision sees it."""
    c = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(VISION[vision] @ linear, 0, 1) / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def nearest(colors: list[str], vision: str) -> float:
    seen = [lab(c, vision) for c in colors]
    return min(float(np.linalg.norm(a - b)) for i, a in enumerate(seen) for b in seen[:i])


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("dark", "least"), [(False, 17), (True, 13)])
def test_six_stages_are_distinct_for_colour_blind_readers(vision: str, dark: bool, least: float) -> None:
    assert nearest(ramp(6, dark=dark), vision) > least
    if not dark:
        assert nearest([*ramp(6), UNTRAINED], vision) > 12


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("palette", [QUALITATIVE, QUALITATIVE_DARK])
def test_five_groups_without_an_order_are_distinct_for_colour_blind_readers(palette: tuple, vision: str) -> None:
    assert nearest(list(palette[:5]), vision) > 15


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_heat_maps_are_read_by_colour_blind_readers(vision: str, theme: str) -> None:
    """The two sides of the null differ from it and from each other; lightness tells the distance from it."""
    palette = heat_palette(True, theme)
    assert nearest([palette[0], palette[63], palette[127], palette[191], palette[-1]], vision) > 20
    low, high = (float(np.linalg.norm(lab(palette[i], vision) - lab(palette[127], vision))) for i in (0, -1))
    assert 0.5 < low / high < 2
    for side in (palette[127:], palette[127::-1]):
        steps = [abs(float(lab(c, vision)[0] - lab(side[0], vision)[0])) for c in side[::16]]
        assert np.diff(steps).min() > 0
    sequence = [float(lab(c, vision)[0]) for c in heat_palette(False, theme)[::32]]
    assert abs(np.diff(sequence)).min() > 3


def test_stages_have_the_contrast_of_graphics() -> None:
    """WCAG 2.1, success criterion 1.4.11: 3 : 1."""
    assert 1.05 / (max(map(luminance, ramp(12))) + 0.05) >= 3


@given(st.floats(0, 1))
def test_text_is_readable_on_every_cell(value: float) -> None:
    (color,) = colors_at(np.array([value]), 0.0, 1.0)
    a, b = luminance(color), luminance(text_color_on(color))
    assert (max(a, b) + 0.05) / (min(a, b) + 0.05) >= 4.5
