"""The loss of the entity's own tokens, against all logits of the Hugging Face model in float64."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stratalens.plugin.capture.recorder import Recorder
from stratalens.plugin.capture.run import capture
from stratalens.plugin.capture.store import create_store
from stratalens.plugin.prompts.table import PromptTable
from stratalens.store.errors import InputError, LabelWarning
from stratalens.store.reading.open import open_store
from support.models import ON_39, TwoLayers, bridge, hooked_transformer, run_two_layers
from support.tokenizers import all_fast, byte_level, byte_level_with_bos, pure_python, wordpiece

ENTITIES = ("São Paulo", "Ann Smith", "Bob", "it", "", "Norway")
PROMPTS = (
    "Q: Who is São Paulo? The The\nA:",
    "Ann Smith is a painter from Norway.",  # at the start
    "Bob",  # the whole prompt
    "The name of it",  # at the end
    "Q: What does a village mean?",  # no entity
    "A painter from Norway is Ann Smith, and Norway is it",
)


def prompts(answers: bool = False) -> PromptTable:
    frame = pd.DataFrame({"prompt": PROMPTS, "entity": ENTITIES, "entity_id": [f"e{i}" for i in range(6)]})
    if answers:
        frame["answer"] = [" a village", " yes", "", " no", " it", " a painter"]
    return PromptTable.from_dataframe(frame)


def expected(logits: Any, table: PromptTable, tokenizer: Any) -> list[float]:
    """Entity losses from the characters of the tokens and all logits of one prompt at a time."""
    losses = []
    for row, (prompt, (start, end)) in enumerate(zip(table.prompts, table.spans["entity"].tolist(), strict=True)):
        del row
        encoded = tokenizer(prompt, return_offsets_mapping=True)
        ids = torch.tensor(encoded["input_ids"])
        inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < b and a < end and b > start]
        logp = logits(ids[None])[0].double().log_softmax(-1)
        each = [-logp[i - 1, ids[i]].item() for i in inside if i > 0]
        losses.append(float(np.mean(each)) if each else np.nan)
    return losses


def hf_logits(model: Any) -> Any:
    def run(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits

    return run


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2", "opt"])
@pytest.mark.parametrize("bos", [False, True])
def test_entity_loss_is_the_mean_loss_of_the_entitys_tokens(kind: str, bos: bool, tmp_path: Path) -> None:
    tokenizer = byte_level_with_bos() if bos else byte_level()
    model, table = bridge(kind), prompts()
    ds = capture(model, table, tmp_path / "a.zarr", layers=[0], tokenizer=tokenizer, batch_size=4)
    wanted = expected(hf_logits(model.original_model), table, tokenizer)
    assert ds.entity_loss.dims == ("stage", "entity")
    assert ds.entity_loss.dtype == np.float32
    np.testing.assert_allclose(ds.entity_loss.values[0], wanted, atol=3e-4)
    assert np.isnan(wanted[4])
    assert np.isfinite(wanted).sum() == (5 if bos else 4 if len(tokenizer("Bob").input_ids) == 1 else 5)


@pytest.mark.skipif(not ON_39, reason="TransformerLens 4 has no HookedTransformer")
def test_entity_loss_of_a_hooked_transformer(tmp_path: Path) -> None:
    model, table, tokenizer = hooked_transformer(), prompts(), byte_level()
    ds = capture(model, table, tmp_path / "a.zarr", layers=[0], tokenizer=tokenizer, statistics=("entity_loss",))
    with torch.no_grad():
        wanted = expected(model, table, tokenizer)
    np.testing.assert_allclose(ds.entity_loss.values[0], wanted, atol=3e-4)


@pytest.mark.parametrize("name", ["metaspace", "wordpiece"])
def test_entity_loss_with_other_tokenizers(name: str, tmp_path: Path) -> None:
    tokenizer, model, table = all_fast()[name], bridge("llama", vocab_size=600), prompts()
    ds = capture(model, table, tmp_path / "a.zarr", layers=[0], tokenizer=tokenizer, statistics=("entity_loss",))
    wanted = expected(hf_logits(model.original_model), table, tokenizer)
    np.testing.assert_allclose(ds.entity_loss.values[0], wanted, atol=3e-4)


def test_batches_padding_and_answers_do_not_change_entity_loss(tmp_path: Path) -> None:
    model = bridge("llama")
    single = capture(model, prompts(), tmp_path / "a.zarr", statistics=("entity_loss",), batch_size=1)
    together = capture(model, prompts(True), tmp_path / "b.zarr", statistics=("entity_loss", "answer_loss"))
    every = capture(model, prompts(), tmp_path / "c.zarr", positions="all", statistics=("entity_loss", "loss"))
    for other in (together, every):
        np.testing.assert_allclose(other.entity_loss.values, single.entity_loss.values, rtol=1e-4)
    # The entity of the last row has its loss in `loss`, token by token.
    tokens = model.tokenizer(PROMPTS[5], return_offsets_mapping=True).offset_mapping
    start, end = prompts().spans["entity"][5].tolist()
    inside = [i - len(tokens) for i, (a, b) in enumerate(tokens) if a < end and b > start]
    np.testing.assert_allclose(
        float(every.loss.isel(stage=0, entity=5).sel(token=inside).mean()), every.entity_loss.values[0, 5], rtol=1e-5
    )


def test_only_the_rows_of_the_entity_go_through_the_output_layer(tmp_path: Path) -> None:
    model, table = bridge("llama"), prompts()
    rows: list[int] = []
    handle = model.original_model.lm_head.register_forward_hook(lambda m, i, o: rows.append(o.shape[:-1].numel()))
    ds = capture(model, table, tmp_path / "a.zarr", layers=[0], statistics=("entity_loss",), batch_size=6)
    handle.remove()
    tokens = sum(len(model.tokenizer(f" {entity}").input_ids) for entity in ENTITIES)
    assert rows[-1] <= tokens < sum(len(model.tokenizer(prompt).input_ids) for prompt in PROMPTS)
    assert "loss" not in ds


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", ["", "bos"])
def test_entity_loss_in_your_own_loop(side: str, extra: str, tmp_path: Path) -> None:
    model, table = bridge("llama"), prompts()
    tokenizer = byte_level_with_bos() if extra else byte_level()
    tokenizer.pad_token = tokenizer.eos_token
    wanted = expected(hf_logits(model.original_model), table, tokenizer)
    with create_store(
        tmp_path / "a.zarr", table, model, tokenizer=byte_level(), statistics=("entity_loss", "loss")
    ) as store:
        batch = tokenizer(table.prompts, return_tensors="pt", padding=True, padding_side=side)
        ends = batch.attention_mask.cumsum(1).argmax(1)
        with Recorder(model, store, stage="s") as rec:
            rec.batch(range(6), {"last": ends.numpy()})
            with torch.no_grad():
                model(batch.input_ids, attention_mask=batch.attention_mask)
    np.testing.assert_allclose(open_store(tmp_path / "a.zarr").entity_loss.values[0], wanted, rtol=2e-3, atol=1e-3)


def test_other_tokens_than_those_of_the_table_have_no_entity_loss(tmp_path: Path) -> None:
    model, table = bridge("llama"), prompts()
    ids = torch.full((6, 9), 7)
    with (
        create_store(tmp_path / "a.zarr", table, model, tokenizer=byte_level()) as store,
        Recorder(model, store, stage="s") as rec,
        torch.no_grad(),
    ):
        rec.batch(range(6), {"last": np.full(6, 8)})
        with pytest.warns(LabelWarning, match="stage 's': the tokens of row 0 do not contain those of its entity"):
            model(ids, attention_mask=torch.ones_like(ids))
    assert np.isnan(open_store(tmp_path / "a.zarr").entity_loss.values).all()


def test_tables_and_tokenizers_without_entity_tokens(tmp_path: Path) -> None:
    model = bridge("gpt2")
    bare = PromptTable.from_dataframe(pd.DataFrame({"prompt": PROMPTS, "entity_id": list("abcdef")}))
    assert "entity_loss" not in capture(model, bare, tmp_path / "a.zarr")
    with pytest.raises(InputError, match="'entity_loss' needs a column 'entity'"):
        capture(model, bare, tmp_path / "b.zarr", statistics=("entity_loss",))
    options: dict[str, Any] = {"tokenizer": pure_python(), "forward": run_two_layers, "sites": "embed"}
    assert "entity_loss" not in capture(TwoLayers(), prompts(), tmp_path / "c.zarr", **options)
    with pytest.raises(InputError, match="a fast one"):
        capture(TwoLayers(), prompts(), tmp_path / "d.zarr", statistics=("entity_loss",), **options)
    special = wordpiece(special=True)
    spans = prompts().tokenize(special).offsets
    assert spans is not None
    assert spans[0][0].tolist() == [0, 0]  # the special token is no token of an entity


def test_a_store_without_entity_loss_stays_without_it(tmp_path: Path) -> None:
    path, model, table = tmp_path / "a.zarr", bridge("gpt2"), prompts()
    old = ("l2", "mean", "loss", "entropy")  # what an older version may have recorded
    capture({"a": model}, table, path, statistics=old)
    with pytest.warns(LabelWarning, match=r"does not record .*entity_loss.* statistics=True means the statistics"):
        ds = capture({"a": model, "b": bridge("gpt2", 1)}, table, path)
    assert {"resid_post_l2", "resid_post_mean", "loss", "entropy"} < set(ds)
    assert not {"entity_loss", "resid_post_std", "running_loss"} & set(ds)
    assert bool(ds.recorded.all())
    ds = capture({"a": model, "b": bridge("gpt2", 1)}, table, path, statistics=(*old, "entity_loss"))
    assert bool(np.isfinite(ds.entity_loss.isel(entity=0)).all())
