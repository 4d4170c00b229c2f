"""stratalens: activations of every layer and every training checkpoint, in one labelled store.

The public names are loaded on first use, so that `import stratalens` (and
`import stratalens.store`) costs milliseconds and never imports torch.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
