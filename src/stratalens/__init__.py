"""stratalens: activations of every layer and every training checkpoint, in one labelled store.

The public names are loaded on first use, so that `import stratalens` costs milliseconds and imports no torch.
The import path is the folder path: `stratalens.X.y` is the file `X/y.py`.

    plugin     everything that touches a model or a terminal
    analyses   analyses and plots of a store
    store      the activation store
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
