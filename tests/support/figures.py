"""One small example of every figure, for tests that draw or save all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stratalens.analyses import plots
from support import results as planted
from support import unordered

STAGES = ("base", "s1", "s2", "s3")
TOKEN = ("last",)


def few_probes(**narrow: Any) -> Any:
    return planted.probes(STAGES, 2, TOKEN).isel(stage=[0, 3]).sel(narrow)


FIGURES: dict[str, Callable[[], Any]] = {
    "centroid_path": lambda: plots.centroid_path(planted.projection(STAGES, 1, TOKEN)),
    "centroid_map": lambda: plots.centroid_map(unordered.without_order(planted.centroids(STAGES, 1, TOKEN))),
    "group_recall": lambda: plots.group_recall(unordered.multiclass_result()),
    "layer_sweep": lambda: plots.layer_sweep(few_probes()),
    "pair_matrix": lambda: plots.pair_matrix(few_probes()),
    "cosine_matrix": lambda: plots.cosine_matrix(planted.cosines(few_probes())),
    "control_comparison": lambda: plots.control_comparison({"a": few_probes(), "b": planted.matched(few_probes())}),
    "statistic_distributions": lambda: plots.statistic_distributions(planted.recorded_store(STAGES, 1, TOKEN)),
    "stage_drift": lambda: plots.stage_drift(planted.centroids(STAGES, 2, TOKEN)),
    "probe_generalisation": lambda: plots.probe_generalisation(planted.generalise(few_probes(stage=["s3"], layer=[1]))),
    "stage_layer_map": lambda: plots.stage_layer_map(planted.projection(STAGES, 2)["r2"], "r2", null=0.2),
    "layer_token_map": lambda: plots.layer_token_map(planted.projection(STAGES, 2)["r2"], "r2"),
    "direction_drift": lambda: plots.direction_drift(planted.probes(STAGES, 2, TOKEN)),
    "forgetting": lambda: plots.forgetting(planted.recorded_store(STAGES, 1, TOKEN)),
    "dose_response": lambda: plots.dose_response(planted.effects(layers=2)),
    "intervention_map": lambda: plots.intervention_map(planted.effects()),
    "loss_curves": lambda: plots.loss_curves(planted.losses(STAGES, 4)),
    "entity_scatter": lambda: plots.entity_scatter(planted.recorded_store(STAGES, 1, TOKEN)),
    "message": lambda: plots.stage_drift(planted.centroids(("model",), 1)),
}
