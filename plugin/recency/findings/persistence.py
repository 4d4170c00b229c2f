"""What is left after training goes on: first against last, and where a stage lies that was taught once more."""

from __future__ import annotations

from stratalens.recency.findings.asking import Findings
from stratalens.recency.findings.headline import Row, rows_of
from stratalens.recency.parts import AfterSettings
from stratalens.recency.settings import StudySettings


def add_after(found: Findings, settings: StudySettings) -> None:
    """Rows for every checkpoint of the courses after the stages, beside the last stage's; nothing without such."""
    probes = found.report["probes"]
    first, last = settings.stage_names[0], settings.stage_names[-1]
    recorded = [str(name) for name in probes.stage.values]
    layer, token = probes.layer.values[-1], probes.token.values[0]
    for extra in settings.after:
        stages = [name for name in checkpoint_names(extra) if name in recorded]
        if not stages:
            continue
        values = []
        for stage in (last, *stages):
            place = {"stage": stage, "layer": layer, "token": token, "pair": f"{first} v {last}"}
            name = f"first v last accuracy after {stage}"
            values.append(rows_of(name, probes, "accuracy", 2 * settings.entities_per_stage, 0.5, **place))
        found.rows += values
        told = ", ".join(f"{row['value']:z.2f} after {row['stage']}" for row in values)
        found.sentences.append(f"Training goes on ({described(extra)}): first v last {told}.")
        for group in extra.train_on:
            moved = [_place(found, settings, group, stage) for stage in (last, stages[-1])]
            found.rows += moved
            found.sentences.append(
                f"{group}, taught once more, lies at {moved[0]['value']:z.2f} of the way from {first} to {last} before "
                f"and at {moved[1]['value']:z.2f} after (held-out centroids on the axis of each checkpoint)."
            )


def checkpoint_names(extra: AfterSettings) -> list[str]:
    """The stages that a course leaves."""
    return [extra.name] if extra.checkpoints == 1 else [f"{extra.name}-{k}" for k in range(1, extra.checkpoints + 1)]


def described(extra: AfterSettings) -> str:
    """A course in words."""
    what = " and ".join(extra.train_on) + " once more" if extra.train_on else "all stages mixed"
    return f"{extra.name}: {what}" + (f", {extra.epochs:g} epochs" if extra.epochs else "")


def _place(found: Findings, settings: StudySettings, group: str, stage: str) -> Row:
    """Where a group's centroid lies between those of the first and the last stage: 0 to 1, or beyond."""
    plane = found.report["projection"]
    here = plane.isel(layer=-1, token=0).sel(stage=stage, component="w1")
    ends = [float(here["coordinate"].sel(group=name)) for name in (settings.stage_names[0], settings.stage_names[-1])]
    low, value, high = (
        (float(here[name].sel(group=group)) - ends[0]) / (ends[1] - ends[0])
        for name in ("coordinate_low", "coordinate", "coordinate_high")
    )
    return {
        "name": f"place of {group} between first and last stage",
        "stage": stage,
        "layer": plane.layer.values[-1].item(),
        "token": str(plane.token.values[0]),
        "value": value,
        "low": low,
        "high": high,
        "null": None,
        "p": None,
        "n": settings.entities_per_stage,
        "site": str(plane.attrs.get("site", "")),
    }
