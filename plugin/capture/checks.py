"""The check that a capture runs before it records: are the recorded sites what the model computes?"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from stratalens.plugin.capture.batching import out_of_memory
from stratalens.plugin.capture.spec import CaptureSpec
from stratalens.plugin.check.check import VERSIONS, run_checks
from stratalens.plugin.check.components import CHECK as SAME_AS_TRANSFORMERS
from stratalens.plugin.check.report import CheckReport, Finding
from stratalens.plugin.check.sample import choose_sample
from stratalens.plugin.models.adapters import Adapter
from stratalens.plugin.stages.label_warnings import caller_level
from stratalens.store.errors import CheckWarning, InputError
from stratalens.store.state.manifest import Store

MODES = ("raise", "warn", False)

_verdicts: dict[str, tuple[Finding, ...]] = {}  # architecture, sites and versions -> findings, for this process


def check_before_recording(adapter: Adapter, spec: CaptureSpec, store: Store | None) -> dict[str, Any] | None:
    """Check the recorded sites on at most 12 tokens of the table.

    The findings are cached in this process by architecture, sites and versions, and not repeated for a store that was
    checked with the same versions.

    Args:
        adapter: the model of the first stage.
        spec: what the store records.
        store: the store if it exists.

    Returns:
        The verdict for the store; None if the check is off, was run for this store before, or ran out of memory.

    Raises:
        InputError: a recorded site differs from what the model computes, and `check` is "raise".
    """
    mode = spec.options.check
    if mode not in MODES:
        raise InputError(f"check={mode!r}: valid are 'raise', 'warn' and False.")
    versions = {name: version(name) for name in VERSIONS}
    if mode is False or (store is not None and _was_checked(store, versions)):
        return None
    try:
        findings = _findings(adapter, spec, versions)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return None  # a batch of the capture may be smaller than the sample of the check
    report = CheckReport(findings, versions=versions)
    if not report.ok:
        message = _message(report)
        if mode == "raise":
            raise InputError(f"{message} Pass check='warn' to record it all the same.")
        warnings.warn(message, CheckWarning, stacklevel=caller_level())
    return report.summary()


def batch_note(verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the check saw of the batch size, for the facts about a store; empty without a check."""
    checks = {} if verdict is None else verdict["checks"]
    seen = {name: entry for name, entry in checks.items() if name.startswith("batch = single")}
    if not seen:
        return {}
    changed = {name.partition(": ")[2]: entry for name, entry in seen.items() if entry["verdict"] != "equal"}
    largest = max((entry.get("difference", 0.0) for entry in changed.values()), key=float, default=0.0)
    return {"batch_size": {"changes_values": bool(changed), "largest_difference": largest, "sites": sorted(changed)}}


def _findings(adapter: Adapter, spec: CaptureSpec, versions: Mapping[str, str]) -> tuple[Finding, ...]:
    sites = [
        hook
        for site in spec.selection.sites
        for hook in ([site.hook_at(layer) for layer in spec.selection.layers] if site.in_blocks else [site.hook])
    ]
    config: dict[str, Any] = getattr(getattr(adapter.weights_module, "config", None), "to_dict", dict)()
    identity = [
        type(adapter.model).__name__,
        type(adapter.weights_module).__name__,
        {name: value for name, value in config.items() if not name.startswith("_") and "name" not in name},
        dict(adapter.processing),
        str(adapter.dtype),
        adapter.device.type,
        sites,
        dict(versions),
    ]
    key = json.dumps(identity, default=str, sort_keys=True)
    of_known_kind = type(adapter) is not Adapter and adapter.forward is None
    if of_known_kind and key in _verdicts:
        return _verdicts[key]
    rows = [spec.tokenized.ids[row] for row in range(min(4, len(spec.tokenized)))]
    vocabulary = adapter.size("d_vocab") or int(max(row.max() for row in rows)) + 1
    findings = tuple(run_checks(adapter, choose_sample(rows, vocabulary, adapter.max_length), sites, only=True))
    if of_known_kind:
        _verdicts[key] = findings
    return findings


def _was_checked(store: Store, versions: Mapping[str, str]) -> bool:
    verdict = store.recorded_with.get("check")
    return isinstance(verdict, Mapping) and bool(verdict.get("ok")) and verdict.get("versions") == dict(versions)


def _message(report: CheckReport) -> str:
    first = report.failures[0]
    what = (
        "TransformerLens does not compute what transformers computes"
        if first.check == SAME_AS_TRANSFORMERS
        else "the hooks do not give what the model computes"
    )
    where = f" at layer {first.layer}" if first.layer is not None else ""
    sites = sorted({finding.site for finding in report.failures if finding.site})
    note = f" ({first.note})" if first.note else ""
    return (
        f"{', '.join(sites) or 'the model'}: {what}. First difference: check "
        f"{first.check!r}, site {first.site!r}{where}, {first.difference:.1e} of the largest value{note}. "
        "`stratalens.check(model)` shows all of it."
    )
