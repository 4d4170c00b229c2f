"""Record real activations for the probe benchmarks: SmolLM2-135M, 6000 short prompts in six groups, two tokens.

The prompts ask about invented names. The names of each group prefer some letters, so that a probe can distinguish the
groups, but not perfectly. stratalens records the activations and writes one array of shape (layers, 6000, tokens, 576),
with the groups in blocks of 1000.

    python -m benchmarks.data.real_activations activations.npy [--layers 12 16]

Not part of the suite: it measures nothing and only prepares data for the probe benchmarks.
"""

from __future__ import annotations

import argparse
import string
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

import stratalens as sl
from stratalens.plugin.study.models.smollm import load_smollm2

GROUPS, EACH = 6, 1000


def prompts(seed: int = 0) -> pd.DataFrame:
    """Return 6000 prompts by group; group g draws four letters of the alphabet 1.5 times as often as the others."""
    rng = np.random.default_rng(seed)
    letters = list(string.ascii_lowercase)
    rows = []
    for group in range(GROUPS):
        share = np.ones(len(letters))
        share[4 * group : 4 * group + 4] += 0.5
        names = ["".join(rng.choice(letters, 5, p=share / share.sum())) for _ in range(EACH)]
        rows += [
            {"prompt": f"Q: Who is <|{name}|>?\nA:", "entity_id": f"{group}-{number}", "group": group}
            for number, name in enumerate(names)
        ]
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 16])
    options = parser.parse_args()
    model, tokenizer = load_smollm2()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        table = sl.PromptTable.from_dataframe(prompts())
        ds = sl.capture(
            {"SmolLM2-135M": checkpoint}, table, Path(folder) / "run.zarr", layers=options.layers,
            positions=("-2", "-1"), statistics=False, progress=True,
        )  # fmt: skip
        np.save(options.file, ds.resid_post.isel(stage=0).values)


if __name__ == "__main__":
    main()
