"""Groups are in training order and never sorted as text; bad labels are refused with a remedy."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stratalens.analyses.data.groups import clusters, exposure, groups, labels_by_cluster
from stratalens.store.errors import InputError
from support.planted import planted


def labelled(values: object, **more: object) -> xr.Dataset:
    values = np.asarray(values) if not isinstance(values, np.ndarray) else values
    return xr.Dataset(coords={"x": ("entity", values), **more})  # type: ignore[dict-item]


def test_stages_are_in_training_order_not_in_order_of_text() -> None:
    names = [f"s{i}" for i in (10, 2, 9, 1)]
    ds = labelled(names).rename(x="trained_stage")
    ds = ds.assign_coords(stage=[f"s{i}" for i in range(11)], stage_order=("stage", np.arange(11)))
    result = groups(ds, "trained_stage")
    assert result.names.tolist() == ["s1", "s2", "s9", "s10"]
    assert result.codes.tolist() == [3, 1, 2, 0]
    assert result.ordering == "stage_order"


@pytest.mark.parametrize("dtype", [object, "U4", np.dtypes.StringDType()])
def test_other_text_is_in_order_of_appearance(dtype: object) -> None:
    result = groups(labelled(np.array(["s2", "s10", "s1", "s10"], dtype=dtype)), "x")
    assert result.names.tolist() == ["s2", "s10", "s1"]
    assert result.ordering == "first appearance"


def test_numbers_are_in_numeric_order_and_missing_labels_excluded() -> None:
    assert groups(labelled([10, 9, 2, 10]), "x").names.tolist() == [2, 9, 10]
    assert groups(labelled(np.array([True, False])), "x").names.tolist() == [False, True]
    result = groups(labelled(np.array(["a", None, "", np.nan, "b"], dtype=object)), "x")
    assert result.codes.tolist() == [0, -1, -1, -1, 1]


def test_the_order_argument_wins_and_excludes_other_groups() -> None:
    ds = planted(groups=4)
    result = groups(ds, "trained_stage", order=["s3", "s1"])
    assert result.names.tolist() == ["s3", "s1"]
    assert set(result.codes) == {0, 1, -1}
    with pytest.raises(InputError, match="did you mean 's1'"):
        groups(ds, "trained_stage", order=["s1x", "s2"])
    with pytest.raises(InputError, match="once"):
        groups(ds, "trained_stage", order=["s1", "s1"])


def test_order_survives_narrowing_the_stages() -> None:
    ds = planted(groups=4, stages=5)
    expected = groups(ds, "trained_stage").names.tolist()
    assert expected == ["s1", "s2", "s3", "s4"]
    for narrowed in (ds.sel(stage="s4"), ds.sel(stage=["s0", "s1"]), ds.isel(stage=[0])):
        assert groups(narrowed, "trained_stage").names.tolist() == expected
    for array in (ds.resid_post.sel(stage="s4"), ds.resid_post.sel(stage=["s0"])):
        with pytest.raises(InputError, match="order="):
            groups(array, "trained_stage")


def test_exposure_marks_groups_that_are_not_trained_yet() -> None:
    ds = planted(groups=4, stages=5)
    for data in (ds, ds.drop_vars("exposure")):
        table = exposure(data, groups(data, "trained_stage"))
        assert table is not None
        np.testing.assert_array_equal(table, np.arange(5)[:, None] - np.arange(1, 5)[None, :])
    assert exposure(ds, groups(ds, "template")) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([1, "a", 2.5], dtype=object), "mixed type"),
        (np.linspace(0, 1, 40), "continuous"),
        (np.array([None, None], dtype=object), "every label"),
    ],
)
def test_labels_that_make_no_groups_are_refused(values: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        groups(labelled(values), "x")


def test_unknown_columns_and_columns_along_other_dims_are_refused() -> None:
    ds = planted()
    with pytest.raises(InputError, match="did you mean 'trained_stage'"):
        groups(ds, "trained_stages")
    with pytest.raises(InputError, match=r"dims are \(stage\)"):
        groups(ds, "stage_order")


def test_one_class_and_small_classes_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2"):
        groups(labelled(["a", "a"]), "x").require()
    result = groups(labelled(["a", "a", "a", "b"]), "x")
    with pytest.raises(InputError, match=r"rows in 'x': b \(1\)"):
        result.require(per_class=2)
    with pytest.raises(InputError, match=r"entities in 'x': a \(1\), b \(1\)"):
        result.require(per_class=2, units=np.array([0, 0, 0, 1]))


def test_entities_are_clusters_and_must_have_one_label() -> None:
    ds = labelled(["a", "a", "b"], entity_id=("entity", ["e", "f", "e"]))
    assert clusters(ds).tolist() == [0, 1, 0]
    assert clusters(ds.drop_vars("entity_id")).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="several groups"):
        labels_by_cluster(groups(ds, "x"), clusters(ds))
    with pytest.raises(InputError, match="missing in rows"):
        clusters(ds.assign_coords(entity_id=("entity", np.array(["e", None, "f"], object))))


def test_many_small_groups_of_numbers_are_a_measurement() -> None:
    result = groups(labelled(np.arange(30) * 1000), "x")
    with pytest.raises(
        InputError, match=r"^'x' has 30 values on 30 entities; 30 of them have fewer than 5 \(5 folds\): bi"
    ):
        result.require(per_class=5, units=np.arange(30), why="5 folds")
    names = groups(labelled([f"n{i}" for i in range(30)]), "x")
    with pytest.raises(InputError, match=r"n6 \(1\), n7 \(1\) and 22 more; each group needs at least 5"):
        names.require(per_class=5)


def test_a_missing_site_is_refused_with_how_to_record_it() -> None:
    from stratalens.analyses.centroids.centroids import centroids

    with pytest.raises(InputError, match=r"site 'mlp_out' is not in the data; .*sites=\('resid_post', 'mlp_out'\)"):
        centroids(planted(), site="mlp_out", progress=False)
    ds = planted()
    percentiles = ds.resid_post.isel(layer=0, drop=True).rename(d_model="percentile").assign_attrs(kind="output")
    with pytest.raises(InputError, match=r"sites=\('resid_post', 'mlp_out'\)"):
        centroids(ds.assign(logit_percentile=percentiles), site="mlp_out", progress=False)


@pytest.mark.parametrize(
    ("column", "labels"),
    [
        ("prompt", ["who", "what", "who", "when"]),
        ("person_id", [7, 7, 8, 8]),
        ("entity", ["a", "a", "b", "c"]),
    ],
)
def test_a_missing_entity_id_with_duplicates_is_warned_of(column: str, labels: list[object]) -> None:
    ds = xr.Dataset(coords={column: ("entity", np.array(labels))}).assign(x=("entity", np.zeros(4)))
    with pytest.warns(UserWarning, match=rf"rows repeat a value of '{column}'.*assign_coords\(entity_id"):
        assert clusters(ds).tolist() == [0, 1, 2, 3]
    clusters(ds.assign_coords(entity_id=("entity", np.arange(4))))


def test_labels_of_classes_are_no_duplicates_of_entities() -> None:
    coords = {
        "template_id": ("entity", np.arange(40) % 3),
        "colour": ("entity", np.array(["red", "blue"] * 20)),
        "prompt": ("entity", np.array([f"prompt {i}" for i in range(40)])),
    }
    clusters(xr.Dataset({"x": ("entity", np.zeros(40))}, coords=coords))
