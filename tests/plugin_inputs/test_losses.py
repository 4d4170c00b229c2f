"""Losses against torch's cross-entropy in float64, one token at a time."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from stratalens.losses import answer_loss, at_positions, negative_log_likelihood, running_mean, token_losses


def batch(seed, lengths, vocabulary, spread=3.0):
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    logits = torch.randn(len(lengths), longest, vocabulary, generator=generator) * spread
    ids = torch.randint(vocabulary, (len(lengths), longest), generator=generator)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    return logits, ids, mask


@given(st.integers(0, 10**6), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(2, 40))
def test_losses_token_by_token(seed, lengths, vocabulary):
    logits, ids, mask = batch(seed, lengths, vocabulary)
    found = token_losses(logits, ids, mask)
    for row, length in enumerate(lengths):
        seen = []
        for p in range(ids.shape[1]):
            if p == 0 or p >= length:
                assert found["loss"][row, p].isnan()
                assert found["running_loss"][row, p].isnan()
                continue
            seen.append(cross_entropy(logits[row, p - 1].double(), ids[row, p]).item())
            np.testing.assert_allclose(found["loss"][row, p], seen[-1], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found["running_loss"][row, p], np.mean(seen), rtol=1e-5, atol=1e-6)


def test_the_last_logits_may_be_left_out():
    logits, ids, mask = batch(0, [5, 3], 11)
    whole, short = token_losses(logits, ids, mask), token_losses(logits[:, :-1], ids, mask)
    for name in whole:
        assert torch.equal(whole[name].nan_to_num(-1), short[name].nan_to_num(-1))


def test_without_a_mask_and_with_one_token():
    logits, ids, _ = batch(1, [4, 4], 5)
    assert not token_losses(logits, ids)["loss"][:, 1:].isnan().any()
    assert token_losses(logits[:, :1], ids[:, :1])["running_loss"].isnan().all()


def test_half_precision_logits_and_tiles(monkeypatch):
    logits, ids, _ = batch(2, [6] * 5, 50)
    expected = token_losses(logits.bfloat16().float(), ids)["loss"]
    assert torch.equal(token_losses(logits.bfloat16(), ids)["loss"].nan_to_num(), expected.nan_to_num())
    monkeypatch.setattr("stratalens.losses._TILE_CPU", 1)
    assert torch.equal(token_losses(logits.bfloat16(), ids)["loss"].nan_to_num(), expected.nan_to_num())


def test_the_loss_of_a_row_does_not_depend_on_the_rows_beside_it():
    logits, ids, _ = batch(3, [9] * 11, 577)
    whole = token_losses(logits, ids)["loss"].nan_to_num()
    for rows in (slice(0, 1), slice(10, 11), slice(2, 7)):
        assert torch.equal(token_losses(logits[rows], ids[rows])["loss"].nan_to_num(), whole[rows])


def test_sure_and_forbidden_tokens():
    logits = torch.tensor([[200.0, 0.0, -torch.inf]])
    assert negative_log_likelihood(logits, torch.tensor([0])).item() == 0
    assert negative_log_likelihood(logits, torch.tensor([1])).item() == 200
    assert negative_log_likelihood(logits, torch.tensor([2])).item() == torch.inf
    assert negative_log_likelihood(logits[:0], torch.tensor([], dtype=torch.long)).shape == (0,)


def test_the_running_mean_of_long_prompts_keeps_its_digits():
    loss = torch.full((1, 4001), 0.1)
    loss[0, 0] = torch.nan
    np.testing.assert_allclose(running_mean(loss)[0, 1:], np.float32(0.1), rtol=1e-7)


def test_answer_loss():
    logits, ids, mask = batch(4, [7, 5, 4], 13)
    loss = token_losses(logits, ids, mask)["loss"]
    found = answer_loss(loss, np.array([5, 4, 4]), np.array([2, 1, 0]))
    expected = [
        np.mean([cross_entropy(logits[0, p - 1].double(), ids[0, p]).item() for p in (5, 6)]),
        cross_entropy(logits[1, 3].double(), ids[1, 4]).item(),
    ]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-5)
    assert found[2].isnan()


def test_at_positions():
    values = torch.arange(8.0).reshape(2, 4)
    found = at_positions(values, np.array([[3, -1], [0, 2]]))
    np.testing.assert_array_equal(found, [[3, np.nan], [4, 6]])
