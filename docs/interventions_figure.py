"""Draw the dose-response of a study's interventions: python docs/interventions_figure.py RUN TARGET.png OUTCOME.

The run folder has a complete `interventions` folder. The outcome is self-report, ablation, "self-report of shuffled
groups" or contradictions; layer, token and the names of directions may follow.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import stratalens as sl
from stratalens.plugin.study.findings.analyses import Findings
from stratalens.plugin.study.findings.interventions import add_intervention_results
from stratalens.plugin.study.recording.interventions import read_interventions


def main(
    run: Path,
    target: Path,
    outcome: str,
    layer: int | None = None,
    token: str = "last",
    directions: Sequence[str] = (),
) -> None:
    """Draw the figure at one place; by default after the last layer, and all directions."""
    findings = Findings()
    add_intervention_results(findings, read_interventions(run), seed=0)
    effects = findings.report["interventions"][outcome]
    chosen = effects.layer.values[-1] if layer is None else layer
    effects = effects.sel(layer=[chosen], token=[token], direction=list(directions) or effects.direction.values)
    effects.attrs["outcome"] = outcome  # short enough for the title
    sl.plots.save(sl.plots.dose_response(effects), target, dpi=110)


if __name__ == "__main__":
    place = (int(sys.argv[4]), sys.argv[5]) if len(sys.argv) > 5 else ()
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *place, directions=sys.argv[6:])
