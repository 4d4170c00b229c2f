"""Every fault of the page is found by the checks that the page names, or by none if the page says so."""

import pytest

from stratalens.plugin.check.check import check
from support import models
from support.paths import ROOT
from support.planted_faults import FAULTS, Fault, table


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.text for fault in FAULTS])
def test_the_checks_that_find_a_fault(fault: Fault) -> None:
    model, forward = fault.plant()
    report = check(model, models.table(4), forward=forward)
    failures = {finding.check for finding in report.failures}
    assert set(fault.found_by) <= failures, str(report)
    assert bool(failures) == bool(fault.found_by), str(report)


def test_the_page_has_this_table() -> None:
    assert table() in (ROOT / "docs" / "explain" / "check.md").read_text()
