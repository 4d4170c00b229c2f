"""Packed batches have the losses and gradients of padded ones."""

import pytest
import torch
import transformers

from stratalens.plugin.study.training.packing import balance_rows, collate_packed, collate_padded

LENGTHS = (5, 9, 2, 7, 7, 3, 12, 4)
SMALL = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
WITH_KEYS = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 32}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**WITH_KEYS),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4, n_positions=64),
    "neox": lambda: transformers.GPTNeoXConfig(**SMALL, intermediate_size=32),
    "qwen2": lambda: transformers.Qwen2Config(**WITH_KEYS),
    "gemma3": lambda: transformers.Gemma3TextConfig(**WITH_KEYS, head_dim=4, sliding_window=16),
}


def make_examples(prompt=0):
    random = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, 50, (n,), generator=random).tolist() for n in LENGTHS]
    return [{"input_ids": row, "labels": [-100] * prompt + row[prompt:]} for row in rows]


def make_model(kind):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS[kind](), attn_implementation="eager")
    return model.train(False)


def losses_by_text(model, batch):
    """The sum of the losses of each text, sorted; a text begins where the position ids restart."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    if "position_ids" not in batch:
        return sorted(loss.sum(dim=1).tolist())
    sums = []
    for row, positions in zip(loss, batch["position_ids"][:, 1:], strict=True):
        text = (positions == 0).cumsum(dim=0)
        sums += [float(row[text == number].sum()) for number in range(int(text.max()) + 1)]
    return sorted(value for value in sums if value)  # the padding of a row has none


@pytest.mark.parametrize("kind", [*CONFIGS])
@pytest.mark.parametrize("prompt", [0, 1])
def test_packed_losses_and_gradients_are_those_of_single_texts(kind, prompt):
    examples, model = make_examples(prompt), make_model(kind)
    padded, packed = collate_padded(examples, pad=0), collate_packed(examples, pad=0, tokens=16)
    assert packed["input_ids"].shape == (3, 17)  # 49 tokens
    with torch.no_grad():
        torch.testing.assert_close(losses_by_text(model, packed), losses_by_text(model, padded), rtol=1e-5, atol=1e-5)
        alone = [float(model(**collate_padded([row], pad=0)).loss) for row in examples]
    words = [sum(label != -100 for label in row["labels"][1:]) for row in examples]
    mean = sum(loss * n for loss, n in zip(alone, words, strict=True)) / sum(words)
    gradients = []
    for batch in (padded, packed):
        model.zero_grad()
        loss = model(**batch).loss
        value = loss.item()
        assert value == pytest.approx(mean, rel=1e-5)
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_a_text_does_not_depend_on_its_neighbours():
    examples, model = make_examples(), make_model("llama")
    other = [{**row, "input_ids": [49] * len(row["input_ids"])} for row in examples]
    whole = collate_packed(examples, pad=0, tokens=100)
    mixed = collate_packed([examples[0], *other[1:]], pad=0, tokens=100)
    place = (whole["input_ids"][0] == mixed["input_ids"][0]).nonzero().flatten()[: LENGTHS[0]]
    with torch.no_grad():
        logits = [model(**{k: v for k, v in b.items() if k != "labels"}).logits[0, place] for b in (whole, mixed)]
    assert torch.equal(whole["input_ids"][0, place], torch.tensor(examples[0]["input_ids"]))
    torch.testing.assert_close(*logits)


def test_rows_are_nearly_full():
    lengths = [18, 20, 22] * 40
    rows = balance_rows(lengths)
    sizes = [sum(lengths[text] for text in row) for row in rows]
    assert sorted(text for row in rows for text in row) == list(range(120))
    assert max(sizes) * len(sizes) < 1.02 * sum(lengths)
    assert balance_rows([7]) == [[0]]
