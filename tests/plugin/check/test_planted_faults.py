"""Every fault of the page is found by the checks that the page names, or by none if the page says so."""

from pathlib import Path

import pytest

from stratalens.plugin.capture.run import capture
from stratalens.plugin.check.check import check
from stratalens.store.errors import InputError
from support import models
from support.paths import ROOT
from support.planted_faults import FAULTS, Fault, other_computation, table


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.text for fault in FAULTS])
def test_the_checks_that_find_a_fault(fault: Fault) -> None:
    model, forward = fault.plant()
    report = check(model, models.table(4), forward=forward)
    failures = {finding.check for finding in report.failures}
    assert set(fault.found_by) <= failures, str(report)
    assert bool(failures) == bool(fault.found_by), str(report)


def test_capture_refuses_what_transformers_computes_in_another_way(tmp_path: Path) -> None:
    model, _ = other_computation()
    with pytest.raises(InputError, match="check 'same as transformers'"):
        capture(model, models.table(4), tmp_path / "run.zarr", sites=("resid_pre",), statistics=False)
    assert not (tmp_path / "run.zarr").exists()


def test_the_page_has_this_table() -> None:
    assert table() in (ROOT / "docs" / "explain" / "check.md").read_text()
