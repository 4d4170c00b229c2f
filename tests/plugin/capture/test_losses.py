"""Losses against torch's cross-entropy in float64, one token at a time."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from stratalens.plugin.capture.statistics import negative_log_likelihood


def batch(seed, shape, vocabulary, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, vocabulary, generator=generator) * spread
    return logits, torch.randint(vocabulary, shape, generator=generator)


@given(st.integers(0, 10**6), st.tuples(st.integers(1, 4), st.integers(1, 7)), st.integers(2, 40))
def test_losses_token_by_token(seed, shape, vocabulary):
    logits, ids = batch(seed, shape, vocabulary)
    expected = cross_entropy(logits.double().reshape(-1, vocabulary), ids.reshape(-1), reduction="none")
    found = negative_log_likelihood(logits, ids)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected.reshape(shape), rtol=1e-5, atol=1e-6)


def test_half_precision_logits_and_tiles(monkeypatch):
    logits, ids = batch(2, (5, 6), 50)
    expected = negative_log_likelihood(logits.bfloat16().float(), ids)
    assert torch.equal(negative_log_likelihood(logits.bfloat16(), ids), expected)
    monkeypatch.setattr("stratalens.plugin.capture.statistics._TILE_CPU", 1)
    assert torch.equal(negative_log_likelihood(logits.bfloat16(), ids), expected)


def test_the_loss_of_a_row_does_not_depend_on_the_rows_beside_it():
    logits, ids = batch(3, (11, 9), 577)
    whole = negative_log_likelihood(logits, ids)
    for rows in (slice(0, 1), slice(10, 11), slice(2, 7)):
        assert torch.equal(negative_log_likelihood(logits[rows], ids[rows]), whole[rows])


def test_sure_and_forbidden_tokens():
    logits = torch.tensor([[200.0, 0.0, -torch.inf]])
    assert negative_log_likelihood(logits, torch.tensor([0])).item() == 0
    assert negative_log_likelihood(logits, torch.tensor([1])).item() == 200
    assert negative_log_likelihood(logits, torch.tensor([2])).item() == torch.inf
    assert negative_log_likelihood(logits[:0], torch.tensor([], dtype=torch.long)).shape == (0,)
