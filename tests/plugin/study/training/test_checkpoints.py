"""Checkpoints whose weights a run keeps."""

from stratalens.plugin.study.config.settings import validate_settings
from stratalens.plugin.study.training.checkpoints import retained_stages, stages_still_needed


def test_retained_and_needed_checkpoints_follow_the_policy():
    names = ["untrained", "s1", "s2", "s3", "mixed"]
    plain = {"stages": 3, "after": [{"name": "mixed"}]}
    for policy, retained in (("all", names), ("last", ["s3", "mixed"]), ("none", [])):
        assert retained_stages(validate_settings({**plain, "keep_checkpoints": policy}, ""), names) == retained
    lora = validate_settings({**plain, "keep_checkpoints": "last", "train": {"method": "lora"}}, "")
    assert retained_stages(lora, names) == ["untrained", "s3", "mixed"]
    reporting = validate_settings({**plain, "keep_checkpoints": "none", "self_report": {}}, "")
    assert stages_still_needed(reporting, names[:3]) == ["untrained", "s2"]
    assert stages_still_needed(reporting, names) == ["untrained", "s3", "mixed"]
