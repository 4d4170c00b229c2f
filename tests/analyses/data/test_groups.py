"""Groups are in training order and never sorted as text; bad labels are refused with a remedy."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import stratalens as sl
from stratalens.analyses.data.groups import clusters, exposure, groups, labels_by_cluster
from stratalens.analyses.data.splits import require_folds
from stratalens.analyses.data.training_order import is_ordered
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
    assert result.ordered
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


@pytest.mark.parametrize("dtype", [np.int64, np.float64, object])
def test_a_trained_stage_is_matched_by_its_text_and_never_a_position(dtype: type) -> None:
    """Checkpoints 143000, 1000 and 512 are recorded in this order; 512 is no position among them."""
    labels = np.array([512, 143000, 1000]).astype(str if dtype is object else dtype).astype(dtype)
    ds = labelled(labels).rename(x="trained_stage")
    ds = ds.assign_coords(stage=["143000", "1000", "512"], stage_order=("stage", [0, 1, 2]))
    result = groups(ds, "trained_stage")
    assert [float(name) for name in result.names] == [143000, 1000, 512]
    assert result.codes.tolist() == [2, 0, 1]
    assert result.ordering == "stage_order"
    table = exposure(ds, result)
    assert table is not None
    np.testing.assert_array_equal(table, np.arange(3)[:, None] - np.arange(3)[None, :])


@pytest.mark.parametrize("values", [[0, 1, 0], [2, 1, 2], np.array(["1", "2", "7"], object), [3, 2, 1]])
def test_a_label_that_looks_like_stages_is_no_stage(values: object) -> None:
    ds = labelled(np.asarray(values)).assign_coords(stage=["1", "2", "3"], stage_order=("stage", [0, 1, 2]))
    result = groups(ds, "x")
    assert not result.ordered
    assert result.ordering in ("numeric", "first appearance")
    assert exposure(ds, result) is None


def test_any_column_has_training_order_on_request() -> None:
    ds = labelled(np.array([3, 1, 2])).assign_coords(stage=["3", "2", "1"], stage_order=("stage", [0, 1, 2]))
    result = groups(ds, "x", order="stages")
    assert result.names.tolist() == [3, 2, 1]
    assert result.ordered
    assert exposure(ds, result) is not None
    with pytest.raises(InputError, match="unknown here"):
        groups(ds.assign_coords(x=("entity", ["a", "b", "c"])), "x", order="stages")
    with pytest.raises(InputError, match="only some"):
        groups(ds.assign_coords(x=("entity", ["1", "2", "c"])), "x", order="stages")
    with pytest.raises(InputError, match="'stages'"):
        groups(ds, "x", order="stage")


def test_ordered_categories_keep_their_order() -> None:
    ds = labelled(np.array(["mid", "hi", "lo", "mid"], object))
    ds["x"].attrs["ordered_categories"] = ["lo", "mid", "hi", "top"]
    result = groups(ds, "x")
    assert result.names.tolist() == ["lo", "mid", "hi"]
    assert (result.ordering, result.ordered) == ("categories", True)
    ds = labelled(np.array([30, 4, 7]))
    ds["x"].attrs["ordered_categories"] = ["7", "30", "4"]
    assert groups(ds, "x").names.tolist() == [7, 30, 4]
    assert groups(ds, "x", order=[4, 7]).names.tolist() == [4, 7]


@pytest.mark.parametrize(("recorded", "orders"), [(["s0", "s4"], [0, 4]), (["s4"], [4]), (["s0", "s2"], [3, 5])])
def test_stages_that_are_not_recorded_have_their_order_from_the_categories(
    recorded: list[str], orders: list[int]
) -> None:
    ds = labelled(np.array(["s3", "s1", "s4", "s2"], object)).rename(x="trained_stage")
    ds = ds.assign_coords(stage=recorded, stage_order=("stage", orders))
    with pytest.raises(InputError, match="only some"):
        groups(ds, "trained_stage")
    ds["trained_stage"].attrs["ordered_categories"] = ["s1", "s2", "s3", "s4"]
    result = groups(ds, "trained_stage")
    assert result.names.tolist() == ["s1", "s2", "s3", "s4"]
    assert result.ordered
    last = recorded[-1]
    trained = int(last[1:]) - np.arange(1, 5)
    unknown = np.where([name in recorded for name in ds.trained_stage.values], 0.0, np.nan)
    known = ds.assign(exposure=(("stage", "entity"), np.tile(unknown, (len(recorded), 1))))
    for data in (ds, ds.sel(stage=last)):
        table = exposure(data, result)
        assert table is not None
        np.testing.assert_array_equal(table if "stage" not in table.dims else table.sel(stage=last), trained)
    table = exposure(known, result)
    assert table is not None
    assert not bool(table.isnull().any())


def test_results_say_whether_their_groups_are_ordered() -> None:
    ds = planted(groups=3, stages=4)
    centroids = sl.centroids(ds, progress=False)
    assert is_ordered(centroids)
    assert is_ordered(sl.drift(centroids))
    assert is_ordered(sl.centroids(ds, by="template", order=["what", "who"], progress=False))
    unordered = sl.centroids(ds, by="template", progress=False)
    assert unordered.attrs["ordered"] is False
    assert not is_ordered(unordered)
    same_names = ds.assign_coords(x=("entity", ds.trained_stage.values))
    assert not is_ordered(sl.centroids(same_names, by="x", progress=False))
    earlier = centroids.drop_attrs()
    assert is_ordered(earlier)
    assert not is_ordered(earlier.assign_coords(group=["a", "b", "c"]))
    assert not is_ordered(earlier.drop_vars("group"))


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


def test_small_groups_of_numbers_have_the_remedy_of_numbers() -> None:
    labels, units = np.arange(3).repeat(4), np.arange(12)
    with pytest.raises(InputError, match=r"5 folds of whole entities.*Merge rare numbers.*pairs='ordinal'"):
        require_folds(groups(labelled(labels), "x"), units, 5)
    with pytest.raises(InputError, match=r"or lower the requirement$"):
        require_folds(groups(labelled([f"n{v}" for v in labels]), "x"), units, 5)


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


def test_rows_with_the_same_index_label_are_one_entity() -> None:
    ds = planted(rows_per_entity=2)
    expected = clusters(ds)
    indexed = ds.set_index(entity="entity_id")
    assert "entity_id" not in indexed.coords
    np.testing.assert_array_equal(clusters(indexed), expected)
    np.testing.assert_array_equal(clusters(ds.drop_vars("entity_id")), np.arange(ds.sizes["entity"]))
    several = ds.set_index(entity=["trained_stage", "template"])
    np.testing.assert_array_equal(np.unique(clusters(several), return_inverse=True)[1], expected)
    assert groups(several, "trained_stage").names.tolist() == groups(ds, "trained_stage").names.tolist()


def test_joined_and_indexed_results_keep_their_order() -> None:
    ds = planted(groups=3, stages=4)
    parts = [sl.centroids(ds.sel(layer=[layer]), progress=False) for layer in (0, 1)]
    whole = xr.concat(parts, dim="layer", data_vars="minimal", coords="minimal", compat="override", join="outer")
    assert is_ordered(whole)
    halves = [ds.isel(entity=slice(0, 60)), ds.isel(entity=slice(60, None))]
    joined = xr.concat(halves, dim="entity", data_vars="minimal", coords="minimal", compat="override", join="outer")
    assert groups(joined, "trained_stage").ordering == "stage_order"
    again = sl.centroids(joined, progress=False).centroid
    np.testing.assert_allclose(again, whole.centroid.transpose(*again.dims), atol=1e-6)
