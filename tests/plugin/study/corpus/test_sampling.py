import json
from collections import Counter

import numpy as np
import pytest

from stratalens.plugin.study.config import templates as texts
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.store.errors import InputError
from support.tiny_study import study_tokenizer

STAGES = ("s1", "s2", "s3")


@pytest.fixture(scope="module")
def tokenizer():
    return study_tokenizer()


@pytest.fixture(scope="module")
def corpus(tokenizer):
    return make_corpus(tokenizer, stages=STAGES, entities_per_stage=60, seed=5)


def test_same_seed_same_corpus_other_seed_other_entities(tokenizer, corpus):
    again = make_corpus(tokenizer, stages=STAGES, entities_per_stage=60, seed=5)
    assert again == corpus
    other = make_corpus(tokenizer, stages=STAGES, entities_per_stage=60, seed=6)
    assert not {e.alias for e in other.entities} & {e.alias for e in corpus.entities}


def test_pool_seed_keeps_the_entities_and_seed_reshuffles_the_partition(tokenizer):
    one = make_corpus(tokenizer, stages=STAGES, entities_per_stage=60, seed=1, pool_seed=9)
    two = make_corpus(tokenizer, stages=STAGES, entities_per_stage=60, seed=2, pool_seed=9)
    assert [(e.alias, e.attributes) for e in one.entities] == [(e.alias, e.attributes) for e in two.entities]
    moved = [a.trained_stage != b.trained_stage for a, b in zip(one.entities, two.entities, strict=True)]
    assert 0.5 < np.mean(moved) < 0.85  # two thirds in expectation


def test_stages_are_disjoint_and_of_equal_size(corpus):
    assert Counter(e.trained_stage for e in corpus.entities) == dict.fromkeys(STAGES, 60)
    assert len({e.alias for e in corpus.entities}) == 180
    for stage, questions in corpus.train.items():
        assert {q.trained_stage for q in questions} == {stage}
        assert len(questions) == 60 * 5


def test_a_test_question_is_never_trained_on(corpus):
    trained = {(q.entity_id, q.kind) for questions in corpus.train.values() for q in questions}
    assert len(corpus.test) == 180
    assert not trained & {(q.entity_id, q.kind) for q in corpus.test}
    kinds = {e.entity_id: e.test_kind for e in corpus.entities}
    assert all(kinds[q.entity_id] == q.kind for q in corpus.test)


def test_answers_are_the_entities_attributes_and_lives_are_possible(corpus):
    known = {e.entity_id: e.attributes for e in corpus.entities}
    for question in [q for qs in corpus.train.values() for q in qs]:
        assert question.answer == known[question.entity_id][question.kind]
        assert question.text == f"Q: {question.question}\nA: {question.answer}\n"
    for attributes in known.values():
        assert 30 <= int(attributes["died"]) - int(attributes["born"]) < 90


@pytest.mark.parametrize("kind", ["letters", "natural"])
def test_aliases_have_one_token_count_so_that_prompts_of_a_template_align(tokenizer, kind):
    corpus = make_corpus(tokenizer, stages=STAGES, entities_per_stage=40, seed=3, aliases=kind)
    lengths = {len(tokenizer(" " + e.alias)["input_ids"]) for e in corpus.entities}
    assert lengths == {corpus.alias_tokens}
    frame = corpus.prompts(tuple(texts.TEMPLATES))
    frame["length"] = [len(ids) for ids in tokenizer(list(frame["prompt"]))["input_ids"]]
    assert (frame.groupby("template")["length"].nunique() == 1).all()


def test_recorded_templates_are_unseen_in_training(corpus):
    trained = {q.text for questions in corpus.train.values() for q in questions}
    for prompt in corpus.prompts(tuple(texts.TEMPLATES))["prompt"]:
        assert prompt.endswith("?\nA:")
        assert not any(text.startswith(prompt) for text in trained)


def test_attribute_distributions_do_not_differ_between_stages(tokenizer):
    """A chi-square over stage x value: of 4 attributes x 20 seeds about 1 % may fall below 0.01."""
    from scipy.stats import chi2_contingency

    small = 0
    for seed in range(20):
        corpus = make_corpus(tokenizer, stages=STAGES, entities_per_stage=60, seed=seed, train_questions=1)
        for attribute in ("region", "occupation", "nationality", "gender"):
            values = sorted({e.attributes[attribute] for e in corpus.entities})
            table = np.zeros((len(STAGES), len(values)))
            for e in corpus.entities:
                table[STAGES.index(e.trained_stage), values.index(e.attributes[attribute])] += 1
            small += chi2_contingency(table).pvalue < 0.01
    assert small <= 5


def test_written_files_hold_the_corpus(corpus, tmp_path):
    corpus.write(tmp_path)
    entities = [json.loads(line) for line in (tmp_path / "entities.jsonl").read_text().splitlines()]
    assert [e["alias"] for e in entities] == [e.alias for e in corpus.entities]
    train = [json.loads(line) for line in (tmp_path / "train-s2.jsonl").read_text().splitlines()]
    assert [row["text"] for row in train] == [q.text for q in corpus.train["s2"]]
    assert json.loads((tmp_path / "corpus.json").read_text())["seed"] == 5
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 4 * 180


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alias_tokens": 99}, "exactly 99 tokens"),
        ({"aliases": "numbers"}, "letters, natural"),
        ({"train_questions": 7}, "give 1 to 6"),
        ({"paraphrases": 0}, "give 1 to 3"),
        ({"stages": ("a", "a")}, "each once"),
    ],
)
def test_bad_input_is_refused_with_valid_values(tokenizer, changes, words):
    arguments = {"stages": STAGES, "entities_per_stage": 10, "seed": 0, **changes}
    with pytest.raises(InputError, match=words):
        make_corpus(tokenizer, **arguments)


def test_unknown_template_is_refused(corpus):
    with pytest.raises(InputError, match="did you mean 'who'"):
        corpus.prompts(["whom"])
