"""The same checkpoint, table and tokenizer give the same token ids, however the model comes in."""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformer_lens.model_bridge import TransformerBridge

import stratalens as sl
from stratalens.plugin.capture import store as capture_store
from stratalens.plugin.capture.callback import RecordingCallback
from stratalens.store.errors import InputError, MismatchError, TokenWarning
from stratalens.store.state.info import info
from support.models import ON_39, hf_model, hooked_transformer
from support.tokenizers import (
    byte_level,
    byte_level_with_bos,
    byte_level_with_eos,
    byte_level_with_unused_bos,
    pure_python,
    wordpiece,
)

SAVED = {
    "BOS added": byte_level_with_bos,
    "BOS not added": byte_level_with_unused_bos,
    "EOS added": byte_level_with_eos,
    "no BOS": byte_level,
    "CLS and SEP added": wordpiece,
}
PROMPTS = ["Who is Ann?", "The name of the river is Donau;", "Bob"]
OPTIONS = {"statistics": False, "check": False, "progress": False, "positions": "all"}


def prompts(texts=PROMPTS):
    return sl.PromptTable.from_dataframe(
        pd.DataFrame({"prompt": texts, "entity_id": [f"e{i}" for i in range(len(texts))]})
    )


@pytest.fixture(scope="module")
def memory():
    """The tokenizers as objects that were never loaded from a folder."""
    return {name: make() for name, make in SAVED.items()}


@pytest.fixture(scope="module")
def folders(memory, tmp_path_factory):
    """A checkpoint with each tokenizer; all have the same weights."""
    model, saved = hf_model("llama"), {}
    for name, tokenizer in memory.items():
        saved[name] = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(saved[name])
        copy.deepcopy(tokenizer).save_pretrained(saved[name])
    return saved


