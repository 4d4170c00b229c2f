"""Figures of results: each function returns a HoloViews object with sliders for stage, layer and token.

No function calls show(). `save` writes a figure to PDF, SVG or PNG (Matplotlib), or to a standalone HTML page whose
sliders work without Python.

centroids          centroids of held-out entities and single rows in a plane of group means
centroid_map       centroids of groups without an order, in their principal components
interventions      effect of interventions by dose, and by layer and direction
group_recall       share of each group's rows that a probe of all groups recognises
probes             probe scores by layer; a probe next to its controls
matrices           heat maps of pairs, cosines and scalars
stages             change over training: directions, centroids, unseen groups
forgetting         a statistic by the number of stages since training
distributions      recorded statistics by group; training loss
spec               descriptions of figures that need no drawing
drawn_parts        parts of a result that a figure draws where it has too many groups
wording            words about groups with and without an order
colors             colours of stages, groups, scores and pages
palettes           colours of groups without an order
label_placement    positions of point labels
render_holoviews   spec to HoloViews
notebook_image     static image with a live figure in a notebook
matplotlib_backend HoloViews' Matplotlib backend
render_bokeh       spec to Bokeh, with the data of all slider values
html_page          figures as a standalone page
save               figures as files
"""

from __future__ import annotations

from stratalens.analyses.plots.centroid_map import centroid_map
from stratalens.analyses.plots.centroids import centroid_path, entity_scatter
from stratalens.analyses.plots.colors import stage_colors
from stratalens.analyses.plots.distributions import loss_curves, statistic_distributions
from stratalens.analyses.plots.forgetting import forgetting
from stratalens.analyses.plots.group_recall import group_recall
from stratalens.analyses.plots.interventions import dose_response, intervention_map
from stratalens.analyses.plots.matrices import cosine_matrix, layer_token_map, pair_matrix, stage_layer_map
from stratalens.analyses.plots.probes import control_comparison, layer_sweep
from stratalens.analyses.plots.save import save
from stratalens.analyses.plots.stages import direction_drift, probe_generalisation, stage_drift
from stratalens.analyses.stats.quantiles import statistic_quantiles

__all__ = [
    "centroid_map",
    "centroid_path",
    "control_comparison",
    "cosine_matrix",
    "direction_drift",
    "dose_response",
    "entity_scatter",
    "forgetting",
    "group_recall",
    "intervention_map",
    "layer_sweep",
    "layer_token_map",
    "loss_curves",
    "pair_matrix",
    "probe_generalisation",
    "save",
    "stage_colors",
    "stage_drift",
    "stage_layer_map",
    "statistic_distributions",
    "statistic_quantiles",
]
