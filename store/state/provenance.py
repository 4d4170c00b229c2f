"""Provenance that refuses: each field of what is being added against what the store holds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from unicodedata import normalize

from stratalens.store.errors import InputError, MismatchError
from stratalens.store.format.schema import Variable
from stratalens.store.state.manifest import StageEntry, Store

_MEND = {
    "tokenizer_fingerprint": "load the tokenizer that the store was recorded with, or record to another store",
    "token_ids_digest": "give the same prompts and tokenizer settings (the labels agree, so it is most likely the same "
    "text that became other tokens), or record to another store",
    "processing": "load the model with the same processing flags, or record to another store",
    "model": "give the model that the store was recorded with, or record to another store",
    "positions": "ask for the same positions, or record to another store",
    "hooks": "record through the same hook points, or to another store",
    "dtype": "ask for the same dtype, or record to another store",
    "compression": "ask for the same compression, or record to another store",
}


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:197] + "..."


def mismatch(
    store: Store, field: str, held: Any, given: Any, mend: str | None = None, where: str = ""
) -> MismatchError:
    """The error that names the field, both values and the mend."""
    return MismatchError(
        f"{field} differs{where}: {store.path} holds {_show(held)}, given is {_show(given)}. "
        f"To mend it: {mend or _MEND.get(field, 'give the same value, or record to another store')}."
    )


def check_provenance(store: Store, held: Mapping[str, Any], given: Mapping[str, Any], where: str = "") -> None:
    """Raise for the first field that is not the same on both sides: in sorted order, what follows from others last."""
    for field in sorted({*held, *given}, key=lambda name: (name == "token_ids_digest", name)):
        if field not in held or field not in given or held[field] != given[field]:
            raise mismatch(store, field, held.get(field), given.get(field), where=where)


def check_axes(store: Store, *, layers: Sequence[int], tokens: Sequence[Any]) -> None:
    """Raise unless layers and positions are those of the store."""
    if list(layers) != list(store.layers):
        raise mismatch(store, "layers", list(store.layers), list(layers), "record the same layers, or another store")
    if list(tokens) != list(store.tokens):
        raise mismatch(store, "positions", list(store.tokens), list(tokens))


def new_variables(store: Store, variables: Sequence[Variable]) -> list[Variable]:
    """Those of `variables` that the store does not have; raises where a known one differs."""
    held = {v.name: v for group in store.groups for v in group if v.attrs.get("kind") != "flag"}
    fresh = []
    for variable in variables:
        if variable.name not in held:
            fresh.append(variable)
            continue
        old = held[variable.name]
        for field, mend in (
            ("dtype", _MEND["dtype"]),
            ("compression", _MEND["compression"]),
            ("dims", "record the same site, or give it another name"),
            ("shape", "record the same model, or give the site another name"),
        ):
            if getattr(old, field) != getattr(variable, field):
                raise mismatch(
                    store, f"{field} of {variable.name}", getattr(old, field), getattr(variable, field), mend
                )
        hook = old.attrs.get("hook")
        if hook != variable.attrs.get("hook"):
            raise mismatch(store, f"hook of {variable.name}", hook, variable.attrs.get("hook"), _MEND["hooks"])
    wanted = {v.name for v in variables}
    if absent := [name for name in held if name not in wanted]:
        sites = [name for name in absent if held[name].attrs.get("kind") == "site"]
        named = ", ".join(sites or absent)
        raise MismatchError(
            f"{'sites' if sites else 'statistics'} differ: {store.path} records {named}, not asked for now. "
            f"To mend it: record {named} too (a block is recorded whole), or record to another store."
        )
    return fresh


def check_weights(store: Store, held: StageEntry, fingerprint: str) -> None:
    """Raise unless a stage of the store was recorded from these weights."""
    if held.fingerprint != fingerprint:
        raise mismatch(
            store, "weights_fingerprint", held.fingerprint, fingerprint,
            "load the weights this stage was recorded from, or give these weights a stage name of their own",
            f" for stage {held.name!r}",
        )  # fmt: skip


def check_stage(store: Store, entry: StageEntry, *, allow_same_weights: bool = False) -> int | None:
    """Index of the stage if the store has it; raises where it differs from what is there."""
    if not entry.name.strip() or entry.name in (".", "..") or any(c in "/\\" or ord(c) < 32 for c in entry.name):
        raise InputError(
            f"stage name {entry.name!r} is not usable: give a name without slashes and control characters that is "
            "not empty, '.' or '..'"
        )
    index = store.stage_index(entry.name)
    if index is not None:
        held, where = store.stages[index], f" for stage {entry.name!r}"
        check_weights(store, held, entry.fingerprint)
        if held.order != entry.order:
            raise mismatch(store, "stage_order", held.order, entry.order, "give the stage the same order", where)
        check_provenance(store, held.provenance, entry.provenance, where)
        return index
    for other in store.stages:
        if normalize("NFC", other.name) == normalize("NFC", entry.name):
            raise InputError(
                f"stage {entry.name!r} looks like stage {other.name!r} of {store.path} and is spelled in other code "
                f"points ({entry.name!a}, {other.name!a}): give the name as it stands there, or another one"
            )
        if other.order == entry.order:
            raise mismatch(
                store, "stage_order", f"{other.name}: {other.order}", f"{entry.name}: {entry.order}",
                "give every stage an order of its own",
            )  # fmt: skip
        if other.fingerprint == entry.fingerprint and not allow_same_weights:
            raise MismatchError(
                f"stages {other.name!r} and {entry.name!r} have the same weights (fingerprint {entry.fingerprint}): "
                "check the checkpoint's path or revision; if that is meant, allow_same_weights=True "
                "(allow_same_weights: true in a run file)"
            )
    return None
