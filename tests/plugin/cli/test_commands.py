"""The commands on a real store of a tiny model: their output, their files and their exit codes."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

import stratalens as sl
from stratalens.store import ActivationWriter, create
from stratalens.store.format.schema import site_variable
from support.stores import HOOK, make_labels, make_store
from support.thorough import thorough


def test_capture_writes_a_complete_store_and_its_run_file(recorded):
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
    lines = [line for line in again.stderr.splitlines() if line]
    assert lines[:4] == [f"{n} ({i} of 4): complete, skipped" for i, n in enumerate(("base", "s1", "s2", "s3"), 1)]
    committed = f"nothing to do: every row of every stage of {recorded} is committed"
    assert lines[4:] == [f"{committed} (`stratalens verify` checks the bytes)"]


def test_a_stage_with_the_weights_of_another_is_refused_and_not_added_to_the_store(workplace, invoke, checkpoints):
    stages, store = [{"name": n, "path": str(checkpoints / n)} for n in ("base", "s1")], workplace.folder / "run.zarr"
    assert invoke("capture", workplace(stages=stages)).exit_code == 0
    again = [*stages, {"name": "again", "path": str(checkpoints / "s1")}]
    refused = invoke("capture", workplace(stages=again))
    assert refused.exit_code == 2
    assert "error: stages 's1' and 'again' have the same weights (fingerprint " in refused.stderr
    assert "not started" not in invoke("info", store).stdout
    assert json.loads(invoke("info", store, "--json").stdout)["complete"] is True
    allowed = invoke("capture", workplace(stages=again, allow_same_weights=True))
    assert allowed.exit_code == 0, allowed.output
    assert sl.open_store(store).stage.values.tolist() == ["base", "s1", "again"]


def test_stages_of_a_run_file_are_placed_by_name_unless_they_have_numbers(workplace, invoke, checkpoints):
    def stages(*names, **orders):
        return [{"name": n, "path": str(checkpoints / n), "order": orders.get(n)} for n in names]

    store = workplace.folder / "run.zarr"
    assert invoke("capture", workplace(stages=stages("base", "s2"))).exit_code == 0
    between = invoke("capture", workplace(stages=stages("base", "s1", "s2")))
    assert between.exit_code == 2
    assert "cannot insert s1 before" in between.stderr
    assert "Record all stages into a new store" in between.stderr
    assert "not started" not in invoke("info", store).stdout
    assert (
        invoke("capture", workplace(stages=stages("s2", "s3"))).exit_code == 0
    )  # without the first stage of the store
    assert sl.open_store(store).stage_order.values.tolist() == [0, 1, 2]
    numbered = invoke("capture", workplace(stages=stages("s1", s1=1)))
    assert numbered.exit_code == 2
    assert 'has "s2: 1", got "s1: 1"' in numbered.stderr


def test_no_resume_refuses_an_existing_store(recorded, invoke):
    refused = invoke("capture", recorded.parent / "run.yaml", "--no-resume")
    assert refused.exit_code == 2
    assert "run.zarr" in refused.stderr


def test_info_as_json_is_one_object(recorded, invoke):
    facts = json.loads(invoke("info", recorded, "--json").stdout)
    assert facts["sites"] == ["resid_post"]
    assert facts["completeness"]["s3"]["resid_post"] == 1.0


def test_info_as_text_names_stages_sites_and_completeness(recorded, invoke):
    text = invoke("info", recorded).stdout
    assert [
        word for word in ("s3", "resid_post", "100%", "blocks.{layer}", "tokenizer_fingerprint") if word not in text
    ] == []


def test_an_incomplete_stage_does_not_count_as_recorded(invoke, tmp_path):
    """Text, JSON and HTML agree about a stage without rows and about a stage that is missing a site."""
    path = make_store(tmp_path / "run.zarr", ["base", "week1"], 2, 8, statistics=False)
    with ActivationWriter(path) as writer, writer.stage("week2", order=2, fingerprint="sha256:week2"):
        page = writer._repr_html_()
    state = "not complete: 2 of 3 stages complete; week2 at 0%"
    assert f"{path}: {state}<" in page
    assert invoke("info", path).stdout.startswith(f"# {path}: {state}\n")
    (path / ".stratalens" / "planned.json").write_text('["base", "week1", "week2", "week3"]')
    assert invoke("info", path).stdout.startswith(f"# {path}: {state.replace('3', '4')}; not started: week3\n")
    facts = json.loads(invoke("info", path, "--json").stdout)
    assert (facts["complete"], facts["whole_stages"], facts["lacking_stages"]) == (False, ["base", "week1"], ["week3"])

    sites = [site_variable(name, ["d_model"], [8], "float32", HOOK) for name in ("resid_post", "z")]
    labels = make_labels(8, ["base", "week1"])
    create(path, entities=labels, layers=[0, 1], tokens=["last"], variables=sites, provenance=facts["provenance"])
    state = "0 of 4 stages complete; base at 0% of z, week1 at 0% of z, week2 at 0%; not started: week3\n"
    assert state in invoke("info", path).stdout
    assert json.loads(invoke("info", path, "--json").stdout)["whole_stages"] == []


def test_verify_accepts_a_complete_store_and_names_damage(recorded, invoke, tmp_path):
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
    what = r"stage 's3', resid_post, .*: bytes differ from their checksum \(.*/resid_post/c\..*\)"
    assert re.fullmatch(rf"damaged\t{what}\n1 damaged: .*\n", damaged.stdout)


def test_verify_reports_an_unfinished_change(recorded, invoke, tmp_path):
    """A writer killed just before it replaces the root metadata leaves no damage, and --repair removes its files."""
    import shutil

    copy = tmp_path / "copy.zarr"
    shutil.copytree(recorded, copy)
    root = (copy / "zarr.json").read_bytes()
    with ActivationWriter(copy) as writer:
        writer.stage("late", order=99, fingerprint="f")
    (copy / "zarr.json").write_bytes(root)
    verified = invoke("verify", copy)
    assert verified.exit_code == 0
    assert "unfinished\ta change of stages has not finished" in verified.stdout
    assert len(json.loads(invoke("verify", copy, "--json").stdout)["unfinished"]) == 1
    assert invoke("verify", copy, "--repair").exit_code == 0
    assert "unfinished" not in invoke("verify", copy).stdout


def test_repair_then_capture_records_the_damaged_rows_again(recorded, invoke, tmp_path):
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

    done = invoke("analyze", recorded, "--verbs", "centroids,probes", "--permutations", "0", "-o", tmp_path / "results")
    assert done.exit_code == 0, done.output
    results = read_results(tmp_path / "results")
    assert results["probes"].attrs["site"] == "resid_post"
    assert results["centroids"].centroid.sizes["group"] == 3
    page = invoke("report", recorded, "--permutations", "0", "-o", tmp_path / "report.html")
    assert page.exit_code == 0, page.output
    assert "resid_post" in (tmp_path / "report.html").read_text()


def test_an_export_equals_the_store(recorded, invoke, tmp_path):
    done = invoke("export", recorded, "--site", "resid_post", "--layer", "1", "--to", tmp_path / "a.npy")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), sl.open_store(recorded).resid_post.sel(layer=1).values)


def test_forecast_predicts_the_size_and_writes_nothing(workplace, invoke):
    path = workplace()
    before = sorted(p.name for p in workplace.folder.iterdir())
    forecast = json.loads(invoke("forecast", path, "--json").stdout)
    assert sorted(p.name for p in workplace.folder.iterdir()) == before
    assert invoke("capture", path).exit_code == 0
    stored = json.loads(invoke("info", workplace.folder / "run.zarr", "--json").stdout)
    assert forecast["bytes"] == stored["bytes"]
    assert forecast["files"] == stored["files"]


def test_a_capture_prints_progress_and_info_names_missing_stages(workplace, invoke, monkeypatch):
    from stratalens.plugin.capture import run as capturing

    path, store = workplace(), workplace.folder / "run.zarr"
    table = pd.read_csv(workplace.folder / "prompts.csv")
    table.loc[:2, "trained_stage"] = ["S1", "s 2", "s3"]
    table["colour"] = ["red", "blue"] * 18
    table.to_csv(workplace.folder / "prompts.csv", index=False)
    real = capturing.loaded_model

    def stop(stage, *rest):
        if stage.name == "s1":
            raise KeyboardInterrupt
        return real(stage, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(capturing, "loaded_model", stop)
        ended = invoke("capture", path)
    assert ended.exit_code == 130
    assert "warning: label column 'trained_stage' names stages in some rows only: 'S1' (1 row; is 's1'" in ended.stderr
    assert "base (1 of 4): 0 of 36 rows\nbase (1 of 4): 36 of 36 rows, done in " in ended.stderr
    assert "Loading" not in ended.stderr
    description = invoke("info", store).stdout
    assert "run.zarr: not complete: 1 of 4 stages complete; not started: s1, s2, s3\n" in description
    assert "s2\t\tnot started\t0%" in description
    again = invoke("capture", path)
    assert again.exit_code == 0, again.output
    assert "base (1 of 4): complete, skipped\ns1 (2 of 4): 0 of 36 rows\n" in again.stderr
    assert f"recorded {store}" in again.stderr
    assert invoke("info", store).stdout.startswith(f"# {store}: complete\n")


@thorough
def test_a_report_says_what_the_store_lacks(workplace, invoke):
    store = workplace.folder / "run.zarr"
    table = pd.read_csv(workplace.folder / "prompts.csv")
    table.assign(colour=["red", "blue"] * 18).to_csv(workplace.folder / "prompts.csv", index=False)
    stages = [{"name": "base", "path": str(workplace.checkpoints / "base")}]
    assert invoke("capture", workplace(stages=stages)).exit_code == 0
    (store / ".stratalens" / "planned.json").write_text('["base", "s1", "s2", "s3"]')
    page = workplace.folder / "report.html"
    shown = invoke("report", store, "--by", "colour", "-o", page)
    assert shown.exit_code == 0, shown.output
    state = "is not complete: 1 of 4 stages complete; not started: s1, s2, s3"
    assert f"{state}; run the capture again to record the rest" in shown.stderr
    assert f"The store {state}." in page.read_text()
    assert str(workplace.folder) not in re.sub("<script.*?</script>", "", page.read_text(), flags=re.S)


def test_labels_are_corrected_in_a_store(workplace, invoke):
    path, store, prompts = workplace(), workplace.folder / "run.zarr", workplace.folder / "prompts.csv"
    assert invoke("capture", path).exit_code == 0
    table = pd.read_csv(prompts)
    table.loc[5, "trained_stage"] = "s1"
    table.assign(colour="red").to_csv(prompts, index=False)
    refused = invoke("capture", path)
    assert refused.exit_code == 2
    assert "(row 5) is 's3' in the store, 's1' in the table" in refused.stderr
    assert "'trained_stage' of 'p" in refused.stderr
    assert f"stratalens label {store} TABLE" in refused.stderr
    done = invoke("label", store, prompts)
    assert done.exit_code == 0, done.output
    assert "trained_stage: 1 row changed\ncolour: 36 rows changed" in done.stderr
    assert sl.open_store(store).trained_stage.values[5] == "s1"
    assert "\nok: 4 blocks, " in "\n" + invoke("verify", store).stdout
    assert invoke("capture", path).exit_code == 0
    assert "nothing to do" in invoke("label", store, prompts).stderr
    dropped = invoke("label", store, workplace.folder / "prompts.csv", "--drop", "colour")
    assert dropped.exit_code == 2
    assert "column 'colour' is in the table and in drop: remove it from one of them" in dropped.stderr


def test_a_forecast_of_a_short_run_is_the_same_number_in_text_and_json(workplace, invoke, monkeypatch):
    """A fixed clock makes two forecasts equal. A time below 0.05 s is not rounded to tenths of a second."""
    clock = iter([0.0, 1e-3, 0.0, 1e-3])
    monkeypatch.setattr("stratalens.plugin.capture.forecast.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    facts = json.loads(invoke("forecast", workplace(), "--json").stdout)
    assert 0 < facts["seconds"] < 0.05
    assert f"without loading models)\t{facts['seconds']}\n" in invoke("forecast", workplace()).stdout


def test_a_forecast_names_its_exclusions(workplace, invoke):
    forecast = invoke("forecast", workplace()).stdout
    assert "memory_bytes (the two block buffers, without the model and its forward pass)\t" in forecast
    assert "seconds (forward passes, without loading models)\t" in forecast
    for command in ("study", "forecast"):
        assert "demo, smoke, cpu or paper" in " ".join(invoke(command, "--help").stdout.replace("│", " ").split())


@pytest.mark.parametrize("command", ["info", "verify", "analyze", "report"])
def test_a_missing_store_is_wrong_input(command, invoke, tmp_path):
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
