"""Answers of checkpoints: likelihoods against plain arithmetic, and knowledge of taught questions."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from stratalens.plugin.progress import PhaseProgress
from stratalens.plugin.study.config.settings import RecordSettings, StudySettings, TrainSettings
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.recording.answers import answer_log_probabilities, ask_checkpoints
from stratalens.plugin.study.training.checkpoints import remove_weights
from stratalens.plugin.study.training.train import train_stages
from stratalens.store.errors import InputError
from support.tiny_study import study_model, study_tokenizer

STAGES = ("s1", "s2", "s3")


@pytest.fixture(scope="module")
def parts():
    tokenizer = study_tokenizer()
    return tokenizer, make_corpus(tokenizer, stages=STAGES, entities_per_stage=8, seed=0, train_questions=3)


def one_by_one(model, tokenizer, prompt, answer):
    """Sum the log probabilities of the answer's tokens in the whole text, without batches and shared prefixes."""
    head, whole = tokenizer(prompt)["input_ids"], tokenizer(f"{prompt} {answer}")["input_ids"]
    assert whole[: len(head)] == head
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), dim=-1)
    return sum(float(logs[place - 1, whole[place]]) for place in range(len(head), len(whole)))


@pytest.mark.parametrize("answers", [("male", "female"), ("1801", "1802", "1911"), ("painter", "priest", "x")])
def test_likelihoods_are_those_of_each_answer_alone(parts, answers):
    tokenizer, corpus = parts
    model = study_model(tokenizer)
    prompts = [f"Q: What did {entity.alias} do?\nA:" for entity in corpus.entities[:5]] + ["Q: Who?\nA:"]
    logs = answer_log_probabilities(model, tokenizer, prompts, answers, batch_size=2)
    alone = [[one_by_one(model, tokenizer, prompt, answer) for answer in answers] for prompt in prompts]
    np.testing.assert_allclose(logs, alone, rtol=1e-4)


def test_an_answer_that_is_a_prefix_of_another_one_ends_with_its_line(parts):
    tokenizer, _ = parts
    model = study_model(tokenizer)
    ids = tokenizer(" 180")["input_ids"]
    assert tokenizer(" 1807")["input_ids"][: len(ids)] == ids
    logs = answer_log_probabilities(model, tokenizer, ["Q: When?\nA:"], ("180", "1807"))
    ended = [one_by_one(model, tokenizer, "Q: When?\nA:", answer + "\n") for answer in ("180", "1807")]
    np.testing.assert_allclose(logs[0], ended, rtol=1e-4)
    with pytest.raises(InputError, match="give each answer once"):
        answer_log_probabilities(model, tokenizer, ["Q: When?\nA:"], ("180", "180"))


@pytest.fixture(scope="module")
def taught(parts, tmp_path_factory):
    tokenizer, corpus = parts
    folder = tmp_path_factory.mktemp("taught")
    how = TrainSettings(epochs=60, batch_size=12, learning_rate=2e-2, precision="float32", optimizer="adamw")
    checkpoints = train_stages(
        lambda: (study_model(tokenizer), tokenizer), corpus, how, folder / "c", seed=0, base={}, device="cpu"
    )
    settings = StudySettings(stages=3, entities_per_stage=8, device="cpu", record=RecordSettings(answers="all"))
    watch = PhaseProgress({"recording": 1.0}, quiet=True)
    with watch.phase("recording", ""):
        return (
            settings,
            corpus,
            checkpoints,
            folder,
            watch,
            ask_checkpoints(settings, corpus, checkpoints, folder / "answers", watch),
        )


def test_recently_taught_questions_are_answered_and_others_are_not(taught):
    *_, answers = taught
    trained = answers[answers["trained"].astype(bool)]
    right = trained.groupby(["stage", "trained_stage"])["right"].mean().unstack()
    assert right.loc["s3", "s3"] > 0.9
    assert right.loc["s3", "s3"] > right.loc["s2", "s3"] + 0.3
    assert right.loc["untrained"].max() < 0.6
    loss = trained.groupby(["stage", "trained_stage"])["answer_loss"].mean().unstack()
    assert loss.loc["s3", "s3"] < loss.loc["s2", "s3"]
    assert (answers["right"] == (answers["said"] == answers["answer"])).all()


def test_a_second_run_asks_nothing_even_without_the_weights(taught):
    settings, corpus, checkpoints, folder, watch, answers = taught
    written = json.loads((folder / "answers" / "s2.json").read_text())
    remove_weights(checkpoints["s2"])
    pd.testing.assert_frame_equal(ask_checkpoints(settings, corpus, checkpoints, folder / "answers", watch), answers)
    (folder / "answers" / "s2.json").write_text(json.dumps({**written, "identity": {}}))
    with pytest.raises(InputError, match="has no weights any more"):
        ask_checkpoints(settings, corpus, checkpoints, folder / "answers", watch)
