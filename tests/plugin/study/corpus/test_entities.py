"""Your own entities: reading, refusal of bad tables, comparison between stages, partition by seed."""

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest

from stratalens.plugin.study.corpus.entities import read_entities
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.store.errors import InputError
from support.tiny_study import study_tokenizer

STAGES = ("s1", "s2", "s3")
QUESTIONS = {"colour": ["What colour was {x}?"], "size": ["How big was {x}?"]}


@pytest.fixture(scope="module")
def tokenizer():
    return study_tokenizer()


def table(rows=240, **columns):
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "entity": [f"thing {i}" for i in range(rows)],
            "born": random.integers(1700, 1900, rows),
            "colour": random.choice(["red", "green", "blue"], rows),
            "size": random.integers(1, 90, rows),
            **columns,
        }
    )


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "things.csv"
    table().to_csv(path, index=False)
    return path


def corpus(tokenizer, path, seed=0, per_stage=60, questions=QUESTIONS, **more):
    pool = read_entities(path, questions, "colour")
    return make_corpus(
        tokenizer,
        stages=STAGES,
        entities_per_stage=per_stage,
        seed=seed,
        train_questions=2,
        pool=pool,
        templates=("who",),
        **more,
    )


def test_columns_with_question_templates_are_asked_and_the_rest_become_labels(tokenizer, tmp_path):
    path = tmp_path / "things.jsonl"
    table(note=["n"] * 240).to_json(path, orient="records", lines=True)
    drawn = corpus(tokenizer, path)
    asked = {q.kind for questions in drawn.train.values() for q in questions}
    assert asked == {"born", "colour", "size"}
    assert any("What colour was" in q.question for q in drawn.train["s1"])
    frame = drawn.prompts()
    assert {"born", "colour", "size", "note"} <= set(frame.columns)
    first = drawn.entities[0]
    row = table().set_index("entity").loc[first.entity_id]
    assert first.attributes["size"] == str(row["size"])
    assert frame["answer"][0] == f" {row['colour']}"
    assert Counter(e.trained_stage for e in drawn.entities) == dict.fromkeys(STAGES, 60)


def test_the_seed_reshuffles_the_partition_and_a_pool_seed_keeps_the_entities(tokenizer, file):
    one = corpus(tokenizer, file, seed=1, pool_seed=4)
    again = corpus(tokenizer, file, seed=1, pool_seed=4)
    other = corpus(tokenizer, file, seed=2, pool_seed=4)
    assert one == again
    assert [(e.entity_id, e.alias) for e in one.entities] == [(e.entity_id, e.alias) for e in other.entities]
    assert [e.trained_stage for e in one.entities] != [e.trained_stage for e in other.entities]


def test_the_comparison_follows_its_definition(tokenizer, file):
    drawn = corpus(tokenizer, file)
    frame = pd.DataFrame([{**e.attributes, "stage": e.trained_stage} for e in drawn.entities])
    frame["size"] = frame["size"].astype(float)
    differences = drawn.balance.set_index(["stage", "attribute", "value"])["difference"]
    for stage in STAGES:
        mine, others = frame[frame.stage == stage], frame[frame.stage != stage]
        pooled = np.sqrt((mine["size"].var() + others["size"].var()) / 2)
        assert differences[stage, "size", ""] == pytest.approx((mine["size"].mean() - others["size"].mean()) / pooled)
        share = (mine["colour"] == "red").mean() - (others["colour"] == "red").mean()
        assert differences[stage, "colour", "red"] == pytest.approx(share)
    assert differences.abs().max() < 0.25


def test_a_random_partition_is_drawn_again_until_it_is_balanced(tokenizer, file):
    tight = corpus(tokenizer, file, seed=3, mean_limit=0.1, share_limit=0.04)
    loose = corpus(tokenizer, file, seed=3, force=True)
    measure = tight.balance["measure"] == "difference of shares"
    limit = np.where(measure, 0.04, 0.1)
    assert (tight.balance["difference"].abs() <= limit).all()
    assert (loose.balance["difference"].abs() > limit).any()
    with pytest.raises(InputError, match=r"differ in .*random partitions is better.*entities\.force"):
        corpus(tokenizer, file, mean_limit=1e-6, share_limit=1e-6)


