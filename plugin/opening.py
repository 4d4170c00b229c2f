"""Opening a store for analysis: `stratalens.store.open_store`, with the `ds.strata` accessor registered.

The store knows nothing of the analyses, so the accessor is bound here, where both may be imported.
"""

import stratalens.analyses.accessor  # noqa: F401  # registers ds.strata
from stratalens.store.reader import open_store

__all__ = ["open_store"]
