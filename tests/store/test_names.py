"""Names that are listed twice or have blanks around them are refused, with their places."""

import pytest

from stratalens.store.errors import InputError
from stratalens.store.names import check_distinct, parse_json, parse_yaml


def test_repeated_names_are_listed_with_their_places():
    with pytest.raises(InputError) as caught:
        check_distinct(["a", "b", "a", "b", "a"], "prompt_id", "p.csv", place="row", remedy="rename them")
    assert str(caught.value) == (
        "p.csv: prompt_id 'a' is listed 3 times (rows 0, 2, 4); 'b' is listed twice (rows 1, 3); rename them"
    )


def test_many_repeated_names_are_counted():
    with pytest.raises(InputError, match="and 3 more; rename"):
        check_distinct([*range(8), *range(8)], "layer")


def test_distinct_names_pass():
    check_distinct(["a", "A", "a b", "", 1, None], "stage")
    check_distinct([" a"], "stage", blanks=False)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"x": {"a": [], "b": 1, "a": {}}}]'])
def test_a_key_twice_in_json(text):
    with pytest.raises(InputError, match="f: key 'a' is listed twice"):
        parse_json(text, "f")


def test_equal_keys_of_different_objects_pass():
    assert parse_json('[{"a": 1}, {"a": {"a": 2}}]') == [{"a": 1}, {"a": {"a": 2}}]
    assert parse_yaml("a: {a: 1}\nb: [{a: 1}, {a: 2}]\n", "f") == {"a": {"a": 1}, "b": [{"a": 1}, {"a": 2}]}


@pytest.mark.parametrize("text", ["a: 1\nb: {c: {d: 1, d: 2}}\n", "- - d: 1\n    d: 1\n", "? d\n: 1\nd: 2\n"])
def test_a_key_twice_in_yaml(text):
    with pytest.raises(InputError, match=r"f: key.* 'd' is listed twice \(lines "):
        parse_yaml(text, "f")


def test_yaml_that_refers_to_itself_is_read():
    document = parse_yaml("a: &x [1, *x]\nb: *x\n", "f")
    assert document["b"] is document["a"]


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: 2024-99-99", "a: !!python/object:os.system {}"])
def test_malformed_yaml_is_refused(text):
    with pytest.raises(InputError, match="f is not readable as YAML"):
        parse_yaml(text, "f")


def test_an_empty_document_is_none():
    assert parse_yaml("# nothing\n", "f") is None
