"""Private interfaces of PyTorch, Transformers and TransformerLens that have no public counterpart."""

from __future__ import annotations
