"""`stratalens init`: the run file that it writes is a valid one, and records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stratalens.plugin.cli.init_job import CheckpointFolder, natural_key, run_file_text
from stratalens.plugin.cli.run_file import read_run_file

PROMPTS = {"prompt": ["Who is Ann?", "Who is Bo?"] * 4, "entity": ["Ann", "Bo"] * 4, "habitat": ["sea", "land"] * 4}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_checkpoint(folder: Path, adapter: bool = False, **config: Any) -> None:
    folder.mkdir(parents=True)
    config = {"num_hidden_layers": 5} | config
    (folder / ("adapter_config.json" if adapter else "config.json")).write_text(json.dumps(config))
    (folder / "model.safetensors").touch()


def test_it_records_what_it_found(place: Path, checkpoints: Path, invoke: Any) -> None:
    pd.DataFrame(PROMPTS).assign(n=range(8)).to_csv("prompts.csv", index=False)
    done = invoke("init", checkpoints, "prompts.csv", "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["stages"] == ["base", "s1", "s2", "s3"]
    assert facts["by"] == "habitat"
    run = read_run_file("run.yaml")
    assert run.positions == ("entity_last", "last")
    text = Path("run.yaml").read_text()
    of_suites = ("revisions", "faults", "scratch")  # of a model on the hub, not of a folder
    absent = ("model", "allow_same_weights", *of_suites)
    assert [key for key in type(run).model_fields if f"{key}:" not in text and key not in absent] == []
    assert invoke("forecast", "run.yaml").exit_code == 0
    refused = invoke("init", checkpoints, "prompts.csv")
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert invoke("init", checkpoints, "prompts.csv", "--force").exit_code == 0


def test_stages_are_in_the_order_of_their_numbers(place: Path, invoke: Any) -> None:
    for name in ("step600", "step0", "step60", "final", "base model", "no"):
        make_checkpoint(place / "runs" / name)
    (place / "runs" / "logs").mkdir()
    done = invoke("init", "runs", "-o", "sub.yaml")
    assert done.exit_code == 0, done.output
    text = Path("sub.yaml").read_text()
    run = read_run_file("sub.yaml")
    assert [stage.name for stage in run.stages] == ["base model", "no", "step0", "step60", "step600", "final"]
    assert all(stage.path is not None and stage.path.is_dir() for stage in run.stages)
    assert "this model has 0 to 4" in text
    assert "replace: there is no table yet" in text


def test_adapters_name_their_base_model(place: Path, invoke: Any) -> None:
    for step in (10, 9):
        make_checkpoint(place / "lora" / f"checkpoint-{step}", adapter=True, base_model_name_or_path="org/model")
    pd.DataFrame(PROMPTS).to_csv("lora/table.csv", index=False)
    assert invoke("init", "lora").exit_code == 0
    run = read_run_file("run.yaml")
    assert run.model == "org/model"
    assert [stage.name for stage in run.stages] == ["checkpoint-9", "checkpoint-10"]
    assert all(stage.adapter is not None for stage in run.stages)
    assert run.prompts == place / "lora" / "table.csv"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone"], "is no folder"),
        (["empty"], "has no checkpoint: a checkpoint is a folder with config.json"),
        (["one", "gone.csv"], "gone.csv"),
        (["one", "-o", "no/run.yaml"], "another one with -o"),
        (["one", "-o", "empty", "--force"], "another one with -o"),
        (["one", "bad.csv"], "no column 'prompt'"),
    ],
)
def test_wrong_input(arguments: list[str], words: str, place: Path, invoke: Any) -> None:
    (place / "empty").mkdir()
    make_checkpoint(place / "one")
    Path("bad.csv").write_text("text\nx\n")
    before = sorted(place.rglob("*"))
    done = invoke("init", *arguments)
    assert done.exit_code == 2, done.output
    assert words in " ".join(done.stderr.split())
    assert sorted(place.rglob("*")) == before


NAMES = st.text(st.characters(exclude_characters="/\\", exclude_categories=("C", "Zl", "Zp")), min_size=1, max_size=12)


@given(st.lists(NAMES.filter(lambda name: name.strip() not in ("", ".", "..")), min_size=1, max_size=5, unique=True))
def test_any_name_survives_yaml(names: list[str]) -> None:
    folder = Path("/work/runs")
    stages = [CheckpointFolder(name, folder / name) for name in sorted(names, key=natural_key)]
    text = run_file_text(stages, folder / "a: b.csv", by=names[0], positions=["last"], folder=folder, model=None)
    document = yaml.safe_load(text)
    assert [stage["name"] for stage in document["stages"]] == [stage.name for stage in stages]
    assert [stage["path"] for stage in document["stages"]] == [stage.name for stage in stages]
    assert document["prompts"] == "a: b.csv"
    assert document["by"] == names[0]