def own_partition(path, confounded):
    random = np.random.default_rng(1)
    stage = np.repeat(STAGES, 80)
    colour = np.where(stage == "s3", "red", "green") if confounded else random.permutation(["red", "green"] * 120)
    table(trained_stage=stage, colour=colour).to_csv(path, index=False)
    return path


def test_your_own_partition_is_used_or_refused_unless_forced(tokenizer, tmp_path):
    path = own_partition(tmp_path / "fair.csv", confounded=False)
    stage = pd.read_csv(path).set_index("entity")["trained_stage"]
    drawn = corpus(tokenizer, path, share_limit=0.2)
    assert all(stage[e.entity_id] == e.trained_stage for e in drawn.entities)
    path = own_partition(tmp_path / "unfair.csv", confounded=True)
    with pytest.raises(InputError, match=r"stages differ in colour = green.*difference of shares: 1\.00"):
        corpus(tokenizer, path)
    forced = corpus(tokenizer, path, force=True)
    assert forced.balance["difference"].abs().max() == 1


def test_your_own_aliases_are_used_and_their_length_is_compared(tokenizer, tmp_path):
    path = tmp_path / "named.csv"
    table(alias=[f"old {'stone ' * (i % 2)}bird {i:03d}" for i in range(240)]).to_csv(path, index=False)
    drawn = corpus(tokenizer, path)
    assert drawn.alias_tokens is None
    assert all(e.alias.startswith("old ") for e in drawn.entities)
    assert "tokens of the alias" in set(drawn.balance["attribute"])


def test_a_written_corpus_can_be_read_back_as_a_table(tokenizer, file, tmp_path):
    drawn = corpus(tokenizer, file, seed=7)
    drawn.write(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "corpus.json").read_text())["source"] == str(file)
    written = pd.read_csv(tmp_path / "out" / "entities.csv")
    assert list(written["entity_id"]) == [e.entity_id for e in drawn.entities]
    assert len(pd.read_csv(tmp_path / "out" / "balance.csv")) == len(drawn.balance)
    written.rename(columns={"entity_id": "entity"}).drop(columns="test_kind").to_csv(
        tmp_path / "again.csv", index=False
    )
    again = corpus(tokenizer, tmp_path / "again.csv", seed=7)
    assert [(e.alias, e.trained_stage, e.attributes) for e in again.entities] == [
        (e.alias, e.trained_stage, e.attributes) for e in drawn.entities
    ]


@pytest.mark.parametrize(
    ("change", "questions", "words"),
    [
        (lambda t: t.rename(columns={"entity": "entitty"}), QUESTIONS, "no column 'entity'.*did you mean 'entitty'"),
        (lambda t: t.iloc[:0], QUESTIONS, "no rows"),
        (lambda t: t.assign(template="x"), QUESTIONS, "'template' is used by"),
        (lambda t: t.assign(entropy=1), QUESTIONS, "'entropy' is used by"),
        (lambda t: t.assign(colour=t.colour.where(t.index != 4)), QUESTIONS, "row 5, column 'colour': empty"),
        (lambda t: t.assign(entity=t.entity.where(t.index != 4, "thing 0")), QUESTIONS, "'thing 0' is in rows 1 and 5"),
        (lambda t: t[["entity", "colour"]], {}, "no question asks for its columns"),
        (lambda t: t, {"color": ["?"]}, "no column 'color'; did you mean 'colour'"),
        (lambda t: t, {**QUESTIONS, "size": ["How big?"]}, "must hold {x} once"),
        (lambda t: t, {**QUESTIONS, "size": []}, "no question template"),
        (lambda t: t, {"size": ["How big was {x}?"]}, "no question asks for 'colour'"),
        (lambda t: t.head(100), QUESTIONS, "entities_per_stage to at most 33"),
        (lambda t: t.assign(trained_stage="s9"), QUESTIONS, "trained_stage 's9' is no stage"),
        (lambda t: t.assign(trained_stage=["s1"] * 200 + ["s2"] * 40), QUESTIONS, "stage 's2' has 40 entities"),
    ],
)
def test_bad_tables_are_refused_and_say_where(tokenizer, tmp_path, change, questions, words):
    path = tmp_path / "bad.csv"
    change(table()).to_csv(path, index=False)
    with pytest.raises(InputError, match=words):
        corpus(tokenizer, path, questions=questions)
