"""Colours of groups without an order: neighbours in the list differ most.

The first eight follow Okabe and Ito (2008, Color Universal Design), darkened so that all have a contrast of 3 : 1 with
the page. The first five are those that differ most for colour-blind readers. Each further colour is the one farthest
from all before it (distance in Oklab, as seen with and without protanopia and deuteranopia), among those with enough
contrast.
"""

from __future__ import annotations

from collections.abc import Sequence

# fmt: off
QUALITATIVE: tuple[str, ...] = (
    "#0072b2", "#d55e00", "#009371", "#3f9bd6", "#c01f2e", "#b8509a", "#5a3fa0", "#7a5c00", "#6e0237", "#8a63fe",
    "#243c59", "#fe4986", "#2a00a9", "#7b566e", "#a084a6", "#891579", "#3f56e8", "#553d1a", "#126b47", "#87984f",
    "#e555cd", "#520283", "#8927be", "#967657", "#349516", "#285388", "#623d52", "#b341cc", "#6a7298", "#b376f0",
    "#cc5e6b", "#8a4fa3", "#902731", "#3e5305", "#679c8d", "#1c7ce5", "#5211b5", "#61803e", "#6668c4", "#924d35",
    "#3a6b7d", "#f94144", "#b82d67", "#693ad4", "#114d46", "#cc75ba", "#651e6a", "#e1755a", "#642211", "#a75a61",
    "#8781e0", "#a70593", "#27388b", "#0d53bd", "#498079", "#8f6caa", "#d42a8f", "#93315f", "#cc7e90", "#533c78",
)

QUALITATIVE_DARK: tuple[str, ...] = (
    "#56b4e9", "#ff9248", "#35c9a1", "#9fd4f7", "#ff7b7b", "#e58fcd", "#b3a0ff", "#d9b44a", "#97fa52", "#8e8133",
    "#b952e2", "#727fa5", "#fde0b9", "#e6388f", "#4cf9e7", "#f03f02", "#be7164", "#a6d99a", "#eab9c6", "#5a8afe",
    "#ab8fb2", "#7aa68e", "#c78f0c", "#c5d526", "#e858cf", "#1b9388", "#e2f07d", "#997ede", "#0ae46c", "#f7d8fe",
    "#d3ad90", "#c16fba", "#7cb759", "#fa4165", "#319751", "#62fda5", "#66d3d3", "#539ac9", "#b7e8d1", "#9662fd",
    "#f66ca9", "#e6d184", "#9eabd3", "#46b6bc", "#ee9ba7", "#fbb789", "#e1a2fd", "#50cc2d", "#afa479", "#829dfb",
    "#f4bbf6", "#adbf75", "#b1a828", "#d5698e", "#6d8967", "#cc8861", "#1f86cd", "#f56846", "#5de5b1", "#cd7cf0",
)
# fmt: on


def qualitative_colors(names: Sequence[str]) -> dict[str, str]:
    """Map each name to a colour of the light page; after 60 names the colours repeat.

    Example:
        >>> qualitative_colors(["forest", "desert"])
        {'forest': '#0072b2', 'desert': '#d55e00'}
    """
    return {name: QUALITATIVE[i % len(QUALITATIVE)] for i, name in enumerate(dict.fromkeys(names))}
