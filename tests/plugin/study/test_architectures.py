"""The study from corpus to report on other architectures: LayerNorm, Conv1D, parallel blocks, biases, untied heads."""

import json

import pytest
import torch
import transformers

import stratalens as sl
from stratalens.plugin.study.config.settings import (
    AnalysisSettings,
    LoraSettings,
    RecordSettings,
    StudySettings,
    TrainSettings,
)
from stratalens.plugin.study.run import run_study
from support.thorough import thorough
from support.tiny_study import study_tokenizer

ANALYSIS = AnalysisSettings(repeats=2, permutations=10, sweep_permutations=5, probe_permutations=3, bins=2)


def save(folder, kind):
    tokenizer = study_tokenizer()
    # more rows than tokens, as in real models: some tokenizer classes add a token when loaded
    size, ends = len(tokenizer) + 8, {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.eos_token_id}
    wide = {"vocab_size": size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, **ends}
    configs = {
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=size, n_embd=16, n_layer=2, n_head=4, n_positions=64, **ends
        ),
        "neox": lambda: transformers.GPTNeoXConfig(**wide, intermediate_size=32, max_position_embeddings=64),
        "qwen2": lambda: transformers.Qwen2Config(
            **wide, intermediate_size=32, num_key_value_heads=2, max_position_embeddings=64
        ),
    }
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(configs[kind]()).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CASES = [
    ("gpt2", "lora", "full"),
    pytest.param("gpt2", "full", "used", marks=thorough),
    pytest.param("neox", "full", "used", marks=thorough),
    pytest.param("qwen2", "lora", "used", marks=thorough),
]


@pytest.mark.parametrize(("kind", "method", "vocabulary"), CASES)
def test_the_study_runs_from_corpus_to_report(kind, method, vocabulary, tmp_path):
    if method == "lora":
        pytest.importorskip("peft")
    settings = StudySettings(
        model=str(save(tmp_path / "base", kind)),
        vocabulary=vocabulary,
        stages=3,
        entities_per_stage=12,
        train_questions=1,
        device="cpu",
        train=TrainSettings(
            method=method, lora=LoraSettings(rank=2), epochs=1, batch_size=12, learning_rate=1e-2, precision="float32"
        ),
        record=RecordSettings(positions=("last",)),
        analysis=ANALYSIS,
    )
    done = run_study(settings, tmp_path / "out", smoke_test=True, quiet=True)
    ds = sl.open_store(done.store)
    assert ds.resid_post.sizes == {"stage": 4, "layer": 2, "entity": 36, "token": 1, "d_model": 16}
    assert len(set(ds.weights_fingerprint.values)) == 4
    rows = {row["name"]: row for row in json.loads(done.summary.read_text())}
    assert 0 <= rows["first v last accuracy"]["value"] <= 1
    if method == "lora":
        assert (done.folder / "checkpoints" / "s3" / "adapter_model.safetensors").is_file()
