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


def test_the_run_files_of_the_page_about_the_study_are_some():
    page = (DOCS / "study.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 5
    for block in blocks:
        assert validate_settings(yaml.safe_load(block), "docs/study.md") != StudySettings()
