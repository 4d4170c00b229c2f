"""Several places of one kind in a row: rows multiplied, their labels, and what a capture makes of them."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

import stratalens as sl
from stratalens.plugin.prompts.positions import resolve
from stratalens.store.errors import InputError
from support.models import bridge
from support.models import tokenizer as model_tokenizer
from support.tokenizers import byte_level, metaspace, pure_python

TEXTS = ["Ann has 2 cats and 31 dogs. Bob has 7!", "No number here", "12 or 5? (Both.) It is 3.5 km"]


def table(**columns):
    return sl.PromptTable.from_dataframe(pd.DataFrame({"prompt": TEXTS, "kind": ["a", "b", "c"], **columns}))


def test_each_match_is_a_row_with_its_labels():
    plain = table()
    numbers = plain.at_pattern(r"\d+(\.\d+)?", name="number", missing="drop")
    labels = numbers.labels()
    assert labels["number_text"].tolist() == ["2", "31", "7", "12", "5", "3.5"]
    assert labels["number_number"].tolist() == [0, 1, 2, 0, 1, 2]
    assert labels["kind"].tolist() == list("aaaccc")
    assert [p[s:e] for p, (s, e) in zip(numbers.prompts, numbers.spans["number"], strict=True)] == [
        "2",
        "31",
        "7",
        "12",
        "5",
        "3.5",
    ]
    ids = plain.labels()["entity"]
    assert labels["entity"].tolist() == [
        f"{ids[r]}.number{n}" for r, n in [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1), (2, 2)]
    ]
    assert labels["entity_id"].tolist() == [ids[0]] * 3 + [ids[2]] * 3  # a split keeps the places of a prompt together
    assert (len(plain), plain.label_names) == (3, ("kind",))  # the table itself stays
    again = sl.PromptTable.from_dataframe(numbers.frame)
    assert again.spans["number"].tolist() == numbers.spans["number"].tolist()
    assert again.labels()["entity"].tolist() == labels["entity"].tolist()


@pytest.mark.parametrize(
    ("occurrence", "expected"),
    [("first", ["2", "12"]), ("last", ["7", "3"]), (1, ["31", "5"]), (-2, ["31", "3"]), (3, ["3"])],
)
def test_one_match_of_each_row(occurrence, expected):
    # the third text has the digits 12, 5, 3 and 5
    digits = (
        table().at_pattern(re.compile(r"\d+"), occurrence=occurrence, missing="drop").labels()["match_text"].tolist()
    )
    wanted = {"last": ["7", "5"], 3: ["5"]}.get(occurrence, expected)
    assert digits == wanted


def test_groups_and_spans_limit_the_places():
    inner = table(part_start=[0, 0, 0], part_end=[27, 2, 8])
    assert inner.at_pattern(r"\d+", within="part", missing="drop").labels()["match_text"].tolist() == [
        "2",
        "31",
        "12",
        "5",
    ]
    animals = table().at_pattern(r"\d+ (?P<animal>[a-z]+)", group="animal", name="animal", missing="drop")
    assert animals.labels()["animal_text"].tolist() == ["cats", "dogs", "or", "km"]


def test_spans_by_name_and_by_list():
    spans = table(a_start=[4, None, 0], a_end=[7, None, 2], b_start=[0, 0, 6], b_end=[3, 2, 7])
    both = spans.at_spans(["a", "b"], name="part")
    assert both.labels()["part_text"].tolist() == ["Ann", "has", "No", "12", "5"]
    assert both.labels()["part_of"].tolist() == ["b", "a", "b", "a", "b"]
    listed = table().at_spans([[(0, 3), (28, 31)], [], [(0, 2)]], name="part", missing="drop")
    assert listed.labels()["part_text"].tolist() == ["Ann", "Bob", "12"]


def test_sentence_ends():
    ends = table().at_sentence_ends(missing="drop")
    assert ends.labels()["sentence_end_text"].tolist() == [".", "!", "?", ".)"]
    assert ends.spans["sentence_end"][:, 0].tolist() == [26, 37, 7, 14]


@pytest.mark.parametrize("tokenizer", [byte_level(), metaspace(), byte_level(270)])
def test_every_third_token_is_the_position(tokenizer):
    every = table().at_every(3, tokenizer, start=1)
    index = resolve(("every_last",), every, every.tokenize(tokenizer)).index[:, 0]
    added = len(every.tokenize(tokenizer).special.before)
    assert index.tolist() == [added + 1 + 3 * n for n in every.labels()["every_number"].tolist()]
    counts = {text: len(tokenizer(text, add_special_tokens=False).input_ids) for text in TEXTS}
    assert len(every) == sum(len(range(1, n, 3)) for n in counts.values())


def test_chosen_tokens_such_as_surprising_ones():
    tokenizer = byte_level()
    plain = table()
    tokens = plain.tokenize(tokenizer)
    scores = [np.arange(len(row)) % 5 for row in tokens.ids]
    chosen = plain.at_tokens([score > 3 for score in scores], tokenizer, name="high")
    index = resolve(("high_last",), chosen, chosen.tokenize(tokenizer)).index[:, 0]
    assert index.tolist() == [i for score in scores for i in np.flatnonzero(score > 3)]


def test_a_capture_runs_equal_prompts_once_and_records_the_same(tmp_path):
    """Each place has the values of its token in a capture of all tokens of the prompts."""
    model, tokenizer = bridge("llama"), model_tokenizer()
    plain = table(entity_id=["a", "b", "c"])
    numbers = plain.at_pattern(r"\d+", name="number", missing="drop")
    options = {"tokenizer": tokenizer, "progress": False, "check": False}
    complete = sl.capture(model, plain, tmp_path / "all.zarr", positions="all", **options)
    positions = ("number_first", "number_last")
    places = sl.capture(model, numbers, tmp_path / "places.zarr", positions=positions, **options)
    tokens = numbers.tokenize(tokenizer)
    index = resolve(("number_first", "number_last"), numbers, tokens).index
    originals = plain.labels()["entity_id"].tolist()
    for row, name in enumerate(numbers.labels()["entity_id"].tolist()):
        same = complete.isel(entity=originals.index(name)).sel(token=index[row] - tokens.lengths[row])
        for variable in ("resid_post", "loss", "entropy", "resid_post_l2"):
            here = places[variable].isel(entity=row).values
            np.testing.assert_allclose(here, same[variable].values, rtol=2e-5, atol=2e-6)
    again = sl.PromptTable.from_dataframe(numbers.frame)  # a saved table extends the store
    second, widths = bridge("llama", seed=1), []
    second.blocks[0].hook_out.register_forward_hook(lambda module, inputs, out: widths.append(out.shape[0]))
    sl.capture({"model": model, "second": second}, again, tmp_path / "places.zarr", positions=positions, **options)
    assert widths[-1] == 2 < len(numbers)  # two of the three prompts have numbers


def test_surprisal_is_the_loss_of_each_token():
    model, tokenizer = bridge("llama"), model_tokenizer()
    plain = table()
    surprisal = sl.surprisal(model, plain, tokenizer=tokenizer)
    tokens = plain.tokenize(tokenizer)
    for row, values in zip(tokens.ids, surprisal, strict=True):
        with torch.no_grad():
            logits = model(torch.from_numpy(row)[None])[0].float().log_softmax(-1)
        expected = -logits[:-1].gather(1, torch.from_numpy(row[1:])[:, None])[:, 0]
        assert np.isnan(values[0])
        np.testing.assert_allclose(values[1:], expected.numpy(), rtol=1e-4, atol=1e-5)
    limit = float(np.nanmedian(np.concatenate(surprisal)))
    high = plain.at_tokens([values > limit for values in surprisal], tokenizer, name="surprising")
    assert len(high) == sum(int((values > limit).sum()) for values in surprisal)


REFUSALS = {
    "no match": (lambda: table().at_pattern("zebra"), "is in none of the 3 rows"),
    "no match in a row": (lambda: table().at_pattern(r"\d"), "row 1: no match"),
    "more than allowed": (lambda: table().at_pattern(r"\w+", at_most=3), "more than at_most=3"),
    "an empty match": (lambda: table().at_pattern(r"\d*"), "matches an empty text in row 0"),
    "no expression": (lambda: table().at_pattern("("), "not a regular expression"),
    "an unknown group": (lambda: table().at_pattern("a", group=2), "has the groups [0]"),
    "an unknown occurrence": (lambda: table().at_pattern("a", occurrence="next"), "occurrence='next'"),
    "an unknown outer span": (lambda: table().at_pattern("a", within="user"), "within='user'"),
    "missing= of capture": (lambda: table().at_pattern("a", missing="nan"), "missing='nan'"),
    "a name in use": (
        lambda: table(match_text=["a"] * 3).at_pattern(r"\w+"),
        "the name 'match' of the positions is in use",
    ),
    "a name that is no label": (lambda: table().at_pattern(r"\w+", name="a/b"), "cannot name an array"),
    "an unknown span": (lambda: table().at_spans(["user"]), "no span 'user'"),
    "spans of other rows": (lambda: table().at_spans([[(0, 1)]]), "1 lists, but the table has 3 rows"),
    "a span outside": (lambda: table().at_spans([[], [(0, 99)], []], missing="drop"), "row 1: the span span = [0, 99)"),
    "every 0": (lambda: table().at_every(0, byte_level()), "every=0"),
    "a slow tokenizer": (lambda: table().at_every(2, pure_python()), "fast Hugging Face tokenizer"),
    "tokens of other rows": (lambda: table().at_tokens([[True]], byte_level()), "1 lists, but the table has 3 rows"),
    "masks of another tokenizer": (lambda: table().at_tokens([[True]] * 3, byte_level()), "row 0 has 1 values"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_is_refused_with_the_remedy(case):
    call, message = REFUSALS[case]
    with pytest.raises(InputError, match=re.escape(message)):
        call()
