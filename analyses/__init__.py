"""Out-of-core analyses over all layers and stages of a store, or of any DataArray with the same dims (no torch).

The public names are loaded on first use; `ds.strata` exists once any of them (or `open_store`) was used.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
