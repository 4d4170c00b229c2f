"""stratalens: `capture()` without statistics and with all of them, read back through `open_store`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from benchmarks.peers.hooked import bridge
from benchmarks.peers.method import Method
from benchmarks.peers.workload import POSITIONS, Workload


class Capture(Method):
    """From the model in memory to a durable store, including the fingerprint of the weights."""

    name = "stratalens"
    packages = ("stratalens", "transformer-lens")
    selects = "any stage, layer, prompt, token, by label"
    statistics: ClassVar[bool] = False

    def load(self, workload: Workload) -> Any:
        from transformers import AutoTokenizer

        self.model = bridge(workload)
        # The model's own tokenizer: the bridge's copy prepends a token.
        self.tokenizer = AutoTokenizer.from_pretrained(workload.model)
        return self.model.original_model.model.embed_tokens

    def run(self, workload: Workload, setting: str, folder: Path) -> None:
        from stratalens import PromptTable, capture

        capture(
            {"model": self.model}, PromptTable.read(workload.folder / "prompts.csv"), folder / "run.zarr",
            positions=POSITIONS[setting], dtype="float16", statistics=self.statistics, batch_size=workload.batch_size,
            block_size=workload.block_size(setting), tokenizer=self.tokenizer, progress=False,
        )  # fmt: skip

    def read(self, workload: Workload, setting: str, folder: Path, layer: int) -> np.ndarray:
        from stratalens import open_store

        values = open_store(folder / "run.zarr", chunks=None).resid_post.sel(stage="model", layer=layer).values
        if setting != "all":
            return values.reshape(-1, workload.width)
        # Full sequences are aligned at the end: the last column of a row is its last token.
        return np.concatenate([row[len(row) - n :] for row, n in zip(values, workload.lengths, strict=True)])


class CaptureWithStatistics(Capture):
    """The same with 8 statistics of every activation and all of the output, which need logits at every token."""

    name = "stratalens, all statistics"
    statistics = True


METHODS = (Capture, CaptureWithStatistics)
