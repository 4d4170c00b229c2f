"""Examples of the reference for functions whose docstring has none; tests/docs/test_reference.py runs all of them.

A function is called like the public name that it shows, and its body is the example. `ds` and `table` are the store and
the prompts that example.py makes, which are also the files of the working folder.
"""

from __future__ import annotations

from typing import Any

import xarray as xr

import stratalens as sl


def Checkpoint() -> Any:  # noqa: N802 - the name of the class
    return {"base": sl.Checkpoint("checkpoints/base"), "week1": sl.Checkpoint("checkpoints/week1", dtype="bfloat16")}


def Revision() -> Any:  # noqa: N802
    # Needs the hub when it is loaded.
    return {f"step{n}": sl.Revision("EleutherAI/pythia-14m", f"step{n}") for n in (0, 1000, 143000)}


def LoraAdapter() -> Any:  # noqa: N802
    return {"base": "checkpoints/base", "epoch1": sl.LoraAdapter("adapters/epoch1", base="checkpoints/base")}


def capture(table: sl.PromptTable) -> Any:
    stages = {"base": "checkpoints/base", "week1": "checkpoints/week1"}  # in training order
    return sl.capture(stages, table, "new.zarr", positions=("entity_last", "last"), progress=False)


def create_store(table: sl.PromptTable) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers("checkpoints/base")
    store = sl.create_store("loop.zarr", table, model, positions=("last",), tokenizer=model.tokenizer)
    return sl.Recorder(model, store, stage="base")  # records your own loop over batches


def verify_store() -> Any:
    return sl.verify_store("run.zarr").ok


def to_activation_cache(ds: xr.Dataset) -> Any:
    cache = sl.to_activation_cache(ds, stage="week2", entity=ds.entity.values[0])
    return cache["resid_post", 1].shape  # (batch, positions, d_model)


def torch_dataset(ds: xr.Dataset) -> Any:
    samples = sl.torch_dataset(ds, layer=1, stage="week2", token="last")
    pairs = sl.torch_dataset(ds, layer=1, stage=["week1", "week2"], aligned=True)  # for a crosscoder
    return samples[0].shape, pairs[0].shape, pairs.normalization().scale.values


def ablate(ds: xr.Dataset) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers("checkpoints/week2")
    means = sl.centroids(ds, by="trained_stage", progress=False).sel(stage="week2", layer=1, token="last")
    axis = sl.directions(means, pairs=[("week1", "week2")])
    with sl.ablate(model, axis, positions="last"):
        return model(model.tokenizer("Who is n3 ?", return_tensors="pt").input_ids).shape


def patch(ds: xr.Dataset) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers("checkpoints/week2")
    with sl.patch(model, ds.sel(layer=[1]), stage="week2", rows=0, positions="last"):  # the activations of row 0
        return model(model.tokenizer("Who is n3 ?", return_tensors="pt").input_ids).shape


def intervene(ds: xr.Dataset, table: sl.PromptTable) -> Any:
    half = ds.isel(entity=[int(name[1:]) % 4 < 2 for name in ds.entity_id.values])  # the other entities are scored
    means = sl.centroids(half, by="trained_stage", progress=False).sel(stage="week2", layer=1, token="last")
    axis = sl.directions(means, pairs=[("week1", "week2")], entities=half.entity_id.values)
    effects = sl.intervene({"week2": "checkpoints/week2"}, table, axis, positions="last", progress=False)
    return effects.attrs["verdict"]


def drift(ds: xr.Dataset) -> Any:
    means = sl.centroids(ds, by="trained_stage", progress=False)
    return sl.drift(means, reference="first").distance


def procrustes(ds: xr.Dataset) -> Any:
    return sl.procrustes(ds, reference="base", progress=False)


def shuffled_probes(ds: xr.Dataset) -> Any:
    null = sl.shuffled_probes(ds, draws=3, progress=False)
    return sl.cosines(sl.probe(ds, progress=False), over="stage", null=null)


def matched_probe(ds: xr.Dataset) -> Any:
    matched = sl.matched_probe(ds.sel(stage=["week2"]), statistics=("loss",), bins=3, small="nan", progress=False)
    return matched.accuracy_mean.sel(scored="matched")


def baseline_probe(ds: xr.Dataset) -> Any:
    return sl.baseline_probe(ds, baseline="shuffled_label", progress=False).accuracy_mean


def controls(ds: xr.Dataset) -> Any:
    last = ds.sel(stage=["week2"], layer=[2])
    which = ("probe", "statistics", "residual_linear", "shuffled_label")
    return sl.controls(last, statistics=("loss",), which=which, progress=False)  # for sl.control_table


def control_table(ds: xr.Dataset) -> Any:
    last = ds.sel(stage=["week2"], layer=[2])
    alone = sl.statistics_probe(last, statistics=("loss",), progress=False)
    return sl.control_table({"probe": sl.probe(last, progress=False), "loss alone": alone})


def report(ds: xr.Dataset) -> Any:
    from stratalens.store import info

    results = {"probes": sl.probe(ds, progress=False), "centroids": sl.centroids(ds, progress=False)}
    return sl.report(results, "report.html", store_info=info("run.zarr"), title="Which week?")


def explore(ds: xr.Dataset) -> Any:
    server = sl.explore(ds, port=0, block=False, tell=print)  # block=True serves until Ctrl-C
    server.stop()


def clear_results() -> Any:
    return sl.clear_results("run.zarr")


def statistic_quantiles(ds: xr.Dataset) -> Any:
    return sl.plots.statistic_quantiles(ds, by="trained_stage", statistics=("resid_post_l2", "loss"))
