"""Out-of-core analyses over all layers and stages of a store, or of any DataArray with the same dims (no torch).

The public functions are names of `stratalens`.

    accessor    ds.strata and its HTML
    suite       the standard analyses of one label column
    explorer    the live page on a store
    report      a standalone HTML report
    controls    probes against norms, losses and confidence
    probes      linear probes
    plots       figures of results
    centroids   centroids, the plane of training order, PCA
    directions  angles between directions and subspaces
    estimators  ridge, LDA, logistic regression: many fits at a time
    stats       bootstrap, moments, scores, intervals
    sweep       one function applied to every stage and layer
    data        labels, splits, targets, slabs
    results     results as zarr groups"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
