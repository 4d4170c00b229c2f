# ruff: noqa: TID252 - lazy_loader reads relative imports
from . import plots as plots
from .alignment import principal_angles as principal_angles
from .alignment import procrustes as procrustes
from .centroids import centroids as centroids
from .centroids import project as project
from .controls import matched_probe as matched_probe
from .controls import residual_probe as residual_probe
from .controls import statistics_probe as statistics_probe
from .directions import agreement as agreement
from .directions import cosines as cosines
from .directions import drift as drift
from .engine.cache import clear_results as clear_results
from .generalisation import generalise as generalise
from .probes import probe as probe
from .significance import fdr as fdr
from .sweep import sweep as sweep
