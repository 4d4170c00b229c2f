"""Checkpoints of tiny models, prompts and a recorded store, shared by the command-line tests."""

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from stratalens.plugin.cli.app import app
from support.models import NAMES, save_checkpoint


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("base", "s1", "s2", "s3")):
        save_checkpoint(folder / name, "llama", seed=seed)
    return folder


def prompts(entities=36):
    names = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(entities)]
    return pd.DataFrame(
        {
            "prompt": [f"Q: Who is {name}?\nA:" for name in names],
            "entity": names,
            "trained_stage": [("s1", "s2", "s3")[i % 3] for i in range(entities)],
        }
    )


@pytest.fixture
def workplace(tmp_path, checkpoints):
    """A function that writes a valid run file with some keys changed, in a folder with prompts."""
    prompts().to_csv(tmp_path / "prompts.csv", index=False)

    def run_file(**changes):
        keys = {
            "model": str(checkpoints / "base"),
            "prompts": "prompts.csv",
            "store": "run.zarr",
            "positions": ["last", "entity_last"],
            "stages": [{"name": name, "path": str(checkpoints / name)} for name in ("base", "s1", "s2", "s3")],
            **changes,
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in keys.items() if value is not None}))
        return path

    run_file.folder, run_file.checkpoints = tmp_path, checkpoints
    return run_file


@pytest.fixture(scope="session")
def invoke():
    def call(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return call


@pytest.fixture(scope="session")
def recorded(tmp_path_factory, checkpoints, invoke):
    """A store recorded by `stratalens capture`."""
    folder = tmp_path_factory.mktemp("recorded")
    prompts().to_csv(folder / "prompts.csv", index=False)
    keys = {
        "model": str(checkpoints / "base"),
        "prompts": "prompts.csv",
        "store": "run.zarr",
        "positions": ["last", "entity_last"],
        "stages": [{"name": name, "path": str(checkpoints / name)} for name in ("base", "s1", "s2", "s3")],
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(keys))
    result = invoke("capture", folder / "run.yaml")
    assert result.exit_code == 0, result.output
    return folder / "run.zarr"
