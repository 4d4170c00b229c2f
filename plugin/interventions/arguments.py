"""Arguments of `intervene` that need no model: checked, with the rows to score and a null of the caller's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratalens.analyses.directions.direction_set import Directions
from stratalens.analyses.directions.direction_set import directions as make_directions
from stratalens.analyses.directions.random_directions import NULLS
from stratalens.plugin.interventions.steer import finite_number
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import InputError, join_names, suggest

KINDS = ("steer", "ablate", "patch")


def check_arguments(
    kind: str,
    doses: Any,
    random: Any,
    null: str,
    to: float | None,
    source: Any,
    source_rows: Any,
    table: Any,
) -> tuple[float, ...]:
    """Check what no model is needed for; return the doses."""
    if kind not in KINDS:
        raise InputError(f"kind={kind!r}: {suggest(str(kind), KINDS)}")
    if not isinstance(table, PromptTable):
        raise InputError(
            f"table is {type(table).__name__}; pass a PromptTable, such as PromptTable.read('prompts.csv')"
        )
    if null not in NULLS:
        raise InputError(f"null={null!r}: {suggest(str(null), [n for n in NULLS if n != 'own'])}, or directions")
    if isinstance(random, bool) or not isinstance(random, int | np.integer) or random < 0:
        raise InputError(f"random={random!r} is not a number of random directions, from 0; 20 or more give a verdict")
    if to is not None:
        finite_number(to, "to")
        if kind != "ablate":
            raise InputError(f"to={to!r} is the coordinate that ablation sets; leave it out for kind={kind!r}")
    if kind == "patch":
        if source is None or source_rows is None:
            raise InputError("kind='patch' needs source= (a store) and source_rows= (its row for every prompt)")
        if len(source_rows) != len(table):
            raise InputError(f"source_rows has {len(source_rows)} rows for {len(table)} prompts; give one for each")
    elif source is not None or source_rows is not None:
        raise InputError(f"source= is for kind='patch', not for kind={kind!r}")
    if kind != "steer":
        return (1.0,)
    listed = [doses] if isinstance(doses, int | float | str) else list(doses)
    numbers = tuple(finite_number(dose, "doses") for dose in listed)
    if not numbers or len(set(numbers)) < len(numbers):
        raise InputError(f"doses={listed!r} is empty or names a dose twice; give different numbers")
    return numbers


def choice_of(value: Any, name: str, valid: Mapping[str, Any]) -> Any:
    """Return what a name means; refuse other names."""
    if value not in valid:
        raise InputError(f"{name}={value!r}: {suggest(str(value), valid)}")
    return valid[value]


def own_null(null: Any, tested: Directions) -> Directions:
    """Directions in the place of random ones; they need the places of the tested ones."""
    own = make_directions(null)
    if own.site != tested.site or own.feature_shape != tested.feature_shape:
        raise InputError(
            f"null= has directions of {own.site} with {own.feature_shape} features, and those to test are of "
            f"{tested.site} with {tested.feature_shape}; make both at one site"
        )
    if missing := [layer for layer in tested.layer if layer not in own.layer]:
        raise InputError(f"null= has no directions at layer {missing[0]}; it has layers {join_names(own.layer)}")
    if missing_stages := [stage for stage in tested.stage if own.stage and stage not in own.stage]:
        raise InputError(f"null= has no directions of stage {missing_stages[0]!r}; it has {join_names(own.stage)}")
    if (not own.stage and tested.stage) or (not tested.stage and len(own.stage) > 1):
        raise InputError("null= and directions= must both have stages, or neither of them")
    return own


def scored_rows(table: PromptTable, directions: Directions, null: Directions | None, overlap: str) -> NDArray[np.bool_]:
    """Rows whose outcome is scored: those of entities that did not make the directions.

    Raises:
        InputError: there are none, or entities overlap and overlap="refuse".
    """
    entity = np.array([str(name) for name in table.labels()["entity_id"]])
    sources = directions.entities | (null.entities if null is not None else frozenset())
    seen = np.isin(entity, sorted(sources)) if sources else np.zeros(len(entity), bool)
    names = join_names(np.unique(entity[seen]).tolist(), 5)
    remedy = (
        "Make the directions from other entities, such as half of them (ds.isel(entity=half)), or pass prompts about "
        "others; overlap='allow' scores them nevertheless"
    )
    if seen.any() and overlap == "refuse":
        raise InputError(
            f"{len(np.unique(entity[seen]))} entities of the prompts made the directions: {names}. {remedy}"
        )
    if seen.all() and overlap == "exclude":
        raise InputError(f"every entity of the prompts made the directions ({names}), so none can be scored. {remedy}")
    return np.ones(len(entity), bool) if overlap == "allow" else ~seen
