"""Run files: accepted keys, messages about wrong ones, and a written run file that reads back equal."""

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stratalens.plugin.cli.run_file import RunFile, read_run_file, write_run_file
from stratalens.store.errors import InputError

MINIMAL = {"model": "gpt2", "prompts": "prompts.csv", "store": "run.zarr"}


def written(tmp_path, **keys):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **keys}))
    return path


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"modle": "x"}, ["unknown key 'modle'", "did you mean 'model'"]),
        ({"stages": [{"nme": "a", "name": "b"}]}, ["stages.0", "unknown key 'nme'", "'name'"]),
        ({"stages": [{"path": "x"}]}, ["stages.0.name", "missing"]),
        ({"stages": [{"name": "a", "path": "x", "revision": "y"}]}, ["path and revision", "keep one"]),
        ({"stages": [{"name": "a"}, {"name": "a"}]}, ["stage 'a' is listed twice"]),
        ({"stages": ["a", "b", "a"]}, ["stage 'a' is listed twice"]),
        ({"stages": ["a", "b "]}, ["stage 'b ' has blanks", "write 'b'"]),
        ({"stages": ["a", False]}, ["stages.1.name", "in quotes", "got False"]),
        ({"stages": [{"name": 7, "revision": "x"}]}, ["stages.0.name", "in quotes", "got 7"]),
        ({"dtype": "int4"}, ["dtype", "bfloat16", "'int4'"]),
        ({"allow_same_weights": "perhaps"}, ["allow_same_weights", "boolean", "'perhaps'"]),
        ({"batch_size": 0}, ["batch_size", "greater than or equal to 1"]),
        ({"layers": ["first"]}, ["layers.0", "'first'"]),
        ({"stages": "base"}, ["stages", "{name: base, path: checkpoints/base}"]),
        ({"model": None}, ["model", "missing"]),
        ({"model": None, "stages": [{"name": "a", "revision": "x"}]}, ["'a' has no path"]),
    ],
)
def test_wrong_values_name_key_value_and_remedy(tmp_path, keys, words):
    with pytest.raises(InputError) as raised:
        read_run_file(written(tmp_path, **keys))
    assert [word for word in [*words, "run.yaml"] if word not in str(raised.value)] == []


def test_missing_file_lists_the_keys(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml does not exist.*prompts, store, model"):
        read_run_file(tmp_path / "nowhere.yaml")


def test_a_folder_is_not_a_run_file(tmp_path):
    store = tmp_path / "run.zarr"
    (store / ".stratalens").mkdir(parents=True)
    with pytest.raises(InputError, match=r"run\.zarr is a store, not a run file: give the YAML file"):
        read_run_file(store)
    written(tmp_path).rename(tmp_path / "run.zarr.run.yaml")
    with pytest.raises(InputError, match=r"run\.zarr\.run\.yaml is the run file of this store"):
        read_run_file(store)
    with pytest.raises(InputError, match="is a folder; give the YAML file"):
        read_run_file(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stages: {a: X, a: Y}", ["key of stages 'a' is listed twice (lines 4, 4)"]),
        ("stages:\n  a: X\n  b: Y\n  a: Z", ["key of stages 'a' is listed twice (lines 5, 7)"]),
        ("stages: {'a ': X}", ["key of stages 'a ' (line 4) has blanks around it; write 'a'"]),
        ("stages: [{name: a, path: X, path: Y}]", ["key of stages 'path' is listed twice"]),
        ("store: other.zarr", ["key 'store' is listed twice (lines 3, 4)"]),
        ("stages: {no: X, yes: Y}", ["line 4", "the name no as true or false", 'in quotes: "no"']),
        ("stages: {007: X}", ["the name 007 as a number", 'in quotes: "007"']),
        ("stages: {on: X}", ["the name on as true or false", 'in quotes: "on"']),
        ("stages: {2024-01-01: X}", ["the name 2024-01-01 as a date"]),
        ("stages: {~: X}", ["the name ~ as nothing"]),
    ],
)
def test_names_in_yaml_are_text_and_listed_once(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(f"model: gpt2\nprompts: p.csv\nstore: run.zarr\n{text}\n")
    with pytest.raises(InputError) as raised:
        read_run_file(path)
    assert [word for word in [*words, "run.yaml"] if word not in str(raised.value)] == []


def test_a_key_may_override_a_merged_one(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: gpt2\nprompts: p.csv\nstore: run.zarr\n"
        "stages:\n- &a {name: a, path: x, order: 3}\n- {<<: *a, name: b}\n- {<<: *a, name: c}\n"
    )
    assert [(stage.name, stage.order) for stage in read_run_file(path).stages] == [("a", 3), ("b", 3), ("c", 3)]


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "", "\x00"])
def test_malformed_yaml_is_refused_with_the_name_of_the_file(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"run\.yaml"):
        read_run_file(path)


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    path = written(tmp_path, model="weights", stages=[{"name": "a", "path": "weights/a"}])
    monkeypatch.chdir("/")
    run = read_run_file(path)
    assert run.prompts == tmp_path / "prompts.csv"
    assert run.store == tmp_path / "run.zarr"
    assert run.model == str(tmp_path / "weights")
    assert run.stages[0].path == tmp_path / "weights" / "a"


def test_stages_may_be_written_as_a_mapping_and_need_no_model(tmp_path):
    run = read_run_file(written(tmp_path, model=None, stages={"base": "checkpoints/base", "s1": "checkpoints/s1"}))
    assert [(stage.name, stage.path) for stage in run.stages] == [
        ("base", tmp_path / "checkpoints" / "base"),
        ("s1", tmp_path / "checkpoints" / "s1"),
    ]


names = st.text(st.characters(categories=("L", "N", "P", "Z")), min_size=1, max_size=12).filter(
    lambda name: name.strip() in ("", name)
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stages=st.lists(names, max_size=4, unique=True),
    layers=st.none() | st.lists(st.integers(0, 80), min_size=1, max_size=4, unique=True),
    positions=st.just("all") | st.lists(st.sampled_from(["last", "-2", "entity_last"]), min_size=1, unique=True),
    statistics=st.booleans() | st.just("all") | st.lists(st.sampled_from(["loss", "entropy"]), min_size=1, unique=True),
    batch=st.just("auto") | st.integers(1, 512),
)
def test_a_written_run_file_reads_back_equal(tmp_path, stages, layers, positions, statistics, batch):
    run = RunFile.model_validate(
        {
            **MINIMAL,
            "prompts": str(tmp_path / "p.csv"),
            "store": str(tmp_path / "s.zarr"),
            "stages": [{"name": name, "revision": "main"} for name in stages],
            "layers": layers,
            "positions": positions,
            "statistics": statistics,
            "batch_size": batch,
        }
    )
    write_run_file(run, tmp_path / "again.yaml")
    assert read_run_file(tmp_path / "again.yaml") == run
