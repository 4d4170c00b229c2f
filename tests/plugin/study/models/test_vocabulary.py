import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from stratalens.plugin.study.config.settings import validate_settings
from stratalens.plugin.study.corpus.questions import candidate_answers
from stratalens.plugin.study.corpus.sampling import make_corpus
from stratalens.plugin.study.models.vocabulary import check_answers, check_vocabulary, cut_vocabulary, ids_to_keep
from stratalens.plugin.study.run import run_study
from stratalens.store.errors import InputError
from support.tiny_study import save_base, study_model, study_tokenizer
from support.tokenizers import byte_level_with_bos, wordpiece


@pytest.fixture(scope="module")
def whole():
    tokenizer = study_tokenizer()
    return tokenizer, study_model(tokenizer), make_corpus(tokenizer, stages=("a", "b"), entities_per_stage=20, seed=0)


@pytest.fixture(scope="module")
def cut(whole):
    tokenizer, model, corpus = whole
    return cut_vocabulary(model, tokenizer, corpus.all_texts())


def test_the_cut_is_smaller_and_keeps_special_tokens(whole, cut):
    tokenizer, _, _ = whole
    model, small = cut
    assert len(small) == model.config.vocab_size < len(tokenizer)
    assert small.eos_token == tokenizer.eos_token
    assert model.config.eos_token_id == small.eos_token_id
    assert model.config.pad_token_id == small.pad_token_id


def test_texts_split_into_the_same_tokens_at_the_same_characters(whole, cut):
    tokenizer, _, corpus = whole
    _, small = cut
    for text in corpus.all_texts():
        before = tokenizer(text, return_offsets_mapping=True)
        after = small(text, return_offsets_mapping=True)
        assert tokenizer.convert_ids_to_tokens(before["input_ids"]) == small.convert_ids_to_tokens(after["input_ids"])
        assert before["offset_mapping"] == after["offset_mapping"]


@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_any_other_text_survives_the_round_trip(cut, text):
    _, small = cut
    assert small.decode(small(text)["input_ids"], skip_special_tokens=False) == text


@pytest.mark.parametrize("tied", [True, False])
def test_hidden_states_are_unchanged_and_logits_are_columns_of_the_whole(whole, tied):
    tokenizer, _, corpus = whole
    model = study_model(tokenizer, tied=tied)
    if not tied:
        torch.nn.init.normal_(model.lm_head.weight)
    small_model, small = cut_vocabulary(model, tokenizer, corpus.all_texts())
    prompt = corpus.prompts()["prompt"][3]
    with torch.no_grad():
        before = model(**tokenizer(prompt, return_tensors="pt"), output_hidden_states=True)
        after = small_model(**small(prompt, return_tensors="pt"), output_hidden_states=True)
    for one, two in zip(before.hidden_states, after.hidden_states, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    ids = ids_to_keep(tokenizer, corpus.all_texts())
    torch.testing.assert_close(before.logits[..., ids], after.logits, rtol=1e-5, atol=1e-6)


def test_the_cut_model_and_tokenizer_survive_saving(cut, tmp_path):
    model, small = cut
    model.save_pretrained(tmp_path)
    small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    prompt = "Q: Who is <|abcde|>?\nA:"
    assert again(prompt)["input_ids"] == small(prompt)["input_ids"]
    loaded = LlamaForCausalLM.from_pretrained(tmp_path)
    for name, value in loaded.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), model.state_dict()[name].numpy())


def test_the_whole_model_is_left_alone(whole):
    tokenizer, model, corpus = whole
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cut_vocabulary(model, tokenizer, corpus.all_texts())
    assert model.config.vocab_size == len(tokenizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_tokenizer_with_bos_still_puts_it_in_front():
    tokenizer = byte_level_with_bos()
    model = study_model(study_tokenizer())
    model.resize_token_embeddings(len(tokenizer))
    _, small = cut_vocabulary(model, tokenizer, ["Who is Ann?"])
    assert small("Who is Ann?").input_ids[0] == small.bos_token_id
    assert small.decode(small("Who is Ann?").input_ids) == "<|bos|>Who is Ann?"


def test_other_kinds_of_tokenizer_are_refused():
    with pytest.raises(InputError, match="only fast BPE"):
        ids_to_keep(wordpiece(), ["a"])


def too_small(whole, missing=40):
    """A model with fewer tokens than the tokenizer has."""
    tokenizer = whole[0]
    small = study_model(tokenizer)
    small.resize_token_embeddings(len(tokenizer) - missing)
    return small, tokenizer


def test_a_tokenizer_that_is_larger_than_its_model_is_refused(whole):
    model, tokenizer = too_small(whole)
    text = next(token for token, number in tokenizer.get_vocab().items() if number == len(tokenizer) - 1)
    text = tokenizer.convert_tokens_to_string([text])
    words = f"id {len(tokenizer) - 1}, the model has {len(tokenizer) - 40} tokens"
    with pytest.raises(InputError, match=words):
        cut_vocabulary(model, tokenizer, [text])
    with pytest.raises(InputError, match=words):
        check_vocabulary(model, tokenizer, ["A", text])


def test_tokens_beyond_the_model_that_no_text_uses_do_no_harm(whole):
    model, tokenizer = too_small(whole)
    check_vocabulary(model, tokenizer, ["A", "Q"])


def test_answers_that_are_the_same_to_the_tokenizer_are_refused_before_training(whole, tmp_path):
    tokenizer, _, corpus = whole
    check_answers(tokenizer, "mine", candidate_answers(corpus))
    known = Tokenizer(models.WordLevel({"<unk>": 0, "A": 1, ":": 2, "male": 3, "female": 4}, unk_token="<unk>"))
    known.pre_tokenizer = pre_tokenizers.Whitespace()
    small = PreTrainedTokenizerFast(tokenizer_object=known, unk_token="<unk>", pad_token="<unk>", eos_token="<unk>")
    check_answers(small, "mine", {"gender": ("female", "male")})
    with pytest.raises(InputError) as refusal:
        check_answers(small, "models/mine", {"gender": ("female", "male"), "region": ("Asia", "Africa", "Europe")})
    for words in ("tokenizer of models/mine", "question of region", "'Asia', 'Africa', 'Europe' are equal",
                  "both become '<unk>'", "record.answers: none"):  # fmt: skip
        assert words in str(refusal.value)
    save_base(tmp_path / "base")
    small.save_pretrained(tmp_path / "base")
    settings = validate_settings({"model": str(tmp_path / "base"), "stages": 3, "entities_per_stage": 8}, "x")
    with pytest.raises(InputError, match="cannot distinguish answers"):
        run_study(settings, tmp_path / "out", quiet=True)
    assert not (tmp_path / "out" / "checkpoints").exists()
