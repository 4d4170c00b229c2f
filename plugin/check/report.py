"""Findings of a check, their verdicts, and the report that users see."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

Verdict = Literal["equal", "rounding", "different", "not checkable"]

#: Largest relative difference that rounding explains, by dtype of the model. A different order of summation changes
#: the last bits of a value; the residual stream of a deep model collects many such changes.
TOLERANCES: Mapping[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 8e-2,
}


@dataclass(frozen=True)
class Finding:
    """One comparison.

    Attributes:
        check: name of the check.
        site: short name or hook of the site, "logits", or "" for the whole model.
        layer: block index, None for a site outside the blocks.
        verdict: "equal" (bit for bit), "rounding", "different" or "not checkable".
        difference: largest absolute difference over the largest absolute value; NaN if not checkable.
        note: reason or detail.
    """

    check: str
    site: str
    layer: int | None
    verdict: Verdict
    difference: float = float("nan")
    note: str = ""


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """Return the largest absolute difference over the largest absolute reference value.

    Returns:
        0.0 for values that are equal bit for bit; infinity if NaN or infinity is in one of them only.
    """
    if value.shape == reference.shape and torch.equal(value, reference):
        return 0.0
    a, b = value.double(), reference.double()
    if value.shape == reference.shape and math.isfinite(gap := float((a - b).abs().max())):
        scale = float(b.abs().max())
        return gap / scale if scale > 0 else float("inf")
    finite = torch.isfinite(a) & torch.isfinite(b)
    same = (a == b) | (torch.isnan(a) & torch.isnan(b))
    if not bool((finite | same).all()):
        return float("inf")
    gap = float(torch.where(finite, (a - b).abs(), 0.0).max())
    scale = float(torch.where(finite, b.abs(), 0.0).max())
    return gap / scale if scale > 0 else (float("inf") if gap > 0 else 0.0)


def verdict_of(difference: float, dtype: torch.dtype) -> Verdict:
    """Return the verdict for a relative difference of values of a dtype."""
    if difference == 0:
        return "equal"
    return "rounding" if difference <= TOLERANCES.get(dtype, TOLERANCES[torch.float32]) else "different"


def compare(
    check: str, site: str, layer: int | None, value: Tensor, reference: Tensor, dtype: torch.dtype, note: str = ""
) -> Finding:
    """Compare two tensors of one shape."""
    difference = relative_difference(value, reference)
    return Finding(check, site, layer, verdict_of(difference, dtype), difference, note)


@dataclass(frozen=True)
class CheckReport:
    """Result of `stratalens.check`.

    Attributes:
        findings: one for each check, site and layer.
        model: name of the model.
        versions: versions of torch, transformers, transformer-lens and stratalens.
        rows: sequences in the sample.
        tokens: tokens in the sample.
        seconds: duration of the check.
    """

    findings: tuple[Finding, ...]
    model: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is different from what the model computes."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings with the verdict "different"."""
        return tuple(finding for finding in self.findings if finding.verdict == "different")

    @property
    def table(self) -> pd.DataFrame:
        """The findings as a table.

        Returns:
            DataFrame with the columns check, site, layer (Int64, missing outside the blocks), verdict, difference
            (float64) and note.
        """
        columns = ["check", "site", "layer", "verdict", "difference", "note"]
        rows = [[getattr(finding, name) for name in columns] for finding in self.findings]
        return pd.DataFrame(rows, columns=columns).astype({"layer": "Int64", "difference": "float64"})

    def summary(self) -> dict[str, Any]:
        """Return the verdicts in short, for the provenance of a store and for JSON.

        Returns:
            ok, rows, tokens, versions, and for each check and site the worst verdict and its largest difference.
        """
        checks: dict[str, dict[str, Any]] = {}
        for (check, site), findings in _by_check_and_site(self.findings).items():
            finding = max(findings, key=_severity)
            entry: dict[str, Any] = {"verdict": finding.verdict}
            if finding.difference == finding.difference:
                entry["difference"] = float(f"{finding.difference:.2g}") if finding.difference < float("inf") else "inf"
            checks[f"{check}: {site}" if site else check] = entry
        return {
            "ok": self.ok,
            "rows": self.rows,
            "tokens": self.tokens,
            "versions": dict(self.versions),
            "checks": checks,
        }

    def to_json(self) -> str:
        """Return model, verdict, versions and all findings as a JSON object."""
        findings = [
            {
                "check": f.check,
                "site": f.site,
                "layer": f.layer,
                "verdict": f.verdict,
                "difference": f.difference if abs(f.difference) < float("inf") else None,
                "note": f.note,
            }
            for f in self.findings
        ]
        document = {
            "model": self.model,
            "ok": self.ok,
            "rows": self.rows,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "versions": dict(self.versions),
            "findings": findings,
        }
        return json.dumps(document, ensure_ascii=False)

    def __str__(self) -> str:
        """Return a table: a line for each check, or for each of its sites where their verdicts have notes."""
        lines = [f"{self.model}: {self.rows} sequences, {self.tokens} tokens, {self.seconds:.1f} s"]
        lines.append(f"{'check':<20} {'site':<11} {'layers':<8} {'verdict':<14} difference")
        for (check, site), findings in _lines(self.findings):
            finding = max(findings, key=_severity)
            layers = _layer_range([f.layer for f in findings if f.layer is not None])
            size = f"{finding.difference:.1e}" if finding.difference == finding.difference else "-"
            lines.append(f"{check:<20} {site:<11} {layers:<8} {finding.verdict:<14} {size}".rstrip())
        for finding in self.failures[:10]:
            where = f"layer {finding.layer}" if finding.layer is not None else "no layer"
            note = f": {finding.note}" if finding.note else ""
            lines.append(f"different: {finding.check}, {finding.site or 'model'}, {where}{note}")
        if len(self.failures) > 10:
            lines.append(f"and {len(self.failures) - 10} more; see .table")
        if self.ok:
            lines.append("Every value that can be checked is what the model computes.")
        return "\n".join(lines)


def _lines(findings: Iterable[Finding]) -> Iterator[tuple[tuple[str, str], list[Finding]]]:
    """Group findings by check and site; a check whose sites all agree is one group, with "all sites"."""
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    for check, own in by_check.items():
        sites = {f.site for f in own}
        if len(sites) > 1 and all(f.verdict in ("equal", "rounding") for f in own):
            yield (check, f"{len(sites)} sites"), own
        else:
            yield from _by_check_and_site(own).items()


def _by_check_and_site(findings: Iterable[Finding]) -> dict[tuple[str, str], list[Finding]]:
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.check, finding.site), []).append(finding)
    return groups


def _severity(finding: Finding) -> tuple[int, float]:
    order = ("not checkable", "equal", "rounding", "different")
    difference = finding.difference if finding.difference == finding.difference else -1.0
    return order.index(finding.verdict), difference


def _layer_range(layers: list[int]) -> str:
    if not layers:
        return "-"
    return str(layers[0]) if len(layers) == 1 else f"{min(layers)} to {max(layers)}"
