"""Questions that checkpoints answer: one or all of every entity, and the halves of the self-report."""

import pytest

from stratalens.plugin.study.config.templates import GROUP_ANSWERS
from stratalens.plugin.study.corpus.questions import (
    candidate_answers,
    draw_one_question_each,
    list_all_questions,
    split_for_self_report,
)
from stratalens.plugin.study.corpus.sampling import make_corpus
from support.tiny_study import study_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return study_tokenizer()


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return make_corpus(tokenizer, stages=("s1", "s2", "s3"), entities_per_stage=10, seed=0, train_questions=3)


def test_one_question_of_every_entity_was_trained_and_has_few_answers(corpus):
    taught = {(q.entity_id, q.kind) for questions in corpus.train.values() for q in questions}
    asked, values = draw_one_question_each(corpus, seed=0), candidate_answers(corpus)
    assert [question.entity_id for question in asked] == [entity.entity_id for entity in corpus.entities]
    assert all((question.entity_id, question.kind) in taught for question in asked)
    assert all(question.answer in values[question.kind] for question in asked)
    assert {question.kind for question in asked} > {"occupation"}
    assert draw_one_question_each(corpus, seed=1) != asked


def test_all_questions_are_the_trained_ones_and_the_test_question(corpus):
    asked = list_all_questions(corpus)
    assert len(asked) == 30 * 4
    texts = {question.text for questions in corpus.train.values() for question in questions}
    assert all((f"{q.prompt} {q.answer}\n" in texts) == q.trained for q in asked)


def test_no_entity_is_both_taught_and_asked_and_groups_are_equal(corpus):
    asked = split_for_self_report(corpus, ("s1", "s2"), seed=3)
    taught, others = ({name for name, _ in rows} for rows in (asked.taught, asked.asked))
    assert not taught & others
    assert len(taught | others) == 20
    assert asked.taught_group.sum() == asked.asked_group.sum() == 5
    stage = {e.entity_id: e.trained_stage for e in corpus.entities}
    assert [stage[name] for name, _ in asked.asked] == [("s1", "s2")[g] for g in asked.asked_group]
    assert split_for_self_report(corpus, ("s1", "s2"), seed=4).asked != asked.asked


def test_the_two_answers_differ_in_their_first_token(tokenizer):
    letters = [tokenizer("A:" + answer)["input_ids"] for answer in GROUP_ANSWERS]
    assert letters[0] != letters[1]
