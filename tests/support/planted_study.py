"""A study whose last checkpoint has the stage of an entity in its activations, where its answer may or may not read it.

The tokens of names differ along one axis, among many other features. Entities are sorted into stages by the mean of
their name along it. The first block copies the mean of all features to the last token. The answer to "which group"
reads the axis, or another feature that is not related to the stage.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM

import stratalens as sl
from stratalens.plugin.study.config.settings import (
    InterventionSettings,
    SelfReportSettings,
    StudySettings,
    TrainSettings,
)
from stratalens.plugin.study.config.templates import GROUP_ANSWERS
from stratalens.plugin.study.corpus.corpus import Corpus
from stratalens.plugin.study.corpus.sampling import make_corpus
from support.tiny_study import study_tokenizer

WIDTH = 32
STAGES = ("s1", "s2", "s3")
STAGE_SIZE = 60


def planted_settings(**interventions: Any) -> StudySettings:
    """Settings whose fine-tuning changes nothing, since the model reports the group already."""
    return StudySettings(
        stages=3,
        entities_per_stage=STAGE_SIZE,
        train_questions=2,
        device="cpu",
        train=TrainSettings(epochs=1, batch_size=24, learning_rate=1e-30, precision="float32", optimizer="sgd"),
        self_report=SelfReportSettings(epochs=1),
        interventions=InterventionSettings(**{"layers": [0], "positions": ["last"], **interventions}),
    )


def planted_study(folder: Path, causal: bool) -> tuple[Corpus, dict[str, Path], Any]:
    """Write the checkpoints and their store.

    Args:
        folder: receives both.
        causal: whether the answer reads the axis.

    Returns:
        corpus, {stage: checkpoint} and the opened store.
    """
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = study_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in GROUP_ANSWERS])
    frame = torch.tensor(np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0].T, dtype=torch.float32)
    axis, other = frame[0], frame[1]
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    size = len(tokenizer)
    corpus = make_corpus(tokenizer, stages=STAGES, entities_per_stage=STAGE_SIZE, seed=0, train_questions=2)
    names = {e.entity_id: tokenizer(" " + e.alias)["input_ids"] for e in corpus.entities}
    shared = set.intersection(*map(set, names.values()))  # the brackets around a name
    occurring = [token for tokens in names.values() for token in tokens if token not in shared]
    embedding = torch.zeros(size, WIDTH)
    for token in sorted(set(occurring)):
        embedding[token] = torch.tensor(rng.normal(size=WIDTH), dtype=torch.float32)
    embedding[sorted(set(occurring))] -= embedding[occurring].mean(dim=0)  # else one letter is likelier for all names
    # The norm makes all tokens equally long; those of the template must not say a letter.
    noise = 0.005 * torch.tensor(rng.normal(size=(size, WIDTH)), dtype=torch.float32)
    embedding += noise - (noise @ frame[:2].T) @ frame[:2]
    score = {name: float((embedding[tokens] @ axis).mean()) for name, tokens in names.items()}
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(layer.self_attn, name).weight.zero_()
            layer.mlp.down_proj.weight.mul_(0.1)
        first = model.model.layers[0].self_attn  # equal attention to all tokens, which copies every feature
        first.v_proj.weight.copy_(torch.eye(WIDTH))
        first.o_proj.weight.copy_(10 * torch.eye(WIDTH))
        model.model.embed_tokens.weight.copy_(embedding)
        model.lm_head.weight.copy_(0.02 * torch.tensor(rng.normal(size=(size, WIDTH)), dtype=torch.float32))
        for text, sign in zip(GROUP_ANSWERS, (-1.0, 1.0), strict=True):
            (token,) = tokenizer(text)["input_ids"]
            model.lm_head.weight[token] = sign * (axis if causal else other)
    order = {name: number for number, name in enumerate(sorted(score, key=lambda name: score[name]))}
    entities = tuple(replace(e, trained_stage=STAGES[order[e.entity_id] // STAGE_SIZE]) for e in corpus.entities)
    corpus = replace(corpus, entities=entities)
    checkpoints = {}
    for stage in ("untrained", "s3"):
        checkpoints[stage] = folder / "checkpoints" / stage
        model.save_pretrained(checkpoints[stage])
        tokenizer.save_pretrained(checkpoints[stage])
        (checkpoints[stage] / "training.json").write_text('{"identity": {"planted": true}}', encoding="utf-8")
    table = sl.PromptTable.from_dataframe(corpus.prompts())
    positions = ["last", "entity_last"]
    ds = sl.capture({"s3": str(checkpoints["s3"])}, table, folder / "run.zarr", positions=positions, progress=False)
    return corpus, checkpoints, ds
