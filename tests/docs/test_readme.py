"""The README's example, run as it is written, in a folder that holds what it names."""

import re

import pandas as pd

import stratalens as sl
from support.models import NAMES, save_checkpoint
from support.paths import ROOT

README = ROOT / "README.md"


def example() -> str:
    (block,) = re.findall(r"<!-- example.*?-->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return block


def test_the_example_is_short():
    assert len([line for line in example().splitlines() if line.strip()]) <= 15


def test_the_example_runs_as_written(tmp_path, monkeypatch, capsys):
    for seed, name in enumerate(("base", "week1", "week2")):
        save_checkpoint(tmp_path / "checkpoints" / name, "llama", seed=seed)
    who = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(40)]
    pd.DataFrame(
        {
            "prompt": [f"Q: Who is {name}?\nA:" for name in who],
            "entity": who,
            "trained_stage": [("week1", "week2")[i % 2] for i in range(40)],
        }
    ).to_csv(tmp_path / "prompts.csv", index=False)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(example(), "README.md", "exec"), names)
    assert names["ds"].resid_post.dims == ("stage", "layer", "entity", "token", "d_model")
    assert "resid_post" in (tmp_path / "sweep.html").read_text()
    assert sl.verify_store(tmp_path / "run.zarr").ok
    assert "week1 v week2" in capsys.readouterr().out


def test_the_run_file_is_one(tmp_path):
    from stratalens.plugin.cli.run_file import read_run_file

    (block,) = re.findall(r"```yaml\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "run.yaml").write_text(block)
    run = read_run_file(tmp_path / "run.yaml")
    assert [stage.name for stage in run.stages] == ["base", "week1", "week2"]
    assert run.positions == ("entity_last", "last")
