"""`stratalens check MODEL`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.models import save_checkpoint


def test_a_checkpoint_that_is_right(tmp_path: Path, invoke: Any) -> None:
    folder = save_checkpoint(tmp_path / "llama")
    (tmp_path / "prompts.csv").write_text("prompt,entity\nWho is Ann?,Ann\nWho is Bob then?,Bob\n")
    result = invoke("check", folder, "--prompts", tmp_path / "prompts.csv")
    assert result.exit_code == 0, result.output
    assert "Hugging Face module" in result.output
    assert "Every value that can be checked is what the model computes." in result.output


def test_json(tmp_path: Path, invoke: Any) -> None:
    result = invoke("check", save_checkpoint(tmp_path / "neox", "neox"), "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["ok"] is True
    assert {"check", "site", "layer", "verdict", "difference", "note"} == set(document["findings"][0])


def test_a_model_that_does_not_exist(tmp_path: Path, invoke: Any) -> None:
    (tmp_path / "empty").mkdir()
    assert invoke("check", tmp_path / "empty").exit_code == 2
