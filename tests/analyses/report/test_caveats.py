"""The control by time."""

from __future__ import annotations

from stratalens.analyses.report.sections import build_sections
from support.results import planted_results


def test_control_by_time_uses_only_pairs_not_seen_yet() -> None:
    results = planted_results(("base", "s1", "s2", "s3"), 3)
    probes = results["probes"]
    at_base = probes["accuracy"].isel(stage=0).mean("fold")
    # s2 v s3 is also unseen at stage s1
    unseen = probes["accuracy"].sel(stage="s1", pair="s2 v s3").mean("fold")
    section = next(s for s in build_sections(results) if s.key == "controls")
    (said,) = section.points
    per_pair = [*at_base.mean(["layer", "token"]).values.tolist(), float(unseen.mean())]
    planted = [float(f"{v:.2f}") for v in (min(per_pair), max(per_pair))]
    assert f"{planted[0]:.2f} to {planted[1]:.2f}" in said
