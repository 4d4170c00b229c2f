"""The commands on a real store of a tiny model: what they print, what they leave, how they exit."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml

import stratalens as sl


def test_capture_leaves_a_complete_store_and_the_run_it_made(recorded):
    ds = sl.open_store(recorded)
    assert ds.stage.values.tolist() == ["base", "s1", "s2", "s3"]
    assert bool(ds.recorded.all())
    run = yaml.safe_load((recorded.parent / "run.zarr.run.yaml").read_text())
    assert run["batch_size"] == "auto"
    assert run["sites"] == ["resid_post"]


def test_a_second_capture_changes_no_byte(recorded, invoke):
    before = {path: path.read_bytes() for path in recorded.rglob("*") if path.is_file()}
    again = invoke("capture", recorded.parent / "run.yaml")
    assert again.exit_code == 0, again.output
    assert {path: path.read_bytes() for path in recorded.rglob("*") if path.is_file()} == before


def test_no_resume_refuses_a_store_that_is_there(recorded, invoke):
    refused = invoke("capture", recorded.parent / "run.yaml", "--no-resume")
    assert refused.exit_code == 2
    assert "run.zarr" in refused.stderr


def test_info_as_json_is_one_object(recorded, invoke):
    facts = json.loads(invoke("info", recorded, "--json").stdout)
    assert facts["sites"] == ["resid_post"]
    assert facts["completeness"]["s3"]["resid_post"] == 1.0


def test_info_for_a_person_names_stages_sites_and_completeness(recorded, invoke):
    text = invoke("info", recorded).stdout
    assert [
        word for word in ("s3", "resid_post", "100%", "blocks.{layer}", "tokenizer_fingerprint") if word not in text
    ] == []


def test_verify_is_silent_about_a_whole_store_and_names_damage(recorded, invoke, tmp_path):
    assert json.loads(invoke("verify", recorded, "--json").stdout)["ok"] is True
    import shutil

    copy = tmp_path / "copy.zarr"
    shutil.copytree(recorded, copy)
    shard = max((p for p in (copy / "resid_post").iterdir() if p.name.startswith("c.")), key=lambda p: p.name)
    raw = bytearray(shard.read_bytes())
    raw[10] ^= 1
    shard.write_bytes(raw)
    damaged = invoke("verify", copy)
    assert damaged.exit_code == 1
    assert "resid_post" in damaged.stdout
    assert "s3" in damaged.stdout


def test_repair_then_capture_records_just_that_again(recorded, invoke, tmp_path):
    import shutil

    for name in ("prompts.csv", "run.yaml"):
        shutil.copy(recorded.parent / name, tmp_path / name)
    copy = tmp_path / "run.zarr"
    shutil.copytree(recorded, copy)
    shard = max((p for p in (copy / "resid_post").iterdir() if p.name.startswith("c.")), key=lambda p: p.name)
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    invoke("verify", copy, "--repair")
    assert not bool(sl.open_store(copy).recorded.all())
    again = invoke("capture", tmp_path / "run.yaml")
    assert again.exit_code == 0, again.output
    assert shard.read_bytes() == whole
    assert invoke("verify", copy).exit_code == 0


def test_analyze_then_report(recorded, invoke, tmp_path):
    from stratalens.analyses.results import read_results

    done = invoke("analyze", recorded, "--verbs", "centroids,probes", "-o", tmp_path / "results")
    assert done.exit_code == 0, done.output
    results = read_results(tmp_path / "results")
    assert results["probes"].attrs["site"] == "resid_post"
    assert results["centroids"].centroid.sizes["group"] == 3
    page = invoke("report", recorded, "-o", tmp_path / "report.html")
    assert page.exit_code == 0, page.output
    assert "resid_post" in (tmp_path / "report.html").read_text()


def test_export_is_the_store(recorded, invoke, tmp_path):
    done = invoke("export", recorded, "--site", "resid_post", "--layer", "1", "--to", tmp_path / "a.npy")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), sl.open_store(recorded).resid_post.sel(layer=1).values)


def test_forecast_tells_the_size_before_and_writes_nothing(workplace, invoke):
    path = workplace()
    before = sorted(p.name for p in workplace.folder.iterdir())
    forecast = json.loads(invoke("forecast", path, "--json").stdout)
    assert sorted(p.name for p in workplace.folder.iterdir()) == before
    assert invoke("capture", path).exit_code == 0
    stored = json.loads(invoke("info", workplace.folder / "run.zarr", "--json").stdout)
    assert forecast["bytes"] == stored["bytes"]
    assert forecast["files"] == stored["files"]


@pytest.mark.parametrize("command", ["info", "verify", "analyze", "report"])
def test_a_store_that_is_not_there_is_wrong_input(command, invoke, tmp_path):
    result = invoke(command, tmp_path / "nothing.zarr")
    assert result.exit_code == 2
    assert "nothing.zarr" in result.stderr
    assert "Traceback" not in result.output


def test_the_installed_command_answers(tmp_path):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "stratalens", *arguments], capture_output=True, text=True)

    assert run("--version").stdout.startswith("stratalens ")
    failed = run("info", str(tmp_path / "x.zarr"))
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")
    assert "Traceback" in run("--debug", "info", str(tmp_path / "x.zarr")).stderr
