"""Checkpoint folders that cannot be loaded end a command with exit code 2 and one message."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.models import save_checkpoint


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"abc", "model.safetensors is damaged or incomplete"),
        ("config.json", b"{broken", "config.json cannot be read"),
        ("config.json", json.dumps({"model_type": "foo"}).encode(), "does not know"),
    ],
)
def test_a_bad_checkpoint_is_wrong_input(
    workplace: Any, invoke: Any, tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    folder = save_checkpoint(tmp_path / "bad", "neox")
    (folder / file).write_bytes(content)
    run_file = workplace(model=str(folder), stages=[{"name": "a", "path": str(folder)}])
    for arguments in (("capture", run_file), ("check", folder), ("forecast", run_file)):
        result = invoke(*arguments)
        text = " ".join(result.output.split())
        assert result.exit_code == 2, text
        assert message in text
        assert str(folder.name) in text
        assert "Traceback" not in text
