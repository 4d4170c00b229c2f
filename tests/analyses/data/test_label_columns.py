"""Label columns with their numbers of groups, and the one that is compared by default."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.data.label_columns import (
    check_label_column,
    default_label_column,
    describe_label_columns,
    list_columns,
)
from stratalens.store.errors import InputError

N = 80


def labelled(**columns: Any) -> xr.Dataset:
    rows = np.arange(N)
    known = {
        "prompt": [f"Where is e{i}?" for i in rows],
        "entity_id": [f"e{i // 2}" for i in rows],
        "template": [f"t{i % 2}" for i in rows],
        "born": [f"y{i // 2}" for i in rows],
        "habitat": [("forest", "desert", "lake", "mountain")[i // 2 % 4] for i in rows],
        **columns,
    }
    return xr.Dataset(coords={k: ("entity", np.array(v)) for k, v in known.items() if v is not None})


def test_the_only_column_that_divides_the_entities_is_the_default() -> None:
    ds = labelled()
    assert default_label_column(ds) == "habitat"
    described = describe_label_columns(ds)
    assert [str(c) for c in described] == ["habitat (4)", "template (2)", "born (40)", "prompt (80)", "entity_id (40)"]
    assert described[0].within_entities
    assert not described[1].within_entities
    assert {c.name: c.problem for c in described}["born"] == "every entity has a label of its own"


def test_trained_stage_comes_first_where_it_exists() -> None:
    ds = labelled(trained_stage=[f"s{i // 2 % 3}" for i in range(N)])
    assert default_label_column(ds) == "trained_stage"
    assert describe_label_columns(ds, ("habitat",))[0].name == "habitat"


def test_two_candidates_are_listed_with_their_groups() -> None:
    ds = labelled(letters=[3 + i // 2 % 5 for i in range(N)])
    with pytest.raises(InputError, match=r"name the label column: habitat \(4 groups\), letters \(5 groups\)"):
        default_label_column(ds)
    with pytest.raises(
        InputError, match=r"Other columns: template \(2\), born \(40\), prompt \(80\), entity_id \(40\)"
    ):
        default_label_column(ds)


def test_no_candidate_is_said_with_the_numbers_of_groups() -> None:
    with pytest.raises(InputError, match=r"nothing to compare by default.*template \(2\), born \(40\)"):
        default_label_column(labelled(habitat=None))
    with pytest.raises(InputError, match=r"'habitit' is not a label column; did you mean 'habitat'.*template \(2\)"):
        check_label_column(labelled(), "habitit")


@pytest.mark.parametrize(
    ("values", "groups", "problem"),
    [
        (["x"] * N, 1, "all rows have the same label"),
        ([""] * N, 0, "every label is missing"),
        (np.linspace(0.1, 9.7, N), N, "continuous; cut it into classes first"),
        ([f"v{i % 70}" for i in range(N)], 70, "more than 60 groups"),
        (np.array([1, "a"] * (N // 2), dtype=object), 0, "labels in 'other' are of mixed type (number, text)"),
    ],
)
def test_columns_that_cannot_be_compared_say_why(values: Any, groups: int, problem: str) -> None:
    (column,) = [c for c in describe_label_columns(labelled(other=values)) if c.name == "other"]
    assert (column.groups, column.candidate) == (groups, False)
    assert column.problem.startswith(problem)


def test_missing_labels_are_no_group() -> None:
    columns = describe_label_columns(labelled(habitat=[["a", "b", ""][i // 2 % 3] for i in range(N)]))
    assert list_columns(columns[:1], of="groups") == "habitat (2 groups)"
