"""Draw the gallery of the documentation: every plot of a small synthetic data set, with its code.

The documentation's build calls `write(folder)`, which draws the figures and writes `index.md`. The data are synthetic:
the trained stages in order along one direction whose strength grows with depth and with training.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

import stratalens as sl
from stratalens.analyses.directions.effects import summarise_effects

DRAWN: list[tuple[str, Callable[..., Any]]] = []


def drawn(title: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a function that returns a figure to the gallery."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        DRAWN.append((title, function))
        return function

    return add


def planted(entities: int = 120, width: int = 24, seed: int = 0) -> xr.Dataset:
    """Return a synthetic Dataset in memory with the layout of `sl.open_store`."""
    rng = np.random.default_rng(seed)
    stages, layers, tokens = ["untrained", "s1", "s2", "s3", "s4"], 4, ["entity_last", "last"]
    trained = np.arange(entities) % 4 + 1
    x = rng.standard_normal((len(stages), layers, entities, len(tokens), width)).astype("float32")
    bend = np.array([0.0, 0.0, 0.8, 0.7, 0.0])
    for stage in range(1, len(stages)):
        seen = np.where(trained <= stage, trained, 0)
        for layer in range(layers):
            strength = 0.35 * layer * np.array([0.5, 1.0])
            x[stage, layer, :, :, 0] += seen[:, None] * strength
            x[stage, layer, :, :, 1] += bend[seen][:, None] * strength
    habitats = np.array(["forest", "desert", "lake", "mountain"], object)
    habitat = np.arange(entities) // 4 % 4
    for layer in range(layers):
        for group in range(4):
            x[:, layer, habitat == group, :, 2 + group] += 0.4 * layer
    dims = ("stage", "layer", "entity", "token")
    loss = rng.gamma(6, 0.3, (len(stages), entities, len(tokens)))
    loss -= 0.35 * (trained[None, :, None] == np.arange(len(stages))[:, None, None])
    orders = np.arange(len(stages))
    return xr.Dataset(
        {
            "resid_post": ((*dims, "d_model"), x, {"kind": "site"}),
            "resid_post_l2": (dims, np.linalg.norm(x, axis=-1)),
            "loss": (("stage", "entity", "token"), loss, {"units": "nats"}),
            "recorded": (("stage", "entity"), np.ones((len(stages), entities), bool)),
            "exposure": (("stage", "entity"), orders[:, None] - trained[None, :]),
        },
        coords={
            "stage": np.array(stages, object),
            "stage_order": ("stage", orders),
            "layer": np.arange(layers),
            "token": np.array(tokens, object),
            "entity": np.array([f"r{i:06d}" for i in range(entities)], object),
            "entity_id": ("entity", np.array([f"e{i}" for i in range(entities)], object)),
            "trained_stage": ("entity", np.array([f"s{t}" for t in trained], object)),
            "habitat": ("entity", habitats[habitat]),
        },
    )


def effects(ds: xr.Dataset) -> xr.Dataset:
    """Return synthetic effects with the layout of `sl.intervene`: one direction acts, more in deeper layers."""
    rng = np.random.default_rng(0)
    doses, layers, rows, random = np.array([-4.0, -2.0, 0.0, 2.0, 4.0]), 6, 60, 20
    acts = np.array([0.12, 0.0])[None, None, :, None, None] * np.arange(layers)[None, :, None, None, None]
    moved = acts * doses[:, None] + 0.02 * abs(doses)[:, None] * rng.standard_normal((1, layers, 2, 1, 1))
    clean = rng.gamma(4, 0.5, (1, rows))
    noise = 0.3 * rng.standard_normal((1, layers, 2, len(doses), rows)) * (doses != 0)[:, None]
    null = 0.05 * doses[:, None] * rng.standard_normal((1, layers, random, 1, 1)) + 0 * noise[:, :, :1]
    outcome = xr.DataArray(
        clean[:, None, None, None] + moved + noise,
        dims=("stage", "layer", "direction", "dose", "entity"),
        coords={"stage": ["s4"], "layer": range(layers), "direction": ["s1 v s4", "habitat"], "dose": doses},
    )
    attrs = {"kind": "steer", "outcome": "answer_loss", "unit": "nats per token", "site": "resid_post"}
    attrs |= {"positions": "last", "null_kind": "of the same length"}
    before = xr.DataArray(clean, dims=("stage", "entity"))
    own = clean[:, None, None, None] + null
    return summarise_effects(outcome, before, own, units=np.arange(rows), attrs=attrs)


@drawn("Centroids of held-out entities")
def centroid_path(ds: xr.Dataset) -> Any:
    plane = sl.project(ds, by="trained_stage", permutations=100, progress=False)
    return sl.plots.centroid_path(plane)


@drawn("Groups without an order")
def centroid_map(ds: xr.Dataset) -> Any:
    return sl.plots.centroid_map(sl.centroids(ds, by="habitat", progress=False))


@drawn("Groups that one probe of all of them recognises")
def group_recall(ds: xr.Dataset) -> Any:
    return sl.plots.group_recall(sl.probe(ds, target="habitat", pairs="multiclass", progress=False))


@drawn("Single rows in the same plane")
def entity_scatter(ds: xr.Dataset) -> Any:
    return sl.plots.entity_scatter(ds, by="trained_stage", stage="s4", layer=3, token="last")


@drawn("Probe accuracy by layer")
def layer_sweep(ds: xr.Dataset) -> Any:
    return sl.plots.layer_sweep(sl.probe(ds, target="trained_stage", progress=False))


@drawn("Probe accuracy of each pair")
def pair_matrix(ds: xr.Dataset) -> Any:
    return sl.plots.pair_matrix(sl.probe(ds.sel(stage=["s4"]), target="trained_stage", progress=False))


@drawn("Any number by stage and layer")
def stage_layer_map(ds: xr.Dataset) -> Any:
    probes = sl.probe(ds, pairs=[("s1", "s4")], progress=False)
    return sl.plots.stage_layer_map(probes.accuracy_mean, "accuracy of s1 v s4", null=0.5)


@drawn("Any number by layer and token")
def layer_token_map(ds: xr.Dataset) -> Any:
    probes = sl.probe(ds.sel(stage=["s4"]), pairs=[("s1", "s4")], progress=False)
    return sl.plots.layer_token_map(probes.accuracy_mean, "accuracy of s1 v s4", null=0.5)


@drawn("The probe and its controls")
def control_comparison(ds: xr.Dataset) -> Any:
    last, ends, names = ds.sel(stage=["s4"]), [("s1", "s4")], ("resid_post_l2", "loss")
    return sl.plots.control_comparison(
        {
            "activations": sl.probe(last, pairs=ends, progress=False),
            "norm and loss alone": sl.statistics_probe(
                last, target="trained_stage", statistics=names, pairs=ends, progress=False
            ),
            "with them regressed out": sl.residual_probe(
                last, target="trained_stage", statistics=names, pairs=ends, progress=False
            ),
        }
    )


@drawn("Cosines between probe directions")
def cosine_matrix(ds: xr.Dataset) -> Any:
    probes = sl.probe(ds.sel(stage=["s4"]), target="trained_stage", progress=False)
    return sl.plots.cosine_matrix(sl.cosines(probes, over="pair"))


@drawn("How a probe's direction turns from stage to stage")
def direction_drift(ds: xr.Dataset) -> Any:
    return sl.plots.direction_drift(sl.probe(ds, target="trained_stage", progress=False))


@drawn("Every group along one pair's probe")
def probe_generalisation(ds: xr.Dataset) -> Any:
    last = ds.sel(stage=["s4"])
    return sl.plots.probe_generalisation(sl.generalise(sl.probe(last, pairs=[("s1", "s4")], progress=False), last))


@drawn("How far each group's centroid moves")
def stage_drift(ds: xr.Dataset) -> Any:
    return sl.plots.stage_drift(sl.centroids(ds, by="trained_stage", progress=False))


@drawn("Forgetting against recency")
def forgetting(ds: xr.Dataset) -> Any:
    return sl.plots.forgetting(ds, by="trained_stage", statistic="loss")


@drawn("Effect of an intervention by dose")
def dose_response(ds: xr.Dataset) -> Any:
    return sl.plots.dose_response(effects(ds))


@drawn("Effect of an intervention by layer")
def intervention_map(ds: xr.Dataset) -> Any:
    return sl.plots.intervention_map(effects(ds))


@drawn("Norms, losses and confidence by group")
def statistic_distributions(ds: xr.Dataset) -> Any:
    return sl.plots.statistic_distributions(ds, by="trained_stage")


@drawn("Training losses")
def loss_curves(ds: xr.Dataset) -> Any:
    steps = np.arange(40)
    losses = pd.DataFrame(
        {
            "stage": np.repeat(["s1", "s2", "s3", "s4"], 40),
            "step": np.arange(160),
            "loss": np.tile(2.5 * np.exp(-steps / 12) + 0.5, 4),
        }
    )
    return sl.plots.loss_curves(losses)


LIVE = ("layer_sweep", "centroid_map")  # figures that the page shows with their sliders


def live_frame(figure: Any, name: str, title: str, live: Path) -> str:
    """Save a figure as a page with sliders and return the frame that shows it in the gallery."""
    live.mkdir(parents=True, exist_ok=True)
    sl.plots.save(figure, live / f"{name}.html")
    return (
        f'```{{raw}} html\n<iframe class="live" loading="lazy" title="{title}, with sliders" '
        f'src="../../live/{name}.html"></iframe>\n```'
    )


def write(folder: Path, live: Path) -> Path:
    """Draw every figure as SVG, some of them with sliders into `live`, and write the page with figures and code."""
    folder.mkdir(parents=True, exist_ok=True)
    ds = planted()
    sections, thumbs = [], []
    for title, function in DRAWN:
        name = function.__name__
        figure = function(ds)
        sl.plots.save(figure, folder / f"{name}.svg")
        body = inspect.getsource(function).split("-> Any:\n", 1)[1]
        code = inspect.cleandoc("\n" + body).replace("return ", "figure = ", 1)
        alt = f"{title}: {figure.stratalens_spec.heading(figure.stratalens_spec.default_values())}"
        target = f"gallery-{name.replace('_', '-')}"
        thumbs.append(f":::{{container}} thumb\n\n[![{title}]({name}.svg)](#{target})\n\n[{title}](#{target})\n:::\n")
        image = live_frame(figure, name, title, live) if name in LIVE else f"![{alt}]({name}.svg)"
        sections.append(f"({target})=\n\n## {title}\n\n```{{code-block}} python\n{code}\n```\n\n{image}\n")
    start = (
        "# Gallery\n\nEvery plot of a small synthetic data set, with its code. `ds` is the Dataset that "
        "`sl.open_store` returns.\nThe numbers have no meaning.\n"
    )
    grid = "::::{container} thumbs\n\n" + "\n".join(thumbs) + "::::\n"
    page = folder / "index.md"
    page.write_text("\n".join([start, grid, *sections]), encoding="utf-8")
    return page
