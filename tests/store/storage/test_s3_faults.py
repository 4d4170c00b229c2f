"""A writer on an S3 server that loses answers, and one that is paused beyond its lease: no wrong value, no lost one.

`python -m support.s3_faults` runs more kinds of faults, and each as often as you like.
"""

from __future__ import annotations

import pytest

from support.s3_faults import running
from support.thorough import THOROUGH

KINDS = ("lost", "paused") if THOROUGH else ("lost",)  # a pause lasts as long as a lease

pytest.importorskip("s3fs")
pytest.importorskip("moto")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_s3_server_that_fails_costs_no_value() -> None:
    with running(seed=3) as runs:
        assert [runs.run(kind, 0) for kind in KINDS] == [""] * len(KINDS)
