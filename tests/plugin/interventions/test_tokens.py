"""The token ids of an intervention are those of a capture: the checkpoint's tokenizer, with BOS or without as asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
import xarray as xr

import stratalens as sl
from stratalens.plugin.models.adapters import adapt
from stratalens.plugin.stages.stage import loaded_model, parse_stages
from support.models import hf_model
from support.tokenizers import byte_level_with_bos, byte_level_with_unused_bos

TOKENIZERS = {"adds BOS": byte_level_with_bos, "has BOS, adds none": byte_level_with_unused_bos}
PROMPT, ANSWER = "Who is Ann?", " a painter"


@pytest.fixture(scope="module", params=TOKENIZERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint")
    hf_model("llama").save_pretrained(path)
    make: Callable[[], Any] = TOKENIZERS[request.param]
    make().save_pretrained(path)
    return path


def loss_of(folder: Path, prepend_bos: bool | None) -> float:
    """Loss of the answer after the tokens that Hugging Face's call gives, by a plain forward pass."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    start = tokenizer(PROMPT).input_ids
    if prepend_bos is not None:
        bare = [token for token in start if token != tokenizer.bos_token_id]
        start = [tokenizer.bos_token_id, *bare] if prepend_bos else bare
    answer = tokenizer(ANSWER, add_special_tokens=False).input_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor([start + answer])).logits[0, len(start) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))


@pytest.mark.parametrize("prepend_bos", [None, True, False])
def test_the_clean_loss_is_that_of_the_recorded_tokens(folder: Path, prepend_bos: bool | None) -> None:
    frame = pd.DataFrame({"prompt": [PROMPT], "entity_id": ["ann"], "answer": [ANSWER]})
    vector = xr.DataArray(np.ones((1, 16)), dims=("layer", "d_model"), coords={"layer": [0]})
    with loaded_model(parse_stages({"s": str(folder)})[0], None, "cpu") as model:
        width = adapt(model).size("d_model")
        axis = sl.directions(vector.isel(d_model=np.zeros(width, int)), site="resid_post", name="axis")
        effects = sl.intervene(
            model, sl.PromptTable.from_dataframe(frame), axis, doses=[1.0], random=0, prepend_bos=prepend_bos,
            unrelated=["one two"], progress=False,
        )  # fmt: skip
    assert effects.clean.item() == pytest.approx(loss_of(folder, prepend_bos), abs=1e-5)
