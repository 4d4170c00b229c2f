"""`stratalens preflight`, and a run file with `revisions`, against a hub on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from huggingface_hub import constants

from stratalens.plugin.cli.run_file import read_run_file
from stratalens.store import info
from stratalens.store.errors import InputError
from support.hub import endpoint_constants, hub
from support.hub_suite import copy_weights, suite
from support.models import save_checkpoint

MODEL = "EleutherAI/pythia-tiny"


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], list[str]]]:
    """A function that serves models at the address that huggingface_hub uses."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    running: list[Any] = []

    def start(models: Any) -> list[str]:
        running.append(hub(models))
        address, requests = running[-1].__enter__()
        for name, value in endpoint_constants(address).items():
            monkeypatch.setattr(constants, name, value)
        return requests  # type: ignore[no-any-return]

    yield start
    for server in running:
        server.__exit__(None, None, None)


def test_preflight_prints_the_faults_and_exits_with_1(serve: Any, invoke: Any, tmp_path: Path) -> None:
    folders = suite(tmp_path, ["step0", "step1", "step1000", "step2000"])
    serve({MODEL: folders})
    sound = invoke("preflight", MODEL)
    assert sound.exit_code == 0, sound.output
    assert "ok: 4 of 4 revisions are sound" in sound.stdout
    copy_weights(folders, "step0", "step1")
    faulty = invoke("preflight", MODEL, "step*")
    assert faulty.exit_code == 1
    row = next(line.split("\t") for line in faulty.stdout.splitlines() if line.startswith("step1\t"))
    assert row[1:4] == ["identical", "yes", "model.safetensors"]
    assert "issues/83" in row[4]
    assert "faulty: 3 of 4 revisions are sound" in faulty.stdout
    result = json.loads(invoke("preflight", MODEL, "--json").stdout)
    assert (result["ok"], result["faulty"]) == (False, ["step1"])
    assert [f["verdict"] for f in result["files"]] == ["identical", "identical", "ok", "ok"]
    unknown = invoke("preflight", MODEL, "step0", "step7")
    assert unknown.exit_code == 2
    assert "has no revision 'step7'" in unknown.stderr


def test_a_run_file_with_revisions(serve: Any, invoke: Any, tmp_path: Path) -> None:
    steps = ("step0", "step1", "step1000")
    folders = {step: save_checkpoint(tmp_path / step, "neox", seed=max(0, n - 1)) for n, step in enumerate(steps)}
    requests = serve({MODEL: folders})
    pd.DataFrame({"prompt": [f"Q: Who is n{i}?" for i in range(6)]}).to_csv(tmp_path / "prompts.csv", index=False)
    keys = {
        "model": MODEL,
        "revisions": "step*",
        "prompts": "prompts.csv",
        "store": "runs/run.zarr",
        "statistics": False,
    }
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(keys))
    refused = invoke("capture", run)
    assert refused.exit_code == 2
    assert "issues/83" in refused.stderr
    run.write_text(yaml.safe_dump({**keys, "faults": "skip_known"}))
    forecast = json.loads(invoke("forecast", run, "--json").stdout)
    assert forecast["checkpoints"] == 2
    assert forecast["rows"] == 12
    weights = sum((folders[step] / "model.safetensors").stat().st_size for step in ("step0", "step1000"))
    assert weights < forecast["download_bytes"] == forecast["checkpoint_disk_bytes"] < weights + 200_000
    assert not [r for r in requests if r.endswith("model.safetensors") and r.startswith("GET")]
    done = invoke("capture", run, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["stages"] == ["step0", "step1000"]
    assert "step1000 (2 of 2): recorded" in done.stderr
    assert "left in all" in done.stderr
    assert info(tmp_path / "runs" / "run.zarr")["complete"]
    assert read_run_file(tmp_path / "runs" / "run.zarr.run.yaml").revisions == "step*"
    again = invoke("capture", run)
    assert "2 of 2 checkpoints are recorded already" in again.stderr
    assert "nothing to do" in again.stderr


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"revisions": "step*", "stages": ["a"]}, "stages and revisions: keep one"),
        ({"faults": "skip"}, "faults and scratch are about `revisions`"),
        ({"revisions": []}, "revisions: is empty"),
        ({"revisions": "step*", "faults": "ignore"}, "faults"),
        ({"revisions": "step*", "model": None}, "model: missing"),
    ],
)
def test_wrong_keys(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    values = {"model": MODEL, "prompts": "p.csv", "store": "run.zarr", **keys}
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}))
    with pytest.raises(InputError, match=words):
        read_run_file(path)
