"""Tables of chats in a store: ids of the template alone, also when it is extended, and from the command line."""

import json
import warnings

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import stratalens as sl
from stratalens.plugin.cli.app import app
from stratalens.store.errors import MismatchError, TokenWarning
from support.chats import CHAT, chat_tokenizer
from support.models import hf_model

OPTIONS = {"positions": ("user_last", "assistant_first", "turn0_last", "last"), "check": False, "progress": False}
CHATS = [CHAT, CHAT[:3]]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Two checkpoints with a tokenizer that adds BOS, and a chat template that writes BOS too."""
    folder = tmp_path_factory.mktemp("chat")
    for seed, name in enumerate(("base", "chat")):
        hf_model("llama", seed, vocab_size=512, max_position_embeddings=512).save_pretrained(folder / name)
        chat_tokenizer("llama-3").save_pretrained(folder / name)
    return {name: folder / name for name in ("base", "chat")}


@pytest.fixture(scope="module")
def recorded(stages, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "chats.zarr"
    table = sl.PromptTable.from_chats(
        CHATS, chat_tokenizer("llama-3"), labels={"kind": ["long", "short"], "entity_id": ["a", "b"]}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", TokenWarning)  # no BOS token is there twice
        sl.capture({"base": stages["base"]}, table, path, **OPTIONS)
        ds = sl.capture(stages, table, path, **OPTIONS)
    return path, table, ds


def test_activations_are_those_of_the_ids_of_the_template(recorded, stages):
    _, table, ds = recorded
    tokenizer = chat_tokenizer("llama-3")
    for stage, folder in stages.items():
        model = AutoModelForCausalLM.from_pretrained(folder)
        for row, chat in enumerate(CHATS):
            encoded = tokenizer(table.prompts[row], add_special_tokens=False, return_offsets_mapping=True)
            assert encoded.input_ids == tokenizer.apply_chat_template(chat, return_dict=False)
            with torch.no_grad():
                states = model(torch.tensor([encoded.input_ids]), output_hidden_states=True).hidden_states
            end = table.spans["user"][row, 1]
            last = max(i for i, (a, b) in enumerate(encoded.offset_mapping) if a < end <= b)
            here = ds.resid_post.sel(stage=stage, token="user_last").isel(entity=row, layer=0).values
            np.testing.assert_allclose(here, states[1][0, last].numpy(), rtol=1e-4, atol=1e-5)


def test_the_store_says_its_rule_and_keeps_it(recorded, stages, tmp_path):
    path, table, ds = recorded
    rule = ds.attrs["recorded_with"]["tokenization"]
    assert rule["rule"] == "tokenizer(prompt, add_special_tokens=False)"
    assert rule["first_row_tokens"].count("<s>") == 1
    text = CliRunner().invoke(app, ["info", str(path)])
    assert "tokenizer(prompt, add_special_tokens=False)" in text.stdout
    assert not ds["add_special_tokens"].values.any()
    # the labels of the store alone make the same table again
    frame = ds[["prompt", "entity_id", "kind", "add_special_tokens"]].to_dataframe().reset_index()
    again = sl.PromptTable.from_dataframe(
        frame.rename(columns={"entity": "prompt_id"})[["prompt_id", "prompt", "kind", "add_special_tokens"]]
    )
    assert again.tokenize(chat_tokenizer("llama-3")).digest == table.tokenize(chat_tokenizer("llama-3")).digest
    # a table that says the opposite gets the ids of the store, with a warning
    plain = sl.PromptTable.from_dataframe(table.frame.assign(add_special_tokens=True))
    with (
        pytest.raises(MismatchError, match="add_special_tokens"),
        pytest.warns(TokenWarning, match="keeps the token ids"),
    ):
        sl.capture(stages, plain, path, **OPTIONS)


def test_a_run_file_takes_a_file_of_chats(stages, tmp_path):
    lines = [json.dumps({"messages": chat, "kind": "ab"[i], "entity_id": f"chat {i}"}) for i, chat in enumerate(CHATS)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    run = {
        "prompts": "chats.jsonl",
        "store": "run.zarr",
        "positions": ["user_last", "last"],
        "add_generation_prompt": True,
        "stages": [{"name": name, "path": str(folder)} for name, folder in stages.items()],
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    for command in ("forecast", "capture"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "run.yaml")])
        assert done.exit_code == 0, done.output
    ds = sl.open_store(tmp_path / "run.zarr")
    assert ds["kind"].values.tolist() == ["a", "b"]
    assert all(prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n") for prompt in ds["prompt"].values)
    started = CliRunner().invoke(
        app, ["init", str(stages["base"]), str(tmp_path / "chats.jsonl"), "-o", str(tmp_path / "new.yaml")]
    )
    assert started.exit_code == 0, started.output
    assert "user_last" in (tmp_path / "new.yaml").read_text()
    (stages["base"] / "chat_template.jinja").rename(tmp_path / "chat_template.jinja")
    refused = CliRunner().invoke(app, ["forecast", str(tmp_path / "run.yaml")])
    (tmp_path / "chat_template.jinja").rename(stages["base"] / "chat_template.jinja")
    assert refused.exit_code == 2
    assert "no chat template" in refused.stderr