def auto(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def boot(folder):
    """A bridge as a user makes one; TransformerLens gives it a tokenizer that adds BOS where there is one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TransformerBridge.boot_transformers(
            str(folder), hf_model=hf_model("llama"), tokenizer=auto(folder), device="cpu"
        )


def by_callback(tokenizer, path, **options):
    how = {name: value for name, value in {**OPTIONS, **options}.items() if name != "progress"}
    callback = RecordingCallback(prompts(), path, [0], **how)
    state = transformers.TrainerState(global_step=0)
    callback.on_train_begin(None, state, None, model=hf_model("llama"), processing_class=tokenizer)


def by_loop(model, path, **options):
    how = {name: value for name, value in {**OPTIONS, **options}.items() if name != "progress"}
    with (
        sl.create_store(path, prompts(), model, **how) as store,
        sl.Recorder(model, store, "a") as recorder,
    ):
        rows = np.arange(3)
        ids, mask = store.tokens(rows)
        recorder.batch(rows)
        with torch.no_grad():
            model(ids, attention_mask=mask)


def ways(folder, memory, tmp_path, **options):
    """Record the table in every way and return the stores."""
    names = ("folder", "tokenizer", "memory", "bridge", "bridge_tokenizer", "callback", "loop")
    paths = {name: tmp_path / f"{name}.zarr" for name in names}
    how = {**OPTIONS, **options}
    bridge = boot(folder)
    sl.capture({"a": folder}, prompts(), paths["folder"], **how)
    sl.capture({"a": folder}, prompts(), paths["tokenizer"], tokenizer=auto(folder), **how)
    sl.capture({"a": folder}, prompts(), paths["memory"], tokenizer=memory, **how)
    sl.capture({"a": bridge}, prompts(), paths["bridge"], **how)
    sl.capture({"a": bridge}, prompts(), paths["bridge_tokenizer"], tokenizer=auto(folder), **how)
    by_callback(auto(folder), paths["callback"], **options)
    by_loop(bridge, paths["loop"], **options)
    return paths


def state(tokenizer):
    """What a capture must not change in a tokenizer."""
    return tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, len(tokenizer), dict(tokenizer.init_kwargs)


def facts(path):
    described = info(path)
    return described["provenance"], described["recorded_with"]["tokenization"]


@pytest.mark.parametrize("name", SAVED)
def test_every_way_gives_the_ids_of_the_hugging_face_call(folders, memory, tmp_path, name):
    folder, tokenizer = folders[name], memory[name]
    before = state(tokenizer)
    wanted = auto(folder)(PROMPTS).input_ids
    values = {}
    for way, path in ways(folder, tokenizer, tmp_path).items():
        provenance, rule = facts(path)
        expected = prompts().tokenize(auto(folder))
        assert [row.tolist() for row in expected.ids] == wanted
        assert provenance["token_ids_digest"] == expected.digest, way
        assert provenance["tokenizer_fingerprint"] == expected.tokenizer_fingerprint, way
        assert (rule["rule"], rule["prepend_bos"]) == ("tokenizer(prompt)", None)
        assert rule["first_row"] == wanted[0], way
        assert rule["first_row_tokens"] == tokenizer.convert_ids_to_tokens(wanted[0])
        values[way] = sl.open_store(path).resid_post.values
    for way, recorded in values.items():
        # The loop pads all rows to one length, which changes the last bit.
        tolerance = 1e-6 if way == "loop" else 0
        np.testing.assert_allclose(recorded, values["folder"], rtol=0, atol=tolerance, err_msg=way)
    assert before == state(tokenizer)


@pytest.mark.parametrize(
    ("name", "prepend"),
    [("BOS added", True), ("BOS added", False), ("BOS not added", True), ("BOS not added", False), ("EOS added", True)],
)
def test_prepend_bos_means_the_same_in_every_way(folders, tmp_path, name, prepend):
    folder, tokenizer = folders[name], auto(folders[name])
    bare = [token for token in tokenizer(PROMPTS[0]).input_ids if token != tokenizer.bos_token_id]
    wanted = [tokenizer.bos_token_id, *bare] if prepend else bare
    paths = [tmp_path / f"{way}.zarr" for way in ("folder", "bridge", "callback")]
    how = {**OPTIONS, "prepend_bos": prepend}
    sl.capture({"a": folder}, prompts(), paths[0], **how)
    sl.capture({"a": boot(folder)}, prompts(), paths[1], **how)
    by_callback(tokenizer, paths[2], prepend_bos=prepend)
    digests = set()
    for path in paths:
        provenance, rule = facts(path)
        assert rule["first_row"] == wanted
        assert rule["prepend_bos"] is prepend
        assert rule["rule"].startswith("tokenizer(prompt), with")
        digests.add((provenance["token_ids_digest"], provenance["tokenizer_fingerprint"]))
    assert len(digests) == 1


@pytest.mark.parametrize("prepend", [True, False])
def test_characters_follow_their_tokens(memory, prepend):
    for name in ("BOS added", "BOS not added", "EOS added"):
        plain = prompts().tokenize(memory[name])
        other = prompts().tokenize(memory[name], prepend_bos=prepend)
        for row in range(len(PROMPTS)):
            pairs = [
                [(i, *span) for i, span in zip(ids.tolist(), spans.tolist(), strict=True) if i != 1]
                for ids, spans in ((plain.ids[row], plain.offsets[row]), (other.ids[row], other.offsets[row]))
            ]
            assert pairs[0] == pairs[1]
            assert other.ids[row].tolist().count(1) == prepend
            assert other.lengths[row] == len(other.ids[row])


@pytest.mark.parametrize("kind", [models.WordLevel, models.BPE])
def test_special_tokens_of_a_vocabulary_without_letters(kind):
    vocabulary = {"<s>": 0, "7": 1, "+": 2}  # other characters raise an error (WordLevel), or are dropped (BPE)
    words = Tokenizer(kind(vocabulary) if kind is models.WordLevel else kind(vocabulary, []))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    digits = transformers.PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    ids = [prompts(["7 + 7"]).tokenize(digits, prepend_bos=bos).ids[0].tolist() for bos in (None, True, False)]
    assert ids == [[0, 1, 2, 1], [0, 1, 2, 1], [1, 2, 1]]


def test_a_tokenizer_in_pure_python(folders, tmp_path):
    python = pure_python()
    python.bos_token = "<"
    wanted = python(PROMPTS[0]).input_ids
    bridge = boot(folders["no BOS"])
    sl.capture({"a": folders["no BOS"]}, prompts(), tmp_path / "a.zarr", tokenizer=python, **OPTIONS)
    sl.capture({"a": bridge}, prompts(), tmp_path / "b.zarr", tokenizer=python, **OPTIONS)
    by_callback(python, tmp_path / "c.zarr")
    for name in "abc":
        assert facts(tmp_path / f"{name}.zarr")[1]["first_row"] == wanted
    assert (python.eos_token, python.pad_token) == (None, None)


@pytest.mark.skipif(not ON_39, reason="HookedTransformer is in TransformerLens 3.9 only")
@pytest.mark.parametrize("name", ["BOS added", "BOS not added", "EOS added"])
def test_a_hooked_transformer_uses_the_tokenizer_of_the_checkpoint(folders, tmp_path, name):
    model = hooked_transformer()
    model.set_tokenizer(auto(folders[name]))
    sl.capture(model, prompts(), tmp_path / "run.zarr", **OPTIONS)
    assert facts(tmp_path / "run.zarr")[1]["first_row"] == auto(folders[name])(PROMPTS[0]).input_ids


def test_prepend_bos_without_a_bos_token_is_refused(folders, tmp_path):
    for stage in (folders["no BOS"], boot(folders["no BOS"])):  # TransformerLens calls EOS the BOS token there
        with pytest.raises(InputError, match="no BOS token"):
            sl.capture({"a": stage}, prompts(), tmp_path / "run.zarr", prepend_bos=True, **OPTIONS)
    with pytest.raises(InputError, match="prepend_bos='yes': valid are None, True and False"):
        sl.capture({"a": folders["BOS added"]}, prompts(), tmp_path / "run.zarr", prepend_bos="yes", **OPTIONS)
    assert not (tmp_path / "run.zarr").exists()


def test_tokens_that_were_added_to_the_model_s_tokenizer_count(folders):
    from stratalens.plugin.models.adapters import adapt
    from stratalens.plugin.models.tokenizers import own_tokenizer

    bridge = boot(folders["BOS not added"])
    assert own_tokenizer(adapt(bridge)) is own_tokenizer(adapt(bridge))
    bridge.tokenizer.add_tokens(["Donau;"])
    ids = own_tokenizer(adapt(bridge))("Ann Donau;").input_ids
    assert ids[-1] == 400
    assert ids[0] != bridge.tokenizer.bos_token_id


def test_a_checkpoint_that_is_gone_is_refused_with_the_remedy(folders, tmp_path):
    folder = tmp_path / "gone"
    byte_level_with_unused_bos().save_pretrained(folder)
    bridge = boot(folder)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(InputError, match=r"tokenizer=model\.tokenizer to keep the BOS"):
        sl.capture(bridge, prompts(), tmp_path / "run.zarr", **OPTIONS)
    sl.capture(bridge, prompts(), tmp_path / "run.zarr", tokenizer=bridge.tokenizer, **OPTIONS)
    assert facts(tmp_path / "run.zarr")[1]["first_row"][0] == bridge.tokenizer.bos_token_id


def old_store(path, bridge, monkeypatch, stages=("a",)):
    """A store as it was recorded before there was a rule: with the tokenizer of TransformerLens."""
    create = capture_store.create

    def without_rule(*args, recorded_with, **kwargs):
        return create(*args, recorded_with={"model": recorded_with["model"]}, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(capture_store, "create", without_rule)
        models = {name: copy.deepcopy(bridge) for name in stages}
        sl.capture(models, prompts(), path, tokenizer=bridge.tokenizer, allow_same_weights=True, **OPTIONS)
    assert "tokenization" not in info(path)["recorded_with"]


@pytest.mark.parametrize("name", ["BOS not added", "EOS added"])
def test_a_store_of_the_old_rule_keeps_it_with_one_warning(folders, tmp_path, monkeypatch, name):
    path, bridge = tmp_path / "run.zarr", boot(folders[name])
    old_store(path, bridge, monkeypatch)
    before = sl.open_store(path).resid_post.values
    for stages in ({"a": folders[name]}, {"a": folders[name], "b": bridge}):
        with pytest.warns(TokenWarning, match="keeps the token ids") as caught:
            sl.capture(stages, prompts(), path, allow_same_weights=True, **OPTIONS)
        assert len(caught) == 1
    values = sl.open_store(path).resid_post.values
    np.testing.assert_array_equal(values[0], before[0])
    np.testing.assert_array_equal(values[1], before[0])
    with pytest.raises(MismatchError, match="differs"):
        sl.capture({"c": bridge}, prompts(), path, prepend_bos=False, allow_same_weights=True, **OPTIONS)


def test_a_store_of_the_old_rule_with_the_same_ids_needs_no_warning(folders, tmp_path, monkeypatch):
    path, bridge = tmp_path / "run.zarr", boot(folders["BOS added"])
    old_store(path, bridge, monkeypatch)
    sl.capture({"a": folders["BOS added"]}, prompts(), path, **OPTIONS)
    old_store(tmp_path / "other.zarr", boot(folders["BOS not added"]), monkeypatch)
    how = {**OPTIONS, "prepend_bos": True}  # what TransformerLens did
    sl.capture({"a": folders["BOS not added"]}, prompts(), tmp_path / "other.zarr", **how)


def test_a_store_recorded_with_prepend_bos_keeps_it(folders, tmp_path):
    folder, path = folders["BOS not added"], tmp_path / "run.zarr"
    sl.capture({"a": folder}, prompts(), path, prepend_bos=True, **OPTIONS)
    with pytest.warns(TokenWarning, match="keeps the token ids"):
        ds = sl.capture({"a": folder, "b": folder}, prompts(), path, allow_same_weights=True, **OPTIONS)
    np.testing.assert_array_equal(ds.resid_post[0].values, ds.resid_post[1].values)
    with pytest.raises(MismatchError) as error:
        sl.capture({"c": folder}, prompts(), path, prepend_bos=False, allow_same_weights=True, **OPTIONS)
    note = error.value.__notes__[0]
    assert "with one BOS token in front" in note
    assert "without a BOS token in front" in note
    assert "Row 0 is [1, " in note


def test_a_bos_in_the_prompt_and_again_in_front_is_warned_of_once(folders, tmp_path):
    table = prompts(["Who is Ann?", "<|bos|>Bob", "<|bos|>"])
    folder = folders["BOS added"]
    with pytest.warns(TokenWarning, match=r"rows 1, 2: .*'<\|bos\|>'.*prepend_bos=False") as caught:
        sl.capture({"a": folder}, table, tmp_path / "run.zarr", **OPTIONS)
    assert len(caught) == 1
    sl.capture({"a": folder}, table, tmp_path / "again.zarr", **OPTIONS)  # warned of once
    sl.capture({"a": folder}, prompts(["<|bos|>Bob"]), tmp_path / "own.zarr", prepend_bos=False, **OPTIONS)
    assert facts(tmp_path / "own.zarr")[1]["first_row"][0] == 1
    with pytest.warns(TokenWarning, match=r"row 0.*\[SEP\]"):
        sl.capture({"a": folders["CLS and SEP added"]}, prompts(["Ann [SEP]"]), tmp_path / "s.zarr", **OPTIONS)


def test_info_shows_the_rule_and_the_first_row(folders, tmp_path, capsys):
    from stratalens.plugin.cli.output import show_info

    path, how = tmp_path / "run.zarr", {**OPTIONS, "positions": "last"}
    sl.capture({"a": folders["BOS not added"]}, prompts(), path, prepend_bos=True, **how)
    described = json.loads(json.dumps(info(path)))
    show_info(described)
    out = " ".join(capsys.readouterr().out.split())
    assert "tokenizer(prompt), with one BOS token in front" in out
    assert "1 '<|bos|>'" in out
    assert sl.open_store(path).attrs["recorded_with"]["tokenization"] == described["recorded_with"]["tokenization"]


def test_a_long_first_row_is_shortened():
    table = prompts(["The name of the river is Donau; " * 20])
    tokenized = table.tokenize(byte_level())
    rule = tokenized.describe(byte_level())
    assert rule["first_row"] == tokenized.ids[0][:64].tolist()
    assert rule["first_row_length"] == tokenized.lengths[0] > 64


def test_a_run_file_says_prepend_bos(folders, tmp_path, capsys):
    from stratalens.plugin.cli.capture_jobs import capture_run
    from stratalens.plugin.cli.run_file import read_run_file

    pd.DataFrame({"prompt": PROMPTS, "entity_id": ["a", "b", "c"]}).to_csv(tmp_path / "p.csv", index=False)
    text = f"prompts: p.csv\nstore: run.zarr\nmodel: {folders['BOS not added']}\nprepend_bos: true\nstatistics: false\n"
    (tmp_path / "run.yaml").write_text(text)
    capture_run(read_run_file(tmp_path / "run.yaml"))
    assert facts(tmp_path / "run.zarr")[1]["first_row"][0] == 1
    assert "prepend_bos: true" in Path(tmp_path / "run.zarr.run.yaml").read_text()
    (tmp_path / "run.yaml").write_text(text.replace("prepend_bos: true\n", ""))
    capsys.readouterr()
    capture_run(read_run_file(tmp_path / "run.yaml"))
    err = " ".join(capsys.readouterr().err.split())
    assert err.count("warning: ") == 1
    assert "keeps the token ids" in err


def test_studies_record_with_bos_where_the_tokenizer_has_one(folders, tmp_path):
    from stratalens.plugin.study.recording.stores import prepend_bos_of

    assert [prepend_bos_of(folders[name]) for name in ("BOS not added", "no BOS")] == [True, None]
    assert prepend_bos_of(tmp_path) is None
