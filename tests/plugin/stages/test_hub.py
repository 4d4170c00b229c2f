"""Hub revisions as stages, loaded from a local server with tiny checkpoints named like those of Pythia."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import stratalens as sl
from stratalens.store import info
from support.hub import hub
from support.models import NAMES, save_checkpoint

MODEL = "EleutherAI/pythia-tiny"
STEPS = ("step0", "step1000", "step143000")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for seed, step in enumerate(STEPS):
        save_checkpoint(root / step, "neox", seed=seed)
    return {step: root / step for step in STEPS}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.csv"
    who = [f"{NAMES[i % len(NAMES)]} {i}" for i in range(12)]
    pd.DataFrame({"prompt": [f"Q: Who is {name}?\nA:" for name in who], "entity": who}).to_csv(path, index=False)
    return path


def command(arguments, endpoint, home, cwd):
    """Run stratalens in a separate process, because huggingface_hub reads the hub's address when it is imported."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    environment = {**inherited, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        environment.pop(proxy, None)
    call = [sys.executable, "-m", "stratalens", *arguments]
    return subprocess.run(call, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300)


def run_file(folder, prompts, steps):
    stages = [{"name": step, "revision": step} for step in steps]
    run = {"model": MODEL, "prompts": str(prompts), "store": "run.zarr", "stages": stages, "statistics": False}
    (folder / "run.yaml").write_text(json.dumps(run))
    return folder / "run.yaml"


@pytest.fixture(scope="module")
def recorded(folders, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    with hub({MODEL: folders}) as (endpoint, asked):
        done = command(["capture", str(run_file(folder, prompts, STEPS))], endpoint, folder / "home", folder)
    return folder, done, asked


def test_every_revision_is_a_stage_with_its_own_weights(recorded, folders, prompts):
    folder, done, asked = recorded
    assert done.returncode == 0, done.stderr
    for step in STEPS:
        assert f"GET /{MODEL}/resolve/{step}/model.safetensors" in asked or any(
            line.startswith("GET") and line.endswith("model.safetensors") for line in asked
        )
    ds = sl.open_store(folder / "run.zarr")
    assert list(ds.stage.values) == list(STEPS)
    assert len(set(ds.weights_fingerprint.values)) == 3
    text = pd.read_csv(prompts)["prompt"][3]
    for step in STEPS:
        model = AutoModelForCausalLM.from_pretrained(folders[step])
        ids = AutoTokenizer.from_pretrained(folders[step])(text, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**ids, output_hidden_states=True).hidden_states[2][0, -1].numpy()
        recorded_values = ds.resid_post.sel(stage=step, layer=1, token="last").isel(entity=3).values
        np.testing.assert_allclose(recorded_values, hidden, rtol=1e-4, atol=1e-5)


def test_a_second_capture_takes_what_the_cache_has_and_records_nothing_twice(recorded, folders, prompts):
    folder, _, _ = recorded
    shard = next((folder / "run.zarr" / "resid_post").rglob("c.*"))
    before = shard.stat().st_mtime_ns
    with hub({MODEL: folders}) as (endpoint, asked):
        done = command(["capture", str(run_file(folder, prompts, STEPS))], endpoint, folder / "home", folder)
    assert done.returncode == 0, done.stderr
    assert not [line for line in asked if line.startswith("GET") and "safetensors" in line]
    assert shard.stat().st_mtime_ns == before


def test_a_revision_that_is_not_there_is_named(folders, prompts, tmp_path):
    with hub({MODEL: folders}) as (endpoint, _):
        path = run_file(tmp_path, prompts, ("step0", "step512"))
        done = command(["capture", str(path)], endpoint, tmp_path / "home", tmp_path)
    assert done.returncode == 2, done.stderr
    assert "step512" in done.stderr
    assert MODEL in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_that_goes_away_fails_the_job_and_leaves_its_plan(folders, prompts, tmp_path):
    path = run_file(tmp_path, prompts, ("step0", "step1000"))
    with hub({MODEL: folders}, dead="step1000") as (endpoint, _):
        done = command(["capture", str(path)], endpoint, tmp_path / "home", tmp_path)
    assert done.returncode == 1, done.stderr
    assert "the hub did not answer" in done.stderr
    assert "step1000" in done.stderr
    assert "Traceback" not in done.stderr
    facts = info(tmp_path / "run.zarr")
    assert facts["lacking_stages"] == ["step1000"]
    with hub({MODEL: folders}) as (endpoint, _):
        done = command(["capture", str(path)], endpoint, tmp_path / "home", tmp_path)
    assert done.returncode == 0, done.stderr
    assert info(tmp_path / "run.zarr")["complete"]
