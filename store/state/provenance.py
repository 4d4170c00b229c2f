"""Checks that new data has the provenance of the store."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

from stratalens.store.errors import InputError, MismatchError
from stratalens.store.format.schema import Variable
from stratalens.store.state.manifest import StageEntry, Store

_UNUSABLE = r"[/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]"  # in the name of a stage


_REMEDIES = {
    "tokenizer_fingerprint": "load the tokenizer that the store was recorded with, or record to another store",
    "token_ids_digest": "use the same prompts and tokenizer settings, or record to another store. The labels are "
    "equal, so the tokenizer probably split the same text differently",
    "processing": "load the model with the same processing flags, or record to another store",
    "model": "use the model that the store was recorded with, or record to another store",
    "positions": "request the same positions, or record to another store",
    "hooks": "record through the same hook points, or to another store",
    "dtype": "request the same dtype, or record to another store",
    "user_hooks": "put the same hooks on the model as when the stage was recorded, or record to another store",
    "compression": "request the same compression, or record to another store",
}


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:197] + "..."


def mismatch(
    store: Store, field: str, stored: Any, new: Any, remedy: str | None = None, where: str = ""
) -> MismatchError:
    """Return the error for a field with different values in the store and in the new data."""
    remedy = remedy or _REMEDIES.get(field, "use the same value, or record to another store")
    return MismatchError(
        f"{field} differs{where}: {store.path} has {_show(stored)}, got {_show(new)}. To fix it: {remedy}."
    )


def check_provenance(store: Store, stored: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> None:
    """Check that all fields are equal; of `processing`, the flags that both have.

    A store of an earlier version has fewer flags, and some models cannot answer all of them.

    Raises:
        MismatchError: names the first different field in sorted order. `token_ids_digest` comes last, because it
            depends on other fields.
    """
    for field in sorted({*stored, *new}, key=lambda name: (name == "token_ids_digest", name)):
        is_same = field in stored and field in new and stored[field] == new[field]
        if not is_same and not (field == "processing" and _flags_agree(stored.get(field), new.get(field))):
            raise mismatch(store, field, stored.get(field), new.get(field), where=where)


def _flags_agree(stored: Any, new: Any) -> bool:
    if not isinstance(stored, Mapping) or not isinstance(new, Mapping):
        return False
    before, after = {"spliced": [], **stored}, {"spliced": [], **new}  # without this flag nothing was spliced in
    return all(before[flag] == after[flag] for flag in before if flag in after)


def check_axes(store: Store, *, layers: Sequence[int], tokens: Sequence[Any]) -> None:
    """Check that layers and positions are those of the store.

    Raises:
        MismatchError: they differ.
    """
    if list(layers) != list(store.layers):
        raise mismatch(store, "layers", list(store.layers), list(layers), "record the same layers, or another store")
    if list(tokens) != list(store.tokens):
        raise mismatch(store, "positions", list(store.tokens), list(tokens))


def new_variables(store: Store, variables: Sequence[Variable]) -> list[Variable]:
    """List those of `variables` that the store does not have.

    Raises:
        MismatchError: a variable differs from that of the store, or `variables` omits one of the store.
    """
    recorded = {v.name: v for group in store.groups for v in group if v.attrs.get("kind") != "flag"}
    added = []
    for variable in variables:
        if variable.name not in recorded:
            added.append(variable)
            continue
        old = recorded[variable.name]
        for field, stored, new, remedy in (
            ("dtype", old.dtype, variable.dtype, _REMEDIES["dtype"]),
            ("compression", old.compression, variable.compression, _REMEDIES["compression"]),
            ("dims", old.dims, variable.dims, "record the same site, or give it another name"),
            ("shape", old.shape, variable.shape, "record the same model, or give the site another name"),
            ("hook", old.attrs.get("hook"), variable.attrs.get("hook"), _REMEDIES["hooks"]),
        ):
            if stored != new:
                raise mismatch(store, f"{field} of {variable.name}", stored, new, remedy)
    requested = {v.name for v in variables}
    if omitted := [name for name in recorded if name not in requested]:
        sites = [name for name in omitted if recorded[name].attrs.get("kind") == "site"]
        listing = ", ".join(sites or omitted)
        raise MismatchError(
            f"{'sites' if sites else 'statistics'} differ: {store.path} also records {listing}. To fix it: record "
            f"{listing} too, because a block contains all variables, or record to another store."
        )
    return added


def check_weights(store: Store, stage: StageEntry, fingerprint: str) -> None:
    """Check that a stage of the store was recorded from these weights.

    Raises:
        MismatchError: the fingerprints differ.
    """
    if stage.fingerprint != fingerprint:
        remedy = "load the weights that this stage was recorded from, or use another stage name for these weights"
        where = f" for stage {stage.name!r}"
        raise mismatch(store, "weights_fingerprint", stage.fingerprint, fingerprint, remedy, where)


def check_stage(store: Store, entry: StageEntry, *, allow_same_weights: bool = False) -> int | None:
    """Check a stage before it is recorded.

    Args:
        store: the store.
        entry: the stage.
        allow_same_weights: accept weights that another stage has too.

    Returns:
        Index of the stage in the store, or None if the stage is new.

    Raises:
        InputError: the name is unusable, or easy to confuse with that of another stage.
        MismatchError: the stage differs from the recorded one, or has the order or weights of another stage.
    """
    if not entry.name.strip() or entry.name in (".", "..") or re.search(_UNUSABLE, entry.name):
        raise InputError(
            f"stage name {entry.name!r} is not usable: choose a name without slashes and control characters that is "
            "not empty, '.' or '..'"
        )
    index = store.stage_index(entry.name)
    if index is not None:
        recorded, where = store.stages[index], f" for stage {entry.name!r}"
        check_weights(store, recorded, entry.fingerprint)
        if recorded.order != entry.order:
            raise mismatch(store, "stage_order", recorded.order, entry.order, "give the stage the same order", where)
        check_provenance(store, recorded.provenance, entry.provenance, where)
        return index
    for other in store.stages:
        if normalize("NFC", other.name) == normalize("NFC", entry.name):
            raise InputError(
                f"stage {entry.name!r} looks like stage {other.name!r} of {store.path} but has other code points "
                f"({entry.name!a}, {other.name!a}): copy the name from the store, or choose another one"
            )
        if other.order == entry.order:
            stored, new = f"{other.name}: {other.order}", f"{entry.name}: {entry.order}"
            raise mismatch(store, "stage_order", stored, new, "give every stage its own order")
        if other.fingerprint == entry.fingerprint and not allow_same_weights:
            raise MismatchError(
                f"stages {other.name!r} and {entry.name!r} have the same weights (fingerprint {entry.fingerprint}): "
                "check the checkpoint's path or revision. If this is intended, pass allow_same_weights=True "
                "(allow_same_weights: true in a run file)"
            )
    return None
