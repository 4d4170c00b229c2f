"""The prompt table of a run file, read with the tokenizer of the run where it has chats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratalens.plugin.prompts.table import PromptTable
    from stratalens.plugin.stages.stage import Stage


def read_prompts(path: Path, stages: Sequence[Stage], add_generation_prompt: bool = False) -> PromptTable:
    """Read a prompt table; the chat template of a table of chats is that of the first stage.

    Args:
        path: file of the table.
        stages: stages of the run, in training order.
        add_generation_prompt: end each chat with the tokens that start the turn of the assistant.

    Raises:
        InputError: the table is not valid, or the tokenizer cannot be loaded.
    """
    from stratalens.plugin.prompts.table import PromptTable

    def load() -> Any:
        from stratalens.plugin.stages.checkpoints import load_tokenizer

        return load_tokenizer(stages[0].source)

    return PromptTable.read(path, tokenizer=load, add_generation_prompt=add_generation_prompt)
