import re

import pytest
import yaml

from stratalens.plugin.study.config.presets import PRESETS, get_preset
from stratalens.plugin.study.config.settings import StudySettings, read_settings, validate_settings, write_settings
from stratalens.store.errors import InputError
from support.paths import DOCS


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_written_run_file_replays(name, tmp_path):
    settings = get_preset(name, seed=4)
    write_settings(settings, tmp_path / "run.yaml")
    assert read_settings(tmp_path / "run.yaml") == settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sed": 1}, "sed: unknown key; did you mean 'seed'"),
        ({"train": {"epoch": 1}}, "train.epoch: unknown key; did you mean 'epochs'"),
        ({"train": {"optimizer": "adm"}}, "train.optimizer"),
        ({"record": {"templates": ["whom"]}}, "did you mean 'who'"),
        ({"stages": 1}, "stages"),
    ],
)
def test_wrong_keys_and_values_are_named(values, words, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=words):
        read_settings(tmp_path / "run.yaml")


def test_missing_and_broken_files_are_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_settings(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="key: value"):
        read_settings(tmp_path / "list.yaml")
    with pytest.raises(InputError, match="did you mean 'smoke'"):
        get_preset("smok")


def test_the_run_files_on_the_page_about_the_study_are_valid():
    page = (DOCS / "study.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        assert validate_settings(yaml.safe_load(block), "docs/study.md") != StudySettings()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"after": [{"name": "s2"}]}, "is the name of a stage"),
        ({"after": [{"name": "m", "train_on": ["s9"]}]}, "no stage 's9'"),
        ({"after": [{"name": "m"}, {"name": "m"}]}, "names must differ"),
        ({"stage_epochs": {"s7": 2}}, "no stage 's7'"),
        ({"interventions": {}}, "add self_report or conflict"),
        ({"interventions": {"positions": ["lst"]}, "self_report": {}}, "'lst' is not recorded: did you mean 'last'"),
        ({"interventions": {}, "self_report": {}, "record": {"sites": ["ln_final"]}}, "add it to record.sites"),
        ({"interventions": {"doses": [0, 1]}, "self_report": {}}, "a dose of 0"),
        ({"interventions": {"null_doses": [2, 2]}, "self_report": {}}, "list each value once"),
        ({"interventions": {"random": 19}, "self_report": {}}, "interventions.random"),
    ],
)
def test_wrong_courses_and_interventions_are_refused(values, words):
    assert StudySettings().after == ()
    with pytest.raises(InputError, match=words):
        validate_settings(values, "here")


def test_a_run_file_names_the_table_from_its_own_folder(tmp_path):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump({"entities": {"file": "things.csv", "questions": {"size": ["How big was {x}?"]}}})
    )
    assert read_settings(tmp_path / "run.yaml").entities.file == str(tmp_path / "things.csv")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"entities": {"fil": "things.csv"}}))
    with pytest.raises(InputError, match=r"entities\.fil: unknown key; did you mean 'file'"):
        read_settings(tmp_path / "run.yaml")


def test_seeds_are_given_once():
    with pytest.raises(InputError, match="list each seed once"):
        validate_settings({"seeds": [1, 1]}, "here")
