"""A hub on this machine for the page about revisions, so that its code runs without a network.

It serves the checkpoints of the example as revisions of EleutherAI/pythia-70m. `step1` has the weights of `step0`, as
on the real hub.
"""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

MODEL = "EleutherAI/pythia-70m"
REVISIONS = {"step0": "base", "step1": "base", "step1000": "week1", "step143000": "week2"}

_open = ExitStack()


def start(checkpoints: str = "checkpoints") -> None:
    """Serve the checkpoints at the address that huggingface_hub uses in this process."""
    from huggingface_hub import constants

    tests = str(Path(__file__).resolve().parents[1] / "tests")
    sys.path.insert(0, tests)
    from support.hub import endpoint_constants, hub

    folders = {revision: Path(checkpoints).resolve() / name for revision, name in REVISIONS.items()}
    address, _ = _open.enter_context(hub({MODEL: folders}))
    for name, value in {**endpoint_constants(address), "HF_HUB_OFFLINE": False}.items():
        _open.callback(setattr, constants, name, getattr(constants, name))
        setattr(constants, name, value)
    _open.callback(sys.path.remove, tests)


def stop() -> None:
    """End the server, and give huggingface_hub its address back."""
    _open.close()
