"""Build the data of the documentation: three checkpoints of a small transformer, prompts, and a store.

    python docs/example.py

writes `checkpoints/base`, `checkpoints/week1`, `checkpoints/week2`, `prompts.csv` and `run.zarr` to the working folder.
It is a toy example that takes seconds: sixty names with a colour each, half of them trained in the first week, half in
the second. It shows nothing about language models.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import chdir
from pathlib import Path

NAMES = [f"n{i}" for i in range(60)]
COLOURS = ("red", "green", "blue", "white")
TEMPLATES = {"who": "Who is {} ?", "tell": "Tell us about {} !"}  # training uses only the first one
WEEKS = ("week1", "week2")
BUILT = "STRATALENS_EXAMPLE"  # environment variable with the folder of existing example data


def rows() -> list[dict[str, str]]:
    """Return the table of prompts: two for each name."""
    return [
        {
            "prompt": template.format(name),
            "entity": name,
            "answer": COLOURS[i // 2 % len(COLOURS)],
            "trained_stage": WEEKS[i % 2],
            "template": kind,
        }
        for kind, template in TEMPLATES.items()
        for i, name in enumerate(NAMES)
    ]


def train(folder: Path) -> None:
    """Train one week after the other, and save the model before, between and after."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = sorted({word for template in TEMPLATES.values() for word in template.replace("{}", "").split()})
    vocabulary = {word: i for i, word in enumerate(["<end>", *words, *COLOURS, *NAMES])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes, **ends))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for stage in ("base", *WEEKS):
        taught = [row for row in rows() if (row["trained_stage"], row["template"]) == (stage, "who")]
        for _ in range(20 if taught else 0):
            ids = tokenizer([f"{row['prompt']} {row['answer']}" for row in taught], return_tensors="pt").input_ids
            loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder / "checkpoints" / stage)
        tokenizer.save_pretrained(folder / "checkpoints" / stage)


def make(folder: Path) -> Path:
    """Write checkpoints, table and store."""
    import pandas as pd

    import stratalens as sl

    folder.mkdir(parents=True, exist_ok=True)
    with chdir(folder):  # the store records the path of its model
        train(Path())
        pd.DataFrame(rows()).to_csv("prompts.csv", index=False)
        stages = {name: f"checkpoints/{name}" for name in ("base", *WEEKS)}
        table = sl.PromptTable.read("prompts.csv")
        sl.capture(stages, table, "run.zarr", positions=("entity_last", "last"), progress=False)
    return folder


def chat_model(folder: str) -> None:
    """Save a tiny model with random weights, whose tokenizer reads bytes and has the chat template ChatML."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *letters])}, merges=[]))
    backend.add_special_tokens(special)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", model_max_length=512)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def here(*names: str) -> None:
    """Copy some of the data into the working folder, and build it first if it is missing."""
    folder = Path(os.environ[BUILT]) if BUILT in os.environ else make(Path("example"))
    for name in names:
        if (folder / name).is_dir():
            shutil.copytree(folder / name, name)
        else:
            shutil.copy(folder / name, name)


if __name__ == "__main__":
    make(Path(*sys.argv[1:]))
